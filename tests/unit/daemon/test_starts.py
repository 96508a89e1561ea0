"""Starts that fail in a row wait longer and longer, over restarts of the service alone."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.daemon import starts as starts_module
from esp_gw.daemon.starts import LONGEST_WAIT, STARTS_NAME, Starts, may_start
from esp_gw.daemon.systemd import Notifier


def environment(folder: Path) -> dict[str, str]:
    return {"RUNTIME_DIRECTORY": f"{folder}:/elsewhere", "NOTIFY_SOCKET": f"{folder}/notify"}


def begin(folder: Path) -> int:
    """Begin a start in a new process of the service, as far as it can tell."""
    return Starts.from_environment(environment(folder)).begin()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


def test_the_first_tries_do_not_wait_and_the_others_longer_and_longer(tmp_path: Path) -> None:
    waits = [begin(tmp_path) for _ in range(40)]
    assert waits[:8] == [0, 0, 2, 4, 8, 16, 32, LONGEST_WAIT]
    assert set(waits[8:]) == {LONGEST_WAIT}


def test_a_start_that_succeeded_begins_anew(tmp_path: Path) -> None:
    for _ in range(5):
        begin(tmp_path)
    Starts.from_environment(environment(tmp_path)).forget()
    assert [begin(tmp_path) for _ in range(3)] == [0, 0, 2]


def test_a_new_runtime_directory_begins_anew(tmp_path: Path) -> None:
    for _ in range(5):
        begin(tmp_path)
    (tmp_path / STARTS_NAME).unlink()
    assert begin(tmp_path) == 0


@pytest.mark.parametrize("missing", ["RUNTIME_DIRECTORY", "NOTIFY_SOCKET"])
def test_without_a_service_manager_nothing_waits_and_nothing_is_written(
    tmp_path: Path, missing: str
) -> None:
    environ = environment(tmp_path)
    del environ[missing]
    for _ in range(5):
        starts = Starts.from_environment(environ)
        assert starts.begin() == 0
        starts.failed("a reason")
        starts.forget()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"many\n", b"\xff\xfe", b"5 6\n"])
def test_a_damaged_count_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STARTS_NAME).write_bytes(content)
    assert begin(tmp_path) == 0


def test_a_directory_that_can_not_be_written_waits_for_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "missing"
    assert [begin(folder) for _ in range(5)] == [0] * 5


def test_the_wait_tells_the_reason_of_the_last_failure(
    tmp_path: Path, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[set[int], float]] = []
    monkeypatch.setattr(
        starts_module.signal,
        "sigtimedwait",
        lambda signals, seconds: waited.append((set(signals), seconds)),
    )
    environ = environment(tmp_path)
    for number in range(1, 4):
        starts = Starts.from_environment(environ)
        assert may_start(starts, Notifier.from_environment(environ))
        starts.failed(f"port 4500 is taken, {number}")
    assert waited == [({signal.SIGTERM, signal.SIGINT, signal.SIGHUP}, 2)]
    assert manager.recv(4096).decode().split("\n")[0] == (
        "STATUS=trying again within 2 s: port 4500 is taken, 2"
    )
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


@pytest.mark.parametrize(
    ("number", "starts_now"),
    [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGHUP, True)],
)
def test_a_signal_ends_the_wait(tmp_path: Path, number: signal.Signals, starts_now: bool) -> None:
    for _ in range(7):
        begin(tmp_path)
    starts = Starts.from_environment(environment(tmp_path))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        # To this thread: the test's process may have others that would take it.
        signal.pthread_kill(threading.get_ident(), number)
        assert may_start(starts, Notifier(None)) is starts_now
        assert signal.sigpending() == set()
        assert number in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # A person who stops the gateway, or restarts it, need not wait.
    assert (tmp_path / STARTS_NAME).exists() is starts_now


def test_the_count_is_private(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        begin(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / STARTS_NAME).stat().st_mode & 0o777 == 0o600
