"""Output of the commands on a terminal of 80 columns, into a pipe, and on a full device."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import LEDGER_NAME, Ledger
from tests.support.canned import REPLIES, Gateway

LONG = "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff"
PREFIXES = [f"2001:db8:aaaa:bbbb:cccc:dddd:{number:x}:0/112" for number in range(0x1000, 0x1006)]
DROPS = {"auth-failed": 1234567, "replay-old": 42, "selector-mismatch": 17, "too-big": 3}
ASKING = [
    *(("status",), ("stats",), ("log",), ("reload",)),
    *(("tunnel", "list"), ("sa", "list"), ("sa", "show", "office/out"), ("policy", "list")),
    *(("tunnel", "show", "office"), ("explain", "10.1.0.5", "10.2.0.7"), ("explain", "--drops")),
]
OTHERS = [("ledger", "show", "--state-dir", "STATE"), ("doctor", "--config", "STATE/none")]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    Ledger.create(tmp_path / LEDGER_NAME, machine_identity())
    return tmp_path


@pytest.fixture
def wide(gateway: Gateway) -> Gateway:
    """A gateway whose addresses, names and numbers are as long as can be."""

    def stretched(value: Any) -> Any:
        if isinstance(value, list):
            return [stretched(each) for each in value]
        if not isinstance(value, dict):
            return value
        found = {key: stretched(each) for key, each in value.items()}
        known = {
            "local": LONG if "state" in value else PREFIXES[0],
            "remote": LONG if "state" in value else PREFIXES[1],
            "local_ts": PREFIXES[:3],
            "remote_ts": PREFIXES[3:],
            "bytes_out": 1023 << 30,
            "drops": DROPS if isinstance(value.get("drops"), dict) else value.get("drops"),
        }
        return found | {key: known[key] for key in known if key in value}

    for method, reply in REPLIES.items():
        gateway.replies[method] = stretched(reply)
    return gateway


def command(words: Sequence[str], state: Path) -> list[str]:
    named = [word.replace("STATE", str(state)) for word in words]
    return [sys.executable, "-m", "esp_gw.cli.main", *named]


def on_a_terminal(words: Sequence[str], state: Path, **environment: str) -> str:
    """Run a command on a terminal of 80 columns; return what it printed."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "80", **environment}
    with subprocess.Popen(command(words, state), stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        printed = b""
        while select.select([ours], [], [], 30)[0]:
            try:
                printed += os.read(ours, 65536)
            except OSError:  # EIO: nobody has the terminal any more
                break
        assert process.wait() in (0, 1)
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("words", [*ASKING, *OTHERS], ids=" ".join)
def test_nothing_is_folded_and_no_address_or_number_divided_at_80_columns(
    wide: Gateway, state: Path, words: tuple[str, ...]
) -> None:
    text = on_a_terminal(words, state)
    folded = [line for line in text.splitlines() if len(line) > 80]
    # A path that is longer has no place to be divided.
    assert [line for line in folded if "/" not in line] == []
    found = set(re.findall(r"2001:[0-9a-f:]*[0-9a-f](?:/\d+)?", text))
    assert found <= {LONG, *PREFIXES, "2001:db8::1", "2001:db8::2"}
    if words[-1] == "list" and words[0] != "policy":
        assert LONG in found
        assert "auth-failed 1234567" in text


@pytest.mark.parametrize("words", [("sa", "list"), ("tunnel", "list"), ("policy", "list")])
def test_a_pipe_gets_a_line_for_each_row(
    wide: Gateway, state: Path, words: tuple[str, ...]
) -> None:
    done = subprocess.run(command(words, state), capture_output=True, text=True, check=True)
    rows = {"sa": 2, "tunnel": 1, "policy": 3}[words[0]]
    table = [line for line in done.stdout.splitlines() if not line.startswith("flows of")]
    assert len(table) == 1 + rows


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_gets_no_escape_codes(
    gateway: Gateway, state: Path, environment: dict[str, str]
) -> None:
    for words in (("tunnel", "list"), ("status",), ("--help",)):
        assert "\x1b" not in on_a_terminal(words, state, **environment)


@pytest.mark.parametrize(
    "words",
    [*ASKING, *OTHERS, ("sa", "list", "--json"), ("--help",), ("sa", "--help"), ("--version",)],
    ids=" ".join,
)
def test_a_full_device_is_one_line_and_no_success(
    gateway: Gateway, state: Path, words: tuple[str, ...]
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command(words, state), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "esp-gw: error: stdout: No space left on device\n"


@pytest.mark.parametrize("words", [*ASKING, ("config", "reference"), ("--help",), ("monitor",)])
def test_a_closed_stdout_is_one_line_and_no_success(
    gateway: Gateway, state: Path, words: tuple[str, ...]
) -> None:
    closed = ("sh", "-c", 'exec "$@" >&-', "sh", *command(words, state))
    done = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (
        1, "esp-gw: error: stdout: Bad file descriptor\n",
    )  # fmt: skip
