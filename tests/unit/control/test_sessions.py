"""Connections that stay: owners' sessions, and replies without an end, on a real socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from esp_gw.control import server as server_module
from esp_gw.control.places import MAX_CONNECTIONS
from esp_gw.control.protocol import PREFIX, encode_request
from esp_gw.control.server import Caller, ControlServer, Reply
from esp_gw.control.sessions import Link, Sessions
from tests.support.fakes import until

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Numbers:
    """A stream of numbers, as fast as the client takes them, up to a last one."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.sent = 0
        self.is_closed = False

    async def next(self) -> dict[str, object]:
        if self.sent == self.last:
            await asyncio.Event().wait()
        self.sent += 1
        return {"number": self.sent, "filling": "x" * 1000}

    def close(self) -> None:
        self.is_closed = True


class Door:
    """A server with an owner's methods, and its clients."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sessions = Sessions()
        self.streams: list[Numbers] = []
        self.server = ControlServer(
            path,
            {
                PREFIX + "Open": self.open,
                PREFIX + "Watch": self.watch,
                PREFIX + "IsOpen": self.is_open,
            },
            on_end=self.sessions.ended,
        )
        self.clients: list[Stream] = []

    async def open(self, parameters: dict[str, object], caller: Caller) -> Reply:
        assert caller.link is not None
        self.sessions.open(str(parameters["owner"]), caller.link)
        return {}

    async def is_open(self, parameters: dict[str, object], caller: Caller) -> Reply:
        return {"is": self.sessions.is_open(str(parameters["owner"]), caller.link)}

    async def watch(self, parameters: dict[str, object], caller: Caller) -> Reply:
        assert caller.link is not None
        self.sessions.watch("ike", caller.link)
        self.streams.append(Numbers(int(str(parameters["last"]))))
        return self.streams[-1]

    async def connect(self) -> Stream:
        stream = await asyncio.open_unix_connection(self.path)
        self.clients.append(stream)
        return stream


@pytest.fixture
async def door(tmp_path: Path) -> object:
    door = Door(tmp_path / "control.sock")
    await door.server.start()
    yield door
    for _, writer in door.clients:
        writer.transport.abort()
    await door.server.close()


async def ask(stream: Stream, method: str, **parameters: object) -> dict[str, object]:
    stream[1].write(encode_request(method, parameters))
    return await answer(stream)


async def answer(stream: Stream) -> dict[str, object]:
    found: dict[str, object] = json.loads(await asyncio.wait_for(stream[0].readline(), 10))
    return found


async def test_a_session_outlasts_the_time_for_a_request(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.1)
    session, other = await door.connect(), await door.connect()
    await ask(session, "Open", owner="ike")
    assert await other[0].read() == b""
    # In the middle of a request, too.
    request = encode_request("IsOpen", {"owner": "ike"})
    session[1].write(request[:10])
    await asyncio.sleep(0.3)
    session[1].write(request[10:])
    assert await answer(session) == {"parameters": {"is": True}}


async def test_no_crowd_takes_the_place_of_a_session_or_a_watch(door: Door) -> None:
    session, watch = await door.connect(), await door.connect()
    await ask(session, "Open", owner="ike")
    watch[1].write(encode_request("Watch", {"last": 1}))
    assert (await answer(watch))["continues"] is True
    crowd = [await door.connect() for _ in range(2 * MAX_CONNECTIONS)]
    # The first ones have gone.
    assert json.loads(await crowd[0][0].readline())["error"] == PREFIX + "Refused"
    assert await ask(session, "IsOpen", owner="ike") == {"parameters": {"is": True}}
    door.streams[0].last = 2
    assert not watch[0].at_eof()
    # It took none of the places either.
    assert len(door.server._places._taken) == MAX_CONNECTIONS


async def test_a_newer_session_ends_the_older_and_leaves_its_own_watch(door: Door) -> None:
    former, watch, newer = await door.connect(), await door.connect(), await door.connect()
    await ask(former, "Open", owner="ike")
    watch[1].write(encode_request("Watch", {"last": 0}))
    await until(lambda: door.streams)
    await ask(newer, "Open", owner="ike")
    assert (await answer(former))["error"] == PREFIX + "Refused"
    assert await former[0].read() == b""
    assert await ask(newer, "IsOpen", owner="ike") == {"parameters": {"is": True}}
    assert not door.streams[0].is_closed
    # Another owner's is another one.
    other = await door.connect()
    await ask(other, "Open", owner="another")
    assert await ask(newer, "IsOpen", owner="ike") == {"parameters": {"is": True}}
    newer[1].transport.abort()
    await until(lambda: "ike" not in door.sessions._open)


async def test_a_watch_ends_with_its_client_or_with_anything_that_it_says(door: Door) -> None:
    for number, end in enumerate((b"", b"{", encode_request("IsOpen", {"owner": "ike"}))):
        watch = await door.connect()
        watch[1].write(encode_request("Watch", {"last": 1}))
        assert (await answer(watch))["parameters"]
        if end:
            watch[1].write(end)
        else:
            watch[1].close()
        await until(lambda number=number: door.streams[number].is_closed)
        if end:
            assert await watch[0].read() == b""
    await until(lambda: not door.server._connections)


async def test_a_client_that_reads_no_events_holds_up_nobody(door: Door) -> None:
    watch, other = await door.connect(), await door.connect()
    watch[0]._limit = 1  # type: ignore[attr-defined]
    watch[1].write(encode_request("Watch", {"last": 1_000_000}))
    await until(lambda: door.streams and door.streams[0].sent > 100)
    assert await ask(other, "IsOpen", owner="ike") == {"parameters": {"is": False}}
    sent = door.streams[0].sent
    await asyncio.sleep(0.2)
    assert door.streams[0].sent <= sent + 1000


class FakeLink:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.log: list[str] = []

    def keep(self) -> None:
        self.log.append("kept")

    def end(self, why: str) -> None:
        self.log.append("ended")


def test_a_session_of_another_process_ends_the_watch_of_the_former_one() -> None:
    sessions = Sessions()
    first, watch, second = FakeLink(1), FakeLink(1), FakeLink(2)
    sessions.open("ike", first)
    sessions.watch("ike", watch)
    sessions.open("ike", first)
    assert (first.log, watch.log) == (["kept", "kept"], ["kept"])
    sessions.open("ike", second)
    assert first.log[-1] == watch.log[-1] == "ended"
    late: Link = first
    sessions.ended(late)
    assert sessions.is_open("ike", second)
    assert not sessions.is_open("ike", None)
