"""Log lines: one per event, formatted for journald or a terminal, and never a key."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from esp_gw import logs
from esp_gw.errors import EspGwError
from esp_gw.model import KeyMaterial

SECRET = bytes(range(0xA0, 0xC4))
KEYMAT = KeyMaterial.from_bytes(SECRET)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore the configuration of logging."""
    root = logging.getLogger()
    ours = logging.getLogger("esp_gw")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


class Stderr:
    """A file in place of stderr: it has an inode, as the stream of the journal does."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.stream = path.open("w")
        self.monkeypatch = monkeypatch

    def configure(self, level: str) -> None:
        # Not in the fixture: pytest replaces stderr between setup and test.
        self.monkeypatch.setattr(sys, "stderr", self.stream)
        logs.configure(level)

    @property
    def name(self) -> str:
        status = os.fstat(self.stream.fileno())
        return f"{status.st_dev}:{status.st_ino}"

    def lines(self) -> list[str]:
        self.stream.flush()
        return self.path.read_text().splitlines()


@pytest.fixture
def stderr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stderr]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    output = Stderr(tmp_path / "stderr", monkeypatch)
    yield output
    output.stream.close()


def logger() -> logs.Log:
    return logs.log


def line_of(stderr: Stderr, **fields: object) -> str:
    stderr.configure("info")
    logger().info("event", **fields)
    (line,) = stderr.lines()
    return line.split("event ", 1)[1]


def test_a_line_has_time_level_event_and_fields_in_order(stderr: Stderr) -> None:
    stderr.configure("info")
    logger().warning("lease is low", sa="office/out", seq=2**64 - 1, what="a b", empty="")
    (line,) = stderr.lines()
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d warning  lease is low "
        r'sa=office/out seq=18446744073709551615 what="a b" empty=""',
        line,
    )


def test_without_a_terminal_there_are_no_colours(stderr: Stderr) -> None:
    stderr.configure("info")
    logger().error("bad")
    assert "\x1b" not in stderr.lines()[0]


def test_a_terminal_gets_colour_for_errors(stderr: Stderr, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr.configure("info")
    monkeypatch.setattr(stderr.stream, "isatty", lambda: True, raising=False)
    logger().error("bad")
    assert re.fullmatch(r"[0-9:]+ \x1b\[31merror   \x1b\[0m bad", stderr.lines()[0])


@pytest.mark.parametrize(
    ("level", "priority"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3)]
)
def test_the_journal_gets_priorities_and_no_time(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch, level: str, priority: int
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stderr.name)
    stderr.configure("debug")
    getattr(logger(), level)("ready", mtu=1400)
    assert stderr.lines() == [f"<{priority}>ready mtu=1400"]


def test_an_inherited_journal_stream_that_is_not_stderr_is_ignored(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "8:1")
    stderr.configure("info")
    logger().info("ready")
    assert re.match(r"\d\d:", stderr.lines()[0])


def test_levels_below_the_one_configured_are_silent(stderr: Stderr) -> None:
    stderr.configure("warning")
    logger().debug("a")
    logger().info("b")
    logger().warning("c")
    logging.getLogger("x").info("d")
    assert [line.split()[-1] for line in stderr.lines()] == ["c"]


def test_an_unknown_level_is_reported_with_the_known_ones() -> None:
    with pytest.raises(EspGwError, match="'loud'; use one of debug, info, warning, error"):
        logs.configure("loud")


@pytest.mark.parametrize(
    "fields",
    [
        {"x": KEYMAT},
        {"x": SECRET},
        {"x": bytearray(SECRET)},
        {"x": memoryview(SECRET)},
        {"key": SECRET.hex()[:8]},
        {"KEYMAT": SECRET.hex()[:8]},
        {"salt": int.from_bytes(SECRET[-4:])},
        {"psk": "correct horse a0a1a2a3"},
        {"key_hex": SECRET.hex()[:8]},
        {"old_key": SECRET.hex()[:8]},
        {"keys": [SECRET.hex()[:8]]},
        {"parameters": {"name": "a", "key": SECRET.hex()[:8]}},
        {"parameters": [{"deep": ({"psk": SECRET.hex()[:8]},)}]},
        {"items": [SECRET, KEYMAT]},
        {"text": f"bad value {SECRET.hex()!r}"},
        {"text": f"0x{SECRET.hex()}"},
        {"text": SECRET.hex().upper()},
        {"text": f"bad value {SECRET!r}"},
        {"text": f"input_value='{SECRET.hex()[:20]}...{SECRET.hex()[-20:]}'"},
        {"error": ValueError(f"no good: {SECRET!r}")},
    ],
)
def test_a_key_is_hidden_in_every_place(stderr: Stderr, fields: dict[str, object]) -> None:
    line = line_of(stderr, **fields)
    assert logs.HIDDEN in line
    for part in (
        "a0a1",
        "a2a3",
        "c0c1",
        "c2c3",
        "A0A1",
        "xa0",
        "horse",
        str(int.from_bytes(SECRET[-4:])),
    ):
        assert part not in line


def test_a_key_in_the_event_is_hidden_too(stderr: Stderr) -> None:
    stderr.configure("info")
    logger().info(f"added {SECRET.hex()}")
    assert "a0a1" not in stderr.lines()[0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("0x0000cafe", "0x0000cafe"),
        ("2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"),
        ("18446744073709551615", "18446744073709551615"),
        ("keys/pi-b.out.key", "keys/pi-b.out.key"),
        ('say "hi"', '"say \\"hi\\""'),
    ],
)
def test_a_value_that_is_no_key_is_shown(stderr: Stderr, value: str, shown: str) -> None:
    assert line_of(stderr, file=value) == f"file={shown}"


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x1b[31mb", "a\u2028b", "a\x00b", "a\ud800b"])
def test_characters_that_would_break_a_line_are_escaped(stderr: Stderr, text: str) -> None:
    stderr.configure("info")
    logger().info(text, **{"value": text, text: 1, "list": [text]})
    (line,) = stderr.lines()
    assert line.isprintable()


def test_a_traceback_follows_indented_and_without_keys(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stderr.name)
    stderr.configure("info")
    try:
        raise ValueError(f"no good: {SECRET.hex()}\n<0>forged")
    except ValueError:
        logger().exception("request failed", method="AddSa")
    first, *rest = stderr.lines()
    assert first == "<3>request failed method=AddSa"
    assert all(line.startswith("<3>  | ") for line in rest)
    assert any("test_logs.py" in line for line in rest)
    assert "ValueError: no good: <hidden>" in rest[-2]
    assert "a0a1" not in "".join(rest)


def test_other_libraries_are_logged_the_same_way(
    stderr: Stderr, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stderr.name)
    stderr.configure("info")
    logging.getLogger("asyncio").error("slow %s", "loop\n")
    logging.getLogger("odd").log(35, "between")
    assert stderr.lines() == ["<3>slow loop\\n logger=asyncio", "<4>between logger=odd"]


# Lines beside the log: of commands, of the interpreter, of other libraries


def is_journal(stderr: Stderr) -> None:
    """Have the journal read stderr, and nothing else."""
    stderr.monkeypatch.setattr(sys, "stderr", stderr.stream)
    stderr.monkeypatch.setenv("JOURNAL_STREAM", stderr.name)


def test_every_line_on_stderr_is_an_error_for_the_journal(stderr: Stderr) -> None:
    is_journal(stderr)
    with logs.journal_levels():
        click.echo("esp-gw: error: no TUN", err=True)
        click.echo("one\ntwo", err=True)
        sys.stderr.write("in ")
        sys.stderr.write("parts\n\n")
        try:
            raise ValueError("<0>forged")
        except ValueError:
            sys.excepthook(*sys.exc_info())
        sys.stderr.write("no end")
    lines = stderr.lines()
    assert lines[:5] == [
        *("<3>esp-gw: error: no TUN", "<3>one", "<3>two", "<3>in parts", "<3>"),
    ]
    assert all(line.startswith("<3>") for line in lines)
    assert "<3>ValueError: <0>forged" in lines
    assert lines[-1] == "<3>no end"
    assert sys.stderr is stderr.stream


def test_the_log_keeps_its_own_levels_beside_them(stderr: Stderr) -> None:
    is_journal(stderr)
    with logs.journal_levels():
        logs.configure("info")
        logger().warning("hot")
        click.echo("broken", err=True)
        logger().info("cold")
    assert stderr.lines() == ["<4>hot", "<3>broken", "<6>cold"]


def test_stdout_has_the_level_of_information_where_the_journal_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "stdout").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stdout", stream)
        with logs.journal_levels():
            click.echo("sa office/out added\nsa office/in added")
            click.echo("not here", err=True)
    assert (tmp_path / "stdout").read_text() == "<6>sa office/out added\n<6>sa office/in added\n"


@pytest.mark.parametrize("named", [None, "", "8:1", "8", "a:b"])
def test_elsewhere_lines_have_no_level(stderr: Stderr, named: str | None) -> None:
    stderr.monkeypatch.setattr(sys, "stderr", stderr.stream)
    if named is not None:
        stderr.monkeypatch.setenv("JOURNAL_STREAM", named)
    before = sys.stdout, sys.stderr
    with logs.journal_levels():
        assert (sys.stdout, sys.stderr) == before
        click.echo("broken", err=True)
    assert stderr.lines() == ["broken"]
