"""The messages between an IKE daemon and the engine."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from esp_gw.config.added import Store
from esp_gw.daemon.ike_port import IkePort
from esp_gw.daemon.sources import Sources
from esp_gw.engine.base import RELAY_HEADER, OuterSocket
from esp_gw.errors import EngineError
from esp_gw.model import Encapsulation
from esp_gw.network.objects import Host
from tests.support.builders import desired
from tests.support.fakes import captured_logs, until
from tests.support.gateway_rig import MakeRig, Rig, rigs
from tests.support.owner_client import mapped

SOURCE, DESTINATION = "192.0.2.1", "203.0.113.9"


@pytest.fixture
async def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeRig]:
    async with rigs(tmp_path, monkeypatch) as make:
        yield make


async def opened(make_rig: MakeRig, tmp_path: Path) -> tuple[Rig, IkePort]:
    rig = make_rig()
    addresses = ("192.0.2.1", "2001:db8::1", "127.0.0.1", "::1", "fe80::1")
    rig.kernel.there = Host(addresses=frozenset(map(ip_address, addresses)))
    sources = Sources(rig.gateway, desired(), Store(tmp_path / "added.json"))
    await rig.gateway.start(sources.desired())
    return rig, IkePort(rig.gateway, sources)


async def test_the_engine_receives_at_every_address_that_a_peer_can_reach(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    rig, port = await opened(make_rig, tmp_path)
    assert rig.engine.sockets == frozenset()
    (await port.open()).close()
    udp = Encapsulation.UDP
    wanted = {OuterSocket(ip_address(each), udp) for each in ("192.0.2.1", "2001:db8::1")}
    assert rig.engine.sockets == wanted
    assert rig.engine.relay is not None


async def test_messages_of_the_daemon_are_sent_and_wrong_ones_are_not(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    rig, port = await opened(make_rig, tmp_path)
    theirs = await port.open()
    header = RELAY_HEADER.pack(mapped(SOURCE), mapped(DESTINATION), 4500, 4501)
    with captured_logs() as logs:
        for data in (header, header[:10], b"", header + b"a message"):
            theirs.send(data)
        await until(lambda: rig.engine.ike_sent)
    # One line, however many come.
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
        "messages of IKE without a header are not sent"
    ]
    assert rig.engine.ike_sent == [
        (ip_address(SOURCE), ip_address(DESTINATION), 4501, b"a message")
    ]
    theirs.close()
    port.close()


async def test_a_new_socket_ends_the_former_one(make_rig: MakeRig, tmp_path: Path) -> None:
    rig, port = await opened(make_rig, tmp_path)
    former = await port.open()
    fresh = await port.open()
    with pytest.raises(ConnectionError):
        former.send(b"hello")
    port.close()
    port.close()
    with pytest.raises(ConnectionError):
        fresh.send(b"hello")
    assert rig.engine.relay is None
    former.close()
    fresh.close()


async def test_a_refusal_of_the_engine_leaves_no_socket_open(
    make_rig: MakeRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, port = await opened(make_rig, tmp_path)
    made: list[socket.socket] = []
    pair = socket.socketpair

    def remember(*arguments: int) -> tuple[socket.socket, socket.socket]:
        made.extend(pair(*arguments))
        return made[0], made[1]

    def refuse(fd: int | None) -> None:
        raise EngineError("no")

    monkeypatch.setattr(socket, "socketpair", remember)
    monkeypatch.setattr(rig.engine, "relay_ike", refuse)
    with pytest.raises(EngineError):
        await port.open()
    assert [each.fileno() for each in made] == [-1, -1]
