"""`monitor` and `status --watch`: drawn on a terminal until a key, line by line in a pipe."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from esp_gw.cli import monitor as monitor_module
from esp_gw.cli import watch as watch_module
from esp_gw.cli.main import main
from esp_gw.cli.watch import changes
from tests.support.canned import REPLIES, Gateway
from tests.support.commands import Capture

STATUS = REPLIES["GetStatus"]
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?25h\x1b[?1049l"


class Terminal:
    """A command on a terminal of 80 columns and 24 lines."""

    def __init__(self, *words: str, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "esp_gw.cli.main", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm", **environment},
            start_new_session=True,
        )
        self.seen = ""

    def read_until(self, text: str) -> None:
        """Read what is drawn until it has a text."""
        while text not in self.seen:
            assert select.select([self._ours], [], [], 30)[0], self.seen
            self.seen += os.read(self._ours, 65536).decode()

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def end(self) -> int:
        """Return the exit status; the terminal is as before."""
        status = self.process.wait(30)
        while select.select([self._ours], [], [], 0)[0]:
            self.seen += os.read(self._ours, 65536).decode()
        assert termios.tcgetattr(self._theirs) == self.before
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


@pytest.fixture
def on_a_terminal(gateway: Gateway) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*words: str, **environment: str) -> Terminal:
        opened.append(Terminal(*words, **environment))
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@pytest.mark.parametrize(
    ("words", "shown"), [(("monitor",), "office"), (("status", "--watch"), "engine: python")]
)
def test_q_ends_a_display_and_leaves_the_terminal_as_it_was(
    on_a_terminal: Callable[..., Terminal], words: tuple[str, ...], shown: str
) -> None:
    terminal = on_a_terminal(*words)
    terminal.read_until(ENTER)
    terminal.read_until(shown)
    terminal.type("q")
    assert terminal.end() == 0
    assert LEAVE in terminal.seen


@pytest.mark.parametrize("words", [("monitor",), ("status", "--watch")])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_the_terminal_as_it_was(
    on_a_terminal: Callable[..., Terminal], words: tuple[str, ...], number: int, status: int
) -> None:
    terminal = on_a_terminal(*words)
    terminal.read_until("office" if words == ("monitor",) else "engine: python")
    terminal.process.send_signal(number)
    assert terminal.end() == status
    assert LEAVE in terminal.seen


def test_a_key_sorts_at_once(on_a_terminal: Callable[..., Terminal]) -> None:
    terminal = on_a_terminal("monitor")
    terminal.read_until("by name")
    terminal.type("o")
    terminal.read_until("by out")
    terminal.type("\x1b[Bx")
    terminal.type("q")
    assert terminal.end() == 0


def test_a_gateway_that_ends_is_waited_for(
    on_a_terminal: Callable[..., Terminal], gateway: Gateway
) -> None:
    terminal = on_a_terminal("monitor")
    terminal.read_until("office")
    moved = gateway.path.with_suffix(".away")
    gateway.path.rename(moved)
    terminal.read_until("esp-gw is not running")
    moved.rename(gateway.path)
    terminal.seen = ""
    terminal.read_until("office")
    terminal.type("q")
    assert terminal.end() == 0


@pytest.mark.parametrize("words", [("monitor",), ("status", "--watch")])
def test_without_a_gateway_it_is_an_error_at_the_start(
    tmp_path: Any, on_a_terminal: Callable[..., Terminal], words: tuple[str, ...]
) -> None:
    terminal = on_a_terminal("--socket", str(tmp_path / "none"), *words)
    assert terminal.end() == 3
    assert ENTER not in terminal.seen
    assert "esp-gw is not running" in terminal.seen


def test_what_is_wrong_is_shown_also_where_there_is_no_room_for_all(
    on_a_terminal: Callable[..., Terminal], gateway: Gateway
) -> None:
    warnings = [f"fault {number}" for number in range(10)]
    gateway.replies["GetStatus"] = STATUS | {"warnings": warnings}
    terminal = on_a_terminal("status", "--watch")
    terminal.read_until("fault 9")
    terminal.type("q")
    assert terminal.end() == 0


def test_a_dumb_terminal_gets_lines(on_a_terminal: Callable[..., Terminal]) -> None:
    terminal = on_a_terminal("monitor", TERM="dumb")
    terminal.read_until("office")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert "\x1b" not in terminal.seen


def stop_after(
    monkeypatch: pytest.MonkeyPatch, module: Any, acts: list[Callable[[], None]]
) -> None:
    """Let each pause of a command do the next of `acts`, and the last one interrupt it."""
    waiting = list(acts)

    def pause(_seconds: float) -> None:
        if not waiting:
            raise KeyboardInterrupt
        waiting.pop(0)()

    monkeypatch.setattr(module.time, "sleep", pause)


def grown(gateway: Gateway) -> None:
    listed: Any = REPLIES["ListTunnels"]["tunnels"]
    gateway.replies["ListTunnels"] = {"tunnels": [listed[0] | {"bytes_out": 10**9}]}


def test_monitor_writes_a_document_for_each_look_but_the_first(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, monitor_module, [lambda: grown(gateway), lambda: None])
    assert main(["monitor", "--json"]) == 130
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert set(first) == {"time", "tunnels"}
    assert set(first["tunnels"][0]) == {
        *("name", "state", "bits_out", "bits_in", "packets_out", "packets_in", "drops"),
    }
    assert first["tunnels"][0]["bits_out"] > 0
    assert second["tunnels"][0]["bits_out"] == 0


def test_monitor_writes_a_line_for_each_tunnel_into_a_pipe(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, monitor_module, [lambda: grown(gateway)])
    assert main(["monitor"]) == 130
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[1:3] == ["office", "up"]


def test_monitor_ends_with_the_gateway(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, monitor_module, [gateway.path.unlink])
    assert main(["monitor", "--json"]) == 3
    assert "esp-gw is not running" in capsys.readouterr().err


def status(**fields: object) -> dict[str, Any]:
    return STATUS | {"warnings": []} | fields


WELL = {"up": 1, "quiet": 0, "down": 0, "failing": 0}
DOWN = {"up": 0, "quiet": 0, "down": 1, "failing": 0}


@pytest.mark.parametrize(
    ("before", "now", "lines"),
    [
        (None, status(states=WELL), ["esp-gw 0.1.0 runs, pid 7", "tunnels: 1 up"]),
        (status(states=WELL), status(states=WELL, uptime_s=9.0), []),
        (status(states=WELL), status(states=DOWN), ["tunnels: 1 down"]),
        (status(states=WELL), None, ["esp-gw is gone"]),
        (None, None, []),
        (
            status(states=WELL, warnings=["a", "b"]),
            status(states=WELL, warnings=["b", "c"]),
            ["warning: c", "no longer: a"],
        ),
        (
            status(states=WELL, warnings=["a"]),
            status(states=WELL, pid=8, warnings=["a"]),
            ["esp-gw 0.1.0 runs, pid 8", "tunnels: 1 up", "warning: a"],
        ),
    ],
)
def test_a_change_is_a_line(before: Any, now: Any, lines: list[str]) -> None:
    assert list(changes(before, now, "esp-gw is gone")) == lines


def test_watch_writes_changes_into_a_pipe_and_waits_for_the_gateway(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = gateway.path.with_suffix(".away")

    def change() -> None:
        gateway.replies["GetStatus"] = status(states=DOWN)

    acts = [
        lambda: None,
        change,
        lambda: gateway.path.rename(moved) and None,
        lambda: moved.rename(gateway.path) and None,
    ]
    gateway.replies["GetStatus"] = status(states=WELL)
    stop_after(monkeypatch, watch_module, acts)
    assert main(["status", "--watch"]) == 130
    lines = [line[20:] for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["esp-gw 0.1.0 runs, pid 7", "tunnels: 1 up", "tunnels: 1 down"]
    assert lines[3].startswith("esp-gw is not running (no control socket at")
    assert lines[4:] == ["esp-gw 0.1.0 runs, pid 7", "tunnels: 1 down"]


def test_watch_writes_a_document_for_each_change(
    gateway: Gateway, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick() -> None:
        gateway.replies["GetStatus"] = status(states=WELL, uptime_s=8.0)

    def change() -> None:
        gateway.replies["GetStatus"] = status(states=DOWN)

    gateway.replies["GetStatus"] = status(states=WELL)
    stop_after(monkeypatch, watch_module, [tick, change, gateway.path.unlink])
    assert main(["status", "--watch", "--json"]) == 130
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert documents == [status(states=WELL), status(states=DOWN), None]


def test_a_reader_that_goes_away_ends_it(gateway: Gateway) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "esp_gw.cli.main", "monitor", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["tunnels"]
        process.stdout.close()
        assert process.wait(30) == 1
        assert process.stderr is not None
        assert process.stderr.read() == ""
