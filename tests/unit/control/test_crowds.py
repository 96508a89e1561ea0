"""The control server among crowds of idle, slow and busy clients of several users."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from esp_gw.control import server as server_module
from esp_gw.control.places import MAX_CONNECTIONS, MAX_OF_A_USER
from esp_gw.control.protocol import PREFIX, encode_request
from esp_gw.control.server import Caller, ControlServer, Handler
from tests.support.fakes import captured_logs, until

ROOT, ANN, BOB = 0, 1000, 1001
BIG = "x" * (4 * 1024 * 1024)
CROWD = 200


class Door:
    """A server whose clients are the users in whose name they connect, one after the other."""

    def __init__(self, path: Path, server: ControlServer, stack: contextlib.ExitStack) -> None:
        self.server = server
        self.path = path
        self._stack = stack
        self.users: list[int] = []

    async def connect(self, uid: int, sent: bytes = b"") -> socket.socket:
        """Return a connection that the server has seen."""
        self.users.append(uid)
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(self.path))
        sock.send(sent)
        await until(lambda: not self.users)
        return sock

    def caller_of(self, _sock: socket.socket) -> Caller:
        return Caller(1, self.users.pop(0), 0)


async def answer(sock: socket.socket) -> dict[str, object]:
    data = b""
    async with asyncio.timeout(10):
        while not data.endswith(b"\n"):
            piece = await asyncio.get_running_loop().sock_recv(sock, 1 << 20)
            assert piece, "no answer"
            data += piece
    reply = json.loads(data)
    assert isinstance(reply, dict)
    return reply


async def ask(sock: socket.socket, method: str = "Echo", **parameters: object) -> dict[str, object]:
    sock.send(encode_request(method, parameters))
    return await answer(sock)


async def echo(parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
    return parameters


async def big(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
    return {"big": BIG}


async def endless(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
    return await asyncio.get_running_loop().create_future()


HANDLERS: dict[str, Handler] = {"Echo": echo, "Big": big, "Endless": endless}


@pytest.fixture
async def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    path = tmp_path / "control.sock"
    server = ControlServer(path, {PREFIX + name: each for name, each in HANDLERS.items()})
    monkeypatch.setattr(server_module, "is_member", lambda _caller, _group: True)
    with contextlib.ExitStack() as stack:
        door = Door(path, server, stack)
        monkeypatch.setattr(server_module, "_caller_of", door.caller_of)
        await server.start()
        try:
            yield door
        finally:
            await server.close()


CROWDS: dict[str, bytes] = {
    "silent": b"",
    "half a line": b'{"method":',
    "reads no answer": encode_request("Big", {}),
}


@pytest.mark.parametrize("sent", CROWDS.values(), ids=CROWDS)
@pytest.mark.parametrize("crowd", [ROOT, ANN])
async def test_idle_connections_lock_nobody_out(door: Door, crowd: int, sent: bytes) -> None:
    for _ in range(CROWD):
        await door.connect(crowd, sent)
    for uid in (ROOT, ANN, BOB):
        assert await ask(await door.connect(uid), n=uid) == {"parameters": {"n": uid}}


async def test_busy_connections_of_a_user_lock_out_neither_root_nor_another_user(
    door: Door,
) -> None:
    for _ in range(CROWD):
        await door.connect(ANN, encode_request("Endless", {}))
    refused = await door.connect(ANN)
    assert "too many connections" in str((await answer(refused))["parameters"])
    for uid in (ROOT, BOB):
        assert await ask(await door.connect(uid), n=uid) == {"parameters": {"n": uid}}


async def test_a_crowd_of_one_user_takes_no_place_of_another(door: Door) -> None:
    kept = [await door.connect(uid) for uid in (ROOT, BOB)]
    for _ in range(CROWD):
        await door.connect(ANN)
    for sock in kept:
        assert await ask(sock, n=1) == {"parameters": {"n": 1}}


async def test_the_connection_that_waited_longest_is_told_and_closed(door: Door) -> None:
    first, second = await door.connect(ANN), await door.connect(ANN)
    assert await ask(first, n=1) == {"parameters": {"n": 1}}
    for _ in range(MAX_OF_A_USER - 1):
        await door.connect(ANN)
    # `second` has asked for nothing: it has waited longer than `first`.
    assert "waited longest" in str((await answer(second))["parameters"])
    assert await asyncio.get_running_loop().sock_recv(second, 1) == b""
    assert await ask(first, n=2) == {"parameters": {"n": 2}}


async def test_a_part_of_an_answer_is_followed_by_nothing_else(door: Door) -> None:
    sock = await door.connect(ANN)
    sock.send(encode_request("Big", {}))
    await until(lambda: any(each.mid_reply for each in door.server._connections.values()))
    for _ in range(MAX_OF_A_USER):
        await door.connect(ANN)
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
            got += data
    assert 0 < len(got) < len(BIG)
    assert b"waited" not in got


async def test_no_descriptor_is_left_behind_by_a_crowd(door: Door) -> None:
    clients = [await door.connect(ANN) for _ in range(CROWD)]
    await until(lambda: len(door.server._connections) == MAX_OF_A_USER)
    for client in clients:
        client.close()
    await until(lambda: not door.server._connections)
    assert len(door.server._places._taken) == 0


async def test_the_limit_of_all_connections_holds(door: Door) -> None:
    for _ in range(CROWD):
        await door.connect(ROOT)
    await until(lambda: len(door.server._connections) == MAX_CONNECTIONS)


async def test_without_a_descriptor_an_idle_connection_makes_room(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, first = await door.connect(ANN), await door.connect(BOB)
    accept, failures = (
        server_module._next_client,
        [OSError(errno.EMFILE, "Too many open files")] * 2,
    )

    def fail(listener: socket.socket) -> socket.socket:
        if failures:
            raise failures.pop()
        return accept(listener)

    monkeypatch.setattr(server_module, "_next_client", fail)
    monkeypatch.setattr(server_module, "_someone_waits", lambda _listener: True)
    monkeypatch.setattr(server_module, "ACCEPT_PAUSE", 0.01)
    with captured_logs() as logged:
        await door.connect(ROOT)
        late = await door.connect(ROOT)
        assert await ask(late, n=1) == {"parameters": {"n": 1}}
        assert "waited longest" in str((await answer(idle))["parameters"])
        assert "waited longest" in str((await answer(first))["parameters"])
    told = [entry for entry in logged if entry["log_level"] == "warning"]
    assert [(entry["event"], entry["reason"]) for entry in told] == [
        ("no control connection is accepted", "Too many open files")
    ]


async def test_a_connection_that_took_the_last_descriptor_is_served(door: Door) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    door.users.append(ROOT)
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        # This process is both ends: the server's end takes the lowest number that is free.
        last = os.open("/", os.O_RDONLY)
        os.close(last)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, hard))
        try:
            await asyncio.get_running_loop().sock_connect(client, str(door.path))
            for n in range(3):
                assert await ask(client, n=n) == {"parameters": {"n": n}}
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_slow_lookup_of_one_user_delays_neither_root_nor_the_default_threads(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()
    monkeypatch.setattr(server_module, "is_member", lambda _caller, _group: gone.wait(10))
    try:
        for _ in range(CROWD):
            await door.connect(ANN, encode_request("Echo", {}))
        assert await ask(await door.connect(ROOT), n=1) == {"parameters": {"n": 1}}
        assert await asyncio.to_thread(lambda: 1) == 1
    finally:
        gone.set()
