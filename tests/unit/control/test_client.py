"""The control client: every failure to get an answer is reported on one clear line."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp_gw.control import client
from esp_gw.control.client import call
from esp_gw.errors import ControlError, EspGwError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@contextlib.contextmanager
def answering(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """A server for one connection, in a thread."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def test_the_request_is_one_line_and_the_answer_may_come_in_pieces(path: Path) -> None:
    seen: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        for byte in b'{"parameters":{"sas":[]}}\n':
            connection.sendall(bytes([byte]))

    with answering(path, behave):
        assert call(path, "ListSas", {"a": 1}) == {"sas": []}
    assert seen == [b'{"method":"io.esp_gw.ListSas","parameters":{"a":1}}\n']


def test_a_missing_socket_is_reported_with_how_to_start_the_daemon(path: Path) -> None:
    with pytest.raises(EspGwError) as caught:
        call(path, "ListSas", {})
    assert str(caught.value) == (
        f"esp-gw is not running (no control socket at {path}); "
        "start it with 'systemctl start esp-gw' or 'esp-gw run'"
    )


def test_the_socket_of_a_dead_daemon_is_reported_the_same_way(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(EspGwError, match=r"not running \(nothing listens at .*esp-gw run"):
        call(path, "ListSas", {})


def test_a_lack_of_permission_is_reported_with_the_group(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(client.socket, "socket", Forbidden)
    with pytest.raises(
        ControlError, match="add yourself to the group esp-gw, or use sudo"
    ) as caught:
        call(path, "ListSas", {})
    assert caught.value.code == "PermissionDenied"


def test_the_error_of_a_server_that_refuses_before_it_reads_is_reported(path: Path) -> None:
    def behave(connection: socket.socket) -> None:
        connection.sendall(
            b'{"error":"io.esp_gw.PermissionDenied","parameters":{"message":"no"}}\n'
        )

    with answering(path, behave), pytest.raises(ControlError, match=r"^no$") as caught:
        # Longer than any socket buffer, so sending fails midway.
        call(path, "AddSa", {"name": "x" * 4_000_000})
    assert caught.value.code == "PermissionDenied"


@pytest.mark.parametrize("sent", [b"", b'{"parameters":{}'])
def test_a_connection_closed_early_is_reported(path: Path, sent: bytes) -> None:
    def behave(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(sent)

    with answering(path, behave), pytest.raises(EspGwError, match="closed the connection without"):
        call(path, "ListSas", {})


def test_a_silent_server_times_out(path: Path) -> None:
    def behave(connection: socket.socket) -> None:
        while connection.recv(65536):
            pass

    with answering(path, behave), pytest.raises(EspGwError, match=r"did not answer within 0\.1 s"):
        call(path, "ListSas", {}, timeout=0.1)


def test_a_connection_waits_while_the_servers_backlog_is_full(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(str(path))
        listener.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                other = others.enter_context(socket.socket(socket.AF_UNIX))
                other.setblocking(False)
                other.connect(str(path))
        with pytest.raises(EspGwError, match=r"did not answer within 0\.3 s"):
            call(path, "ListSas", {}, timeout=0.3)

        def serve() -> None:
            for number in itertools.count():
                connection = others.enter_context(listener.accept()[0])
                if number and connection.recv(65536):
                    connection.sendall(b'{"parameters": {"n": 1}}\n')
                    return

        thread = threading.Timer(0.2, serve)
        thread.start()
        assert call(path, "ListSas", {}) == {"n": 1}
        thread.join()


def test_a_server_that_drips_bytes_gets_no_more_time(path: Path) -> None:
    gone = threading.Event()

    def behave(connection: socket.socket) -> None:
        while not gone.wait(0.01):
            connection.sendall(b" ")

    with answering(path, behave):
        with pytest.raises(EspGwError, match=r"did not answer within 0\.2 s"):
            call(path, "ListSas", {}, timeout=0.2)
        gone.set()


def test_an_endless_answer_is_cut_off(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "MAX_REPLY", 100_000)

    def behave(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"x" * 65536)

    with answering(path, behave), pytest.raises(EspGwError, match="longer than 100000 bytes"):
        call(path, "ListSas", {})


@pytest.mark.parametrize(
    ("name", "says"), [("x" * 200, "too long"), ("file/control.sock", "Not a directory")]
)
def test_an_impossible_path_is_reported(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EspGwError, match=says):
        call(tmp_path / name, "ListSas", {})
