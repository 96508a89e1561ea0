"""Several replies to one request: the server sends each, and the client yields each in time."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp_gw.control import server as control_server
from esp_gw.control.client import stream
from esp_gw.control.protocol import PREFIX, encode_request
from esp_gw.control.server import Caller, ControlServer, Last
from esp_gw.errors import ControlError, EspGwError, NotRunningError
from tests.support.fakes import until


class Counting:
    """A stream of numbers up to a last one; without one it waits after the first."""

    def __init__(self, last: int | None, size: int = 0) -> None:
        self._number = 0
        self._last = last
        self._size = size
        self.is_closed = False

    async def next(self) -> dict[str, object] | Last:
        self._number += 1
        if self._last is None and self._number > 1 and not self._size:
            await asyncio.Event().wait()
        reply: dict[str, object] = {"number": self._number, "filler": "x" * self._size}
        return Last(reply) if self._number == self._last else reply

    def close(self) -> None:
        self.is_closed = True


@contextlib.asynccontextmanager
async def serving(path: Path, counting: Counting):  # type: ignore[no-untyped-def]
    async def count(_parameters: dict[str, object], _caller: Caller) -> Counting:
        return counting

    server = ControlServer(path, {PREFIX + "Count": count})
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


def numbers(path: Path) -> list[object]:
    return [reply["number"] for reply in stream(path, "Count", {})]


async def test_a_stream_whose_end_fails_is_waited_for_no_longer(path: Path) -> None:
    ended: list[str] = []

    class Broken(Counting):
        async def next(self) -> dict[str, object] | Last:
            try:
                return await super().next()
            except asyncio.CancelledError:
                ended.append("next")
                raise

        def close(self) -> None:
            super().close()
            raise RuntimeError

    async with serving(path, Broken(None)):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(encode_request("Count", {}))
        await reader.readline()
        writer.close()
        await until(lambda: ended)


async def test_the_last_reply_ends_the_stream_at_both_ends(path: Path) -> None:
    counting = Counting(3)
    async with serving(path, counting):
        assert await asyncio.to_thread(numbers, path) == [1, 2, 3]
        await until(lambda: counting.is_closed)


async def test_a_client_that_stops_reading_ends_the_stream(path: Path) -> None:
    counting = Counting(None)

    def first() -> object:
        with contextlib.closing(stream(path, "Count", {})) as replies:
            return next(replies)["number"]

    async with serving(path, counting):
        assert await asyncio.to_thread(first) == 1
        await until(lambda: counting.is_closed)


async def test_a_client_that_takes_no_reply_loses_the_stream(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "REPLY_TIMEOUT", 0.1)
    counting = Counting(None, size=100_000)
    async with serving(path, counting):
        reader, writer = await asyncio.open_unix_connection(path, limit=1)
        writer.write(b'{"method":"io.esp_gw.Count"}\n')
        await until(lambda: counting.is_closed)
        writer.transport.abort()
        assert reader is not None


@contextlib.contextmanager
def answering(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join()


def test_replies_may_come_in_one_piece_or_byte_by_byte(path: Path) -> None:
    text = b'{"continues":true,"parameters":{"number":1}}\n{"parameters":{"number":2}}\n'
    with answering(path, lambda connection: connection.sendall(text)):
        assert numbers(path) == [1, 2]
    path.unlink()

    def drip(connection: socket.socket) -> None:
        for byte in text:
            connection.sendall(bytes([byte]))

    with answering(path, drip):
        assert numbers(path) == [1, 2]


def test_an_error_ends_a_stream(path: Path) -> None:
    text = (
        b'{"continues":true,"parameters":{"number":1}}\n'
        b'{"error":"io.esp_gw.Refused","parameters":{"message":"no"}}\n'
    )
    with answering(path, lambda connection: connection.sendall(text)):
        replies = stream(path, "Count", {})
        assert next(replies) == {"number": 1}
        with pytest.raises(ControlError, match="no"):
            next(replies)


@pytest.mark.parametrize("text", [b"", b'{"continues":true,"parameters":{"number":1}}\n', b"half"])
def test_a_stream_that_breaks_off_is_an_error(path: Path, text: bytes) -> None:
    with (
        answering(path, lambda connection: connection.sendall(text)),
        pytest.raises(EspGwError, match="closed the connection"),
    ):
        numbers(path)


def test_no_gateway_is_told_at_the_first_reply(path: Path) -> None:
    with pytest.raises(NotRunningError):
        next(stream(path, "Count", {}))
