"""The program of `gateway.hook`: when it runs, with what, and what its failures do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from esp_gw.daemon import hooks as hooks_module
from esp_gw.daemon.hooks import Hooks
from esp_gw.health.news import Event
from esp_gw.model import TunnelState

UP, QUIET, DOWN, FAILING = (
    *(TunnelState.UP, TunnelState.QUIET, TunnelState.DOWN, TunnelState.FAILING),
)
PRINT = """#!/bin/sh
env | grep ^ESP_GW | sort | tr '\\n' ' ' >> "$1"
echo >> "$1"
"""


def event(state: TunnelState, before: TunnelState = QUIET, tunnel: str = "office") -> Event:
    return Event(1, 0.0, tunnel, state, before, "silence; 'rm -rf' $(x)", "")


@pytest.fixture
def told(tmp_path: Path) -> Path:
    return tmp_path / "told"


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "program"
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    return write


@asynccontextmanager
async def running(command: Sequence[str]) -> AsyncIterator[Hooks]:
    """Hooks whose steps go on until the end of the context."""
    hooks = Hooks(lambda: command)

    async def repeat() -> None:
        while True:
            await hooks.step()

    task = asyncio.create_task(repeat())
    try:
        yield hooks
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        hooks.stop()


def logged(caplog: pytest.LogCaptureFixture) -> str:
    """Return the lines of the log with their fields."""
    return "\n".join(f"{each.message} {vars(each).get('fields')}" for each in caplog.records)


def read(path: Path) -> list[str]:
    """Return the lines of a file, none of one that is not there."""
    return path.read_text().splitlines() if path.exists() else []


async def lines(path: Path, count: int) -> list[str]:
    """Wait until a file has as many lines."""
    for _ in range(600):
        if len(read(path)) >= count:
            break
        await asyncio.sleep(0.05)
    return read(path)


async def test_a_program_is_run_with_its_arguments_and_the_change(
    program: Callable[[str], str], told: Path
) -> None:
    async with running([program(PRINT), str(told)]) as hooks:
        hooks.tell(event(DOWN, UP))
        (line,) = await lines(told, 1)
    assert line == (
        "ESP_GW_BEFORE=up ESP_GW_CAUSE=silence; 'rm -rf' $(x) ESP_GW_STATE=down "
        "ESP_GW_TUNNEL=office "
    )


async def test_it_has_nothing_of_the_gateways_environment(
    tmp_path: Path, told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "SSH_CONNECTION"):
        monkeypatch.setenv(name, "x")
    script = (
        "import json, os, sys; json.dump([dict(os.environ), os.getcwd(), os.getsid(0) == "
        "os.getpid(), os.listdir('/proc/self/fd')], open(sys.argv[1], 'w'))"
    )
    secret = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(secret, True)
    async with running(["/usr/bin/python3", "-I", "-S", "-c", script, str(told)]) as hooks:
        hooks.tell(event(UP))
        (text,) = await lines(told, 1)
    os.close(secret)
    environment, folder, leads, files = json.loads(text)
    environment.pop("LC_CTYPE", None)
    assert set(environment) == {
        *("PATH", "LANG", "ESP_GW_TUNNEL", "ESP_GW_STATE", "ESP_GW_BEFORE", "ESP_GW_CAUSE"),
    }
    assert (folder, leads) == ("/", True)
    # The standard streams, its output and the listing.
    assert len(files) <= 5


@pytest.mark.parametrize(("state", "before"), [(QUIET, UP), (QUIET, DOWN), (DOWN, DOWN), (UP, UP)])
async def test_other_changes_run_nothing(
    program: Callable[[str], str], told: Path, state: TunnelState, before: TunnelState
) -> None:
    async with running([program(PRINT), str(told)]) as hooks:
        hooks.tell(event(state, before))
        hooks.tell(event(FAILING, UP, "marker"))
        (line,) = await lines(told, 1)
    assert "ESP_GW_TUNNEL=marker" in line


async def test_without_a_program_nothing_is_kept() -> None:
    async with running([]) as hooks:
        hooks.tell(event(DOWN, UP))
        await asyncio.sleep(0)
        assert hooks._waiting == {}


async def test_of_changes_that_wait_the_last_one_of_a_tunnel_counts(
    program: Callable[[str], str], told: Path
) -> None:
    hooks = Hooks(lambda: [program(PRINT), str(told)])
    for each in (
        *(event(DOWN, UP), event(FAILING, DOWN)),
        *(event(DOWN, UP, "flapped"), event(UP, DOWN, "flapped")),
        *(event(UP, QUIET, "attic"),),
    ):
        hooks.tell(each)
    for _ in range(2):
        await hooks.step()
    hooks.stop()
    first, second = read(told)
    assert "ESP_GW_BEFORE=up" in first
    assert "ESP_GW_STATE=failing ESP_GW_TUNNEL=office" in first
    assert "ESP_GW_TUNNEL=attic" in second


async def test_no_more_tunnels_wait_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(hooks_module, "MAX_WAITING", 2)
    hooks = Hooks(lambda: ["/bin/true"])
    for name in ("a", "b", "c"):
        hooks.tell(event(UP, QUIET, name))
    assert list(hooks._waiting) == ["b", "c"]
    assert "a hook was left out" in logged(caplog)
    hooks.stop()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("#!/bin/sh\nexit 3\n", "exit status 3"),
        ("#!/bin/sh\nkill -9 $$\n", "signal 9"),
        ("#!/bin/none\n", "No such file or directory"),
        ("no program at all", "Exec format error"),
    ],
)
async def test_a_failure_is_a_line_in_the_log_and_the_next_one_runs(
    program: Callable[[str], str], caplog: pytest.LogCaptureFixture, text: str, says: str
) -> None:
    async with running([program(text)]) as hooks:
        for number in (1, 2):
            hooks.tell(event(UP, QUIET, f"t{number}"))
            for _ in range(600):
                if f"t{number}" in logged(caplog):
                    break
                await asyncio.sleep(0.05)
    assert logged(caplog).count("a hook failed") == 2
    assert says in logged(caplog)


async def test_one_that_hangs_is_ended_with_what_it_has_started(
    program: Callable[[str], str],
    told: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(hooks_module, "TIMEOUT", 0.5)
    hangs = program(f"#!/bin/sh\nsleep 1000 &\necho $! > {told}\nwait\n")
    hooks = Hooks(lambda: [hangs])
    hooks.tell(event(UP))
    await hooks.step()
    hooks.stop()
    assert "not done within 0.5 s" in logged(caplog)
    await gone(int(read(told)[0]))


async def test_what_it_leaves_in_the_background_ends_with_it(
    program: Callable[[str], str], told: Path
) -> None:
    leaves = program(f"#!/bin/sh\nsleep 1000 &\necho $! > {told}\n")
    hooks = Hooks(lambda: [leaves])
    hooks.tell(event(UP))
    await hooks.step()
    hooks.stop()
    await gone(int(read(told)[0]))


def runs(pid: int) -> bool:
    """Return True for a process that has not ended."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def gone(pid: int) -> None:
    """Wait until a process has ended."""
    for _ in range(200):
        if not runs(pid):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{pid} goes on")


async def test_the_end_of_the_gateway_ends_one_that_runs(
    program: Callable[[str], str], told: Path
) -> None:
    hangs = program(f"#!/bin/sh\necho $$ > {told}\nexec sleep 1000\n")
    async with running([hangs]) as hooks:
        hooks.tell(event(UP))
        (pid,) = await lines(told, 1)
    await gone(int(pid))


async def test_the_loop_goes_on_while_one_runs(program: Callable[[str], str], told: Path) -> None:
    slow = program(f"#!/bin/sh\necho > {told}\nsleep 1000\n")
    async with running([slow]) as hooks:
        hooks.tell(event(UP))
        await lines(told, 1)
        # A blocked loop would not come here before the end of the program.
        hooks.tell(event(DOWN, UP))
        assert list(hooks._waiting) == ["office"]


async def test_a_program_that_a_reload_took_away_is_not_run(told: Path) -> None:
    command = ["/bin/cp", "/etc/hostname", str(told)]
    hooks = Hooks(lambda: command)
    hooks.tell(event(UP))
    command.clear()
    await hooks.step()
    hooks.stop()
    assert hooks._waiting == {}
    assert read(told) == []


async def test_a_machine_without_threads_or_descriptors_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_pid: int) -> int:
        raise OSError(24, "Too many open files")

    hooks = Hooks(lambda: ["/bin/sleep", "1000"])
    monkeypatch.setattr(os, "pidfd_open", refuse)
    hooks.tell(event(UP))
    await hooks.step()
    assert "Too many open files" in logged(caplog)
    hooks.stop()
    # An executor that takes no more work.
    hooks.tell(event(DOWN, UP))
    await hooks.step()
    assert logged(caplog).count("a hook failed") == 2
