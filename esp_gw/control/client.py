"""A small synchronous client of the control socket, for the CLI."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path

from esp_gw.control.protocol import decode_reply, encode_request, is_continued
from esp_gw.errors import ControlError, EspGwError, NotRunningError

MAX_REPLY = 64 * 1024 * 1024
"""Longest accepted reply in bytes; a peer that sends more is not esp-gw."""


def call(
    path: Path, method: str, parameters: Mapping[str, object], timeout: float = 10.0
) -> dict[str, object]:
    """Send a request to the daemon and return the parameters of its reply.

    `method` is without the interface prefix; `timeout` is in seconds, for the whole call. Raises
    the ControlError of an error reply, EspGwError if there is no reply.
    """
    deadline = time.monotonic() + timeout
    with _told(path, timeout), socket.socket(socket.AF_UNIX) as sock:
        _connect(sock, path, timeout)
        _send(sock, encode_request(method, parameters), deadline)
        line = _Lines(sock).next(deadline)
    return decode_reply(line)


def stream(
    path: Path, method: str, parameters: Mapping[str, object], timeout: float = 10.0
) -> Generator[dict[str, object]]:
    """Send a request and yield the parameters of each of its replies, up to the last one.

    Closing the iterator closes the connection. `timeout` is in seconds, for each reply. Raises as
    `call` does.
    """
    with _told(path, timeout), socket.socket(socket.AF_UNIX) as sock:
        _connect(sock, path, timeout)
        _send(sock, encode_request(method, parameters), time.monotonic() + timeout)
        lines = _Lines(sock)
        is_last = False
        while not is_last:
            line = lines.next(time.monotonic() + timeout)
            is_last = not is_continued(line)
            yield decode_reply(line)


@contextlib.contextmanager
def _told(path: Path, timeout: float) -> Iterator[None]:
    """Turn the errors of a connection into EspGwError."""
    try:
        yield
    except FileNotFoundError:
        raise _not_running(f"no control socket at {path}") from None
    except ConnectionRefusedError:
        raise _not_running(f"nothing listens at {path}") from None
    except PermissionError:
        raise ControlError(
            "PermissionDenied",
            f"no permission to use {path}",
            hint="add yourself to the group esp-gw, or use sudo",
        ) from None
    except (TimeoutError, BlockingIOError):
        raise EspGwError(
            f"esp-gw did not answer within {timeout:g} s",
            hint="see 'journalctl -u esp-gw'",
        ) from None
    except OSError as error:
        raise EspGwError(error.strerror or str(error), where=str(path)) from None


def _connect(sock: socket.socket, path: Path, timeout: float) -> None:
    # In a non-blocking connect, as settimeout() makes it, a full backlog is an error at once.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(timeout))
    sock.connect(os.fspath(path))


def _timeval(seconds: float) -> bytes:
    return struct.pack("@ll", int(seconds), int(seconds % 1 * 1_000_000))


def _send(sock: socket.socket, data: bytes, deadline: float) -> None:
    try:
        sock.settimeout(_remaining(deadline))
        sock.sendall(data)
    except (BrokenPipeError, ConnectionResetError):
        # A server that refuses a request sends the reason before it closes: read the reply.
        return


class _Lines:
    """The lines of a connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def next(self, deadline: float) -> bytes:
        """Return the next line with its end. Raises EspGwError, TimeoutError, OSError."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            self._sock.settimeout(_remaining(deadline))
            try:
                data = self._sock.recv(256 * 1024)
            except ConnectionResetError:
                data = b""
            if not data:
                raise EspGwError(
                    "esp-gw closed the connection without an answer",
                    hint="see 'journalctl -u esp-gw'",
                )
            self._buffer += data
            if len(self._buffer) > MAX_REPLY:
                raise EspGwError(f"the answer is longer than {MAX_REPLY} bytes")
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _not_running(why: str) -> NotRunningError:
    return NotRunningError(
        f"esp-gw is not running ({why})",
        hint="start it with 'systemctl start esp-gw' or 'esp-gw run'",
    )
