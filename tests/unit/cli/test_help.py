"""The help says what is what."""

from __future__ import annotations

import click
import pytest

from esp_gw.cli.main import cli
from esp_gw.cli.overview import GROUPS, Overview
from tests.support.commands import Capture, run


@pytest.mark.parametrize("command", [("sa", "add"), ("policy", "add")])
def test_the_help_of_a_side_names_it(capsys: Capture, command: tuple[str, ...]) -> None:
    text = " ".join(run(capsys, *command, "--help").split())
    assert "--remote-ts NET Prefix behind the peer. Repeatable." in text
    assert "--local-ts NET Prefix behind us. Repeatable." in text


def test_the_help_is_one_screen_with_every_command_in_a_group(capsys: Capture) -> None:
    lines = run(capsys, "--help").splitlines()
    # A line for the prompt below them.
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    rows = [line[8:22] for line in lines[1:] if line[7:8] == " " and line[21:22] == " "]
    named = [name.strip() for row in rows for name in row.split(",")]
    assert sorted(named) == sorted(n for n, each in cli.commands.items() if not each.hidden)
    assert "Further" not in "\n".join(lines)
    listed = {name for texts in GROUPS.values() for names in texts for name in names.split(", ")}
    assert listed <= set(cli.commands)


def test_the_help_names_options_and_exit_statuses(capsys: Capture) -> None:
    text = run(capsys, "-h")
    for word in ("--socket PATH", "--version", "--help", "3 no gateway runs"):
        assert word in text


def test_a_command_of_no_group_is_shown_all_the_same() -> None:
    root = Overview("esp-gw", commands={"new": click.Command("new", short_help="It is new.")})
    assert "Further new           It is new." in root.get_help(click.Context(root))
