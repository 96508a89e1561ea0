"""The guest's agent: reads commands from a port, runs them one by one, sends their output.

Runs inside as `python -m lab.vm.agent PORT` and ends when the host is gone.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import BinaryIO

from lab.vm.protocol import PAYLOAD_MAX, STATUS, Command, Kind, encode_frame

CANNOT_RUN = 127
"""Exit status of a shell for a command that does not exist."""


def serve(port: BinaryIO) -> None:
    """Run commands until the host closes the port."""
    for line in _lines(port):
        status = _run(port, Command.decode(line))
        os.sync()
        _send(port, Kind.EXIT, STATUS.pack(status))


def _lines(port: BinaryIO) -> Iterator[bytes]:
    # A virtio port returns available bytes, and an empty read (no error) once the host is gone.
    buffer = b""
    while data := port.read(4096):
        *whole, buffer = (buffer + data).split(b"\n")
        yield from whole


def _run(port: BinaryIO, command: Command) -> int:
    try:
        process = subprocess.Popen(
            command.arguments,
            cwd=command.folder,
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        message = f"{error.filename or command.arguments[0]}: {error.strerror}\n"
        _send(port, Kind.STDERR, message.encode())
        return CANNOT_RUN
    with process, selectors.DefaultSelector() as selector:
        assert process.stdout is not None and process.stderr is not None  # noqa: S101 - for types
        for stream, kind in ((process.stdout, Kind.STDOUT), (process.stderr, Kind.STDERR)):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, kind)
        ended = os.pidfd_open(process.pid)
        selector.register(ended, selectors.EVENT_READ)
        try:
            while process.poll() is None:
                for key, _ in selector.select():
                    if key.fd != ended and not _pass_on(port, key.fd, key.data):
                        selector.unregister(key.fileobj)
            # Background processes of the command may hold the pipes open forever: no wait for EOF.
            for stream, kind in ((process.stdout, Kind.STDOUT), (process.stderr, Kind.STDERR)):
                while _pass_on(port, stream.fileno(), kind):
                    pass
        finally:
            os.close(ended)
    # The status that a shell reports for a signal.
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _pass_on(port: BinaryIO, fd: int, kind: Kind) -> bool:
    try:
        data = os.read(fd, PAYLOAD_MAX)
    except BlockingIOError:
        return False
    if data:
        _send(port, kind, data)
    return bool(data)


def _send(port: BinaryIO, kind: Kind, payload: bytes) -> None:
    view = memoryview(encode_frame(kind, payload))
    while view:
        view = view[port.write(view) :]


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with open(sys.argv[1], "r+b", buffering=0) as opened:  # noqa: PTH123 - a device, not a file
        serve(opened)
