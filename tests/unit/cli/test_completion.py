"""Completion: the shells' scripts, and the names of the running gateway."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.canned import Gateway
from tests.support.commands import Capture, fail, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_asks_this_program_for_its_shell(capsys: Capture, shell: str) -> None:
    script = run(capsys, "completion", shell)
    assert f"_ESP_GW_COMPLETE={shell}_complete" in script
    assert "esp-gw" in script


def test_bash_understands_its_script(capsys: Capture) -> None:
    script = run(capsys, "completion", "bash")
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_a_usage_error(capsys: Capture) -> None:
    assert "'bash', 'zsh', 'fish'" in fail(capsys, "completion", "csh", status=2)


def completed(line: str, **environment: str) -> list[str]:
    """Return what bash would be offered at the end of a line."""
    words = line.split(" ")
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from esp_gw.cli.main import main; sys.exit(main())"],
        env={
            **os.environ,
            "_ESP_GW_COMPLETE": "bash_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [each.partition(",")[2] for each in done.stdout.splitlines() if each]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("esp-gw sa show ", ["office/out", "office/in"]),
        ("esp-gw sa delete office/i", ["office/in"]),
        ("esp-gw sa add new --pair office/o", ["office/out"]),
        ("esp-gw tunnel show ", ["office"]),
        ("esp-gw tunnel ping o", ["office"]),
        ("esp-gw tunnel show x", []),
        ("esp-gw policy delete n", ["no-smtp"]),
        ("esp-gw policy add p --sa office/out", ["office/out"]),
        ("esp-gw policy add p --before ", ["office", "no-smtp"]),
        ("esp-gw explain --drops ", ["office"]),
        ("esp-gw explain ", []),
        ("esp-gw tunnel p", ["ping"]),
        ("esp-gw comp", ["completion"]),
        ("esp-gw tune --u", ["--undo"]),
        ("esp-gw sa show --rev", ["--reveal-keys"]),
    ],
)
def test_names_come_from_the_gateway(gateway: Gateway, line: str, names: list[str]) -> None:
    assert completed(line) == names


def test_the_socket_on_the_line_is_asked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESP_GW_SOCKET")
    assert completed(f"esp-gw --socket {gateway.path} tunnel show ") == ["office"]


def test_without_a_gateway_there_are_no_names_and_no_words(tmp_path: Path) -> None:
    assert completed("esp-gw sa show ", ESP_GW_SOCKET=str(tmp_path / "none")) == []


def test_a_gateway_that_answers_nonsense_has_no_names(gateway: Gateway) -> None:
    gateway.replies["ListSas"] = {"sas": [{"no": "name"}]}
    assert completed("esp-gw sa show ") == []
