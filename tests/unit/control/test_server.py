"""The control server on a real socket, with slow, hostile, many and vanished clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
import uvloop

from esp_gw.control import server as server_module
from esp_gw.control.protocol import PREFIX, encode_request
from esp_gw.control.server import Caller, ControlServer, Handler
from esp_gw.errors import ControlError, EngineError, EspGwError
from tests.support.fakes import captured_logs, until

BIG = "x" * (8 * 1024 * 1024)

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
    return parameters


async def big(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
    return {"big": BIG}


HANDLERS: dict[str, Handler] = {"Echo": echo, "Big": big}


@contextlib.asynccontextmanager
async def serving(
    path: Path, handlers: Mapping[str, Handler] = HANDLERS
) -> AsyncIterator[ControlServer]:
    server = ControlServer(path, {PREFIX + name: handlers[name] for name in handlers})
    await server.start()
    try:
        yield server
    finally:
        await server.close()


@contextlib.asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_unix_connection(path, limit=2 * len(BIG))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(stream: Stream, method: str, **parameters: object) -> dict[str, object]:
    stream[1].write(encode_request(method, parameters))
    return await answer(stream)


async def answer(stream: Stream) -> dict[str, object]:
    line = await stream[0].readline()
    reply = json.loads(line)
    assert isinstance(reply, dict)
    return reply


async def fresh_answer(path: Path, method: str = "Echo", **parameters: object) -> dict[str, object]:
    async with connected(path) as stream:
        return await ask(stream, method, **parameters)


async def all_gone(server: ControlServer) -> None:
    """Wait until the server has released every connection."""
    await until(lambda: not server._connections)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def there(path: Path) -> bool:
    return os.path.lexists(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def test_a_request_is_answered_and_the_connection_stays_open(path: Path) -> None:
    async with serving(path), connected(path) as stream:
        assert await ask(stream, "Echo", n=1) == {"parameters": {"n": 1}}
        assert await ask(stream, "Echo", n=2) == {"parameters": {"n": 2}}


def test_the_server_works_on_uvloop_too(path: Path) -> None:
    async def scenario() -> None:
        async with serving(path), connected(path) as stream:
            assert await ask(stream, "Echo", n=1) == {"parameters": {"n": 1}}
            assert await ask(stream, "Big") == {"parameters": {"big": BIG}}
            stream[1].write(b"nonsense\n")
            assert (await answer(stream))["error"] == "io.esp_gw.InvalidParameter"
            assert await stream[0].read() == b""
        assert not there(path)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())


async def test_the_handler_gets_the_peer_credentials_from_the_kernel(path: Path) -> None:
    callers: list[Caller] = []

    async def note(_parameters: dict[str, object], caller: Caller) -> dict[str, object]:
        callers.append(caller)
        return {}

    async with serving(path, {"Note": note}):
        await fresh_answer(path, "Note")
    assert callers == [Caller(os.getpid(), os.geteuid(), os.getegid())]


async def test_requests_of_one_connection_are_served_one_after_the_other(path: Path) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def slow(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        order.append("slow begins")
        begun.set()
        await go_on.wait()
        order.append("slow ends")
        return {"slow": True}

    async def quick(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        order.append("quick")
        return {"slow": False}

    handlers: dict[str, Handler] = {"Slow": slow, "Quick": quick, "Echo": echo}
    async with serving(path, handlers), connected(path) as stream:
        stream[1].write(encode_request("Slow", {}) + encode_request("Quick", {}))
        await begun.wait()
        # Another connection is served meanwhile.
        assert await fresh_answer(path, n=1) == {"parameters": {"n": 1}}
        assert order == ["slow begins"]
        go_on.set()
        assert await answer(stream) == {"parameters": {"slow": True}}
        assert await answer(stream) == {"parameters": {"slow": False}}
    assert order == ["slow begins", "slow ends", "quick"]


async def test_many_requests_in_one_piece_let_other_clients_in_between(path: Path) -> None:
    served: list[object] = []
    begun = asyncio.Event()

    async def note(parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        served.append(parameters["who"])
        if parameters["who"] == "greedy":
            begun.set()
        return {}

    async with serving(path, {"Note": note}), connected(path) as greedy, connected(path) as other:
        # Both have passed the peer check before the race begins.
        await ask(greedy, "Note", who="warm")
        await ask(other, "Note", who="warm")
        greedy[1].write(encode_request("Note", {"who": "greedy"}) * 200)
        await begun.wait()
        await ask(other, "Note", who="other")
        assert served.index("other") < 100
        for _ in range(200):
            await answer(greedy)


async def test_a_client_that_closes_its_sending_side_still_gets_its_answers(path: Path) -> None:
    async with serving(path), connected(path) as (reader, writer):
        writer.write(encode_request("Echo", {"n": 1}) * 2)
        writer.write_eof()
        assert await reader.read() == b'{"parameters":{"n":1}}\n' * 2


@pytest.mark.parametrize(
    ("raised", "error", "message", "hint"),
    [
        (ControlError("NotFound", "no SA 'a'", hint="h"), "NotFound", "no SA 'a'", "h"),
        (EngineError("no TUN", where="esp0", hint="modprobe tun"), "Refused", "esp0: no TUN",
         "modprobe tun"),
        (EspGwError("just no"), "Refused", "just no", None),
        (KeyError("secret-key"), "Internal", "internal error", "see the log of esp-gw"),
        (RecursionError("deep"), "Internal", "internal error", "see the log of esp-gw"),
        (TimeoutError("x"), "Internal", "internal error", "see the log of esp-gw"),
    ],
)  # fmt: skip
async def test_an_exception_of_a_handler_becomes_an_answer(
    path: Path, raised: Exception, error: str, message: str, hint: str | None
) -> None:
    async def fail(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        raise raised

    with captured_logs() as logged:
        async with serving(path, {"Fail": fail, "Echo": echo}), connected(path) as stream:
            expected = {"message": message} | ({"hint": hint} if hint else {})
            assert await ask(stream, "Fail") == {
                "error": f"io.esp_gw.{error}",
                "parameters": expected,
            }
            assert await ask(stream, "Echo", n=1) == {"parameters": {"n": 1}}
    # Only an unexpected exception leaves a traceback in the log.
    assert [entry["event"] for entry in logged if entry.get("exc_info")] == (
        ["control request failed"] if error == "Internal" else []
    )


async def test_an_answer_that_json_cannot_hold_is_an_internal_error(path: Path) -> None:
    async def odd(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        return {"key": b"\x01\x02"}

    async with serving(path, {"Odd": odd}):
        assert (await fresh_answer(path, "Odd"))["error"] == "io.esp_gw.Internal"


@pytest.mark.parametrize("method", ["Echo", "io.esp_gw.Nothing", "org.x.Echo", "io.esp_gw.", ""])
async def test_an_unknown_method_is_reported_and_the_connection_continues(
    path: Path, method: str
) -> None:
    async with serving(path), connected(path) as stream:
        stream[1].write(json.dumps({"method": method}).encode() + b"\n")
        reply = await answer(stream)
        assert reply["error"] == "io.esp_gw.MethodNotFound"
        assert repr(method) in str(reply["parameters"])
        assert await ask(stream, "Echo") == {"parameters": {}}


async def test_after_a_protocol_error_there_is_one_clear_answer_and_the_end(path: Path) -> None:
    async with serving(path), connected(path) as (reader, writer):
        writer.write(encode_request("Echo", {"n": 1}) + b"GET / HTTP/1.1\n")
        writer.write(encode_request("Echo", {"n": 2}))
        lines = (await reader.read()).splitlines()
    assert json.loads(lines[0]) == {"parameters": {"n": 1}}
    assert json.loads(lines[1])["error"] == "io.esp_gw.InvalidParameter"
    assert "not JSON" in json.loads(lines[1])["parameters"]["message"]
    assert len(lines) == 2


async def test_a_line_of_a_megabyte_is_refused_and_others_are_served(path: Path) -> None:
    async with serving(path), connected(path) as (reader, writer):
        writer.write(b"x" * 1024 * 1024)
        assert "longer than" in (await reader.readline()).decode()
        assert await fresh_answer(path, n=1) == {"parameters": {"n": 1}}


async def test_a_partial_request_times_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.1)
    async with serving(path), connected(path) as (reader, writer):
        writer.write(b'{"method":')
        assert await fresh_answer(path, n=1) == {"parameters": {"n": 1}}
        assert await reader.read() == b""


async def test_a_client_that_sends_byte_after_byte_gets_no_more_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 0.2)

    async def drip(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async with serving(path), connected(path) as (reader, writer):
        dripping = asyncio.create_task(drip(writer))
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        dripping.cancel()


async def test_the_time_for_a_request_begins_anew_after_each_answer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REQUEST_TIMEOUT", 1.0)

    async def nap(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        await asyncio.sleep(0.4)
        return {}

    async with serving(path, {"Nap": nap}), connected(path) as stream:
        for _ in range(3):
            assert await ask(stream, "Nap") == {"parameters": {}}


async def test_a_client_that_does_not_read_is_dropped_and_blocks_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "REPLY_TIMEOUT", 0.1)
    async with serving(path) as server:
        with socket.socket(socket.AF_UNIX) as lazy:
            lazy.connect(str(path))
            lazy.sendall(encode_request("Big", {}))
            assert await fresh_answer(path, n=1) == {"parameters": {"n": 1}}
            await all_gone(server)
            received = 0
            with contextlib.suppress(ConnectionResetError):
                while data := lazy.recv(1 << 20):
                    received += len(data)
            assert 0 < received < len(BIG)


async def test_a_client_that_leaves_in_the_middle_of_an_answer_harms_nobody(path: Path) -> None:
    with captured_logs() as logged:
        async with serving(path) as server:
            for _ in range(5):
                async with connected(path) as (reader, writer):
                    writer.write(encode_request("Big", {}))
                    await reader.readexactly(1)
            await all_gone(server)
            assert await fresh_answer(path, n=1) == {"parameters": {"n": 1}}
    assert [entry for entry in logged if entry["log_level"] != "debug"] == []


async def test_a_stranger_is_refused_and_no_handler_sees_the_request(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    async def note(parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        calls.append(parameters)
        return {}

    asked: list[tuple[Caller, str]] = []

    def nobody(caller: Caller, group: str) -> bool:
        asked.append((caller, group))
        return False

    monkeypatch.setattr(server_module, "is_owner", lambda _caller: False)
    monkeypatch.setattr(server_module, "is_member", nobody)
    async with serving(path, {"Note": note}), connected(path) as (reader, writer):
        writer.write(encode_request("Note", {}))
        reply = json.loads(await reader.readline())
        assert await reader.read() == b""
    assert reply["error"] == "io.esp_gw.PermissionDenied"
    assert "esp-gw" in reply["parameters"]["hint"]
    assert asked == [(Caller(os.getpid(), os.geteuid(), os.getegid()), "esp-gw")]
    assert calls == []


async def test_close_drops_clients_and_running_handlers(path: Path) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(_parameters: dict[str, object], _caller: Caller) -> dict[str, object]:
        begun.set()
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    async with serving(path, {"Endless": endless}) as server, connected(path) as (reader, writer):
        writer.write(encode_request("Endless", {}))
        await begun.wait()
        await server.close()
        assert cancelled.is_set()
        assert await reader.read() == b""
