"""Peer address tracking of the python engine: moves, late packets, and who shares a peer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from esp_gw.engine.base import PeerAddressChanged
from esp_gw.engine.python.peers import NOT_HEARD, SETTLE, Peer, Peers
from esp_gw.engine.python.sad import InboundState, OutboundState
from esp_gw.model import Direction, Encapsulation, Sa
from tests.support.builders import make_sa, mirrored
from tests.support.esp import encap
from tests.support.rig import Side, packet

HOME = ("192.0.2.1", 4500)
NAT, FURTHER = ("203.0.113.9", 61000), ("203.0.113.10", 61001)
INNER = packet()


class Gateways:
    """`a` sends through a chosen SA; `b` has all of them, two of tunnel t and one of tunnel u."""

    names = ("t/1", "t/2", "u/1")

    def __init__(self) -> None:
        self.a, self.b = Side(), Side()
        self.inbound: dict[str, InboundState] = {}
        self.outbound: dict[str, OutboundState] = {}
        self._senders: dict[str, OutboundState] = {}
        for number, name in enumerate(self.names):
            sa = replace(make_sa(name, spi=0x1001 + number), tunnel=name[0])
            self._senders[name] = self.a.install_outbound(sa)
            there = replace(sa, local=sa.remote, remote=sa.local, selectors=mirrored(sa.selectors))
            inbound = replace(there, direction=Direction.INBOUND)
            self.inbound[name] = self.b.install_inbound(inbound)
            outbound = replace(there, name=f"{name}/out", spi=0x2001 + number)
            self.outbound[name] = self.b.install_outbound(outbound)

    def send(self, name: str) -> bytes:
        """Return an ESP packet of an SA."""
        return encap(self._senders[name].esp, INNER)

    def hear(self, name: str, address: tuple[str, int], esp: bytes | None = None) -> None:
        """Deliver a packet of an SA from a source address."""
        assert self.b.receive(esp or self.send(name), address=address) == [INNER]

    def peers(self, tunnel: str) -> set[tuple[str, int]]:
        """Return the peer addresses of a tunnel's SAs, in both directions."""
        states = [*self.inbound.items(), *self.outbound.items()]
        return {state.peer.address for name, state in states if name[0] == tunnel}


@pytest.fixture
def gateways() -> Iterator[Gateways]:
    gateways = Gateways()
    yield gateways
    gateways.a.close()
    gateways.b.close()


def test_all_sas_of_a_tunnel_follow_a_move_and_no_other_tunnel_does(
    gateways: Gateways,
) -> None:
    gateways.hear("t/2", NAT)
    assert gateways.peers("t") == {NAT}
    assert gateways.peers("u") == {HOME}
    moved = PeerAddressChanged("t/2", gateways.inbound["t/2"].counters().remote, NAT[1])
    assert gateways.b.events == [moved]
    for state in (gateways.inbound["t/1"], gateways.outbound["t/1"]):
        assert (str(state.counters().remote), state.counters().remote_port) == NAT


def test_a_late_packet_of_an_idle_sa_arrives_but_does_not_move_the_tunnel_back(
    gateways: Gateways,
) -> None:
    gateways.hear("t/1", HOME)
    late = [gateways.send("t/1") for _ in range(3)]
    gateways.hear("t/2", NAT)
    gateways.hear("t/1", HOME, late[0])
    gateways.hear("t/1", FURTHER, late[1])
    gateways.b.loop.now += SETTLE - 0.001
    gateways.hear("t/1", HOME, late[2])
    assert gateways.peers("t") == {NAT}
    assert len(gateways.b.events) == 1


def test_an_sa_heard_at_the_current_address_moves_the_peer_at_once(gateways: Gateways) -> None:
    gateways.hear("t/2", NAT)
    gateways.hear("t/2", FURTHER)
    gateways.hear("t/1", FURTHER)
    gateways.hear("t/1", HOME)
    assert gateways.peers("t") == {HOME}
    gateways.hear("t/2", FURTHER)
    assert gateways.peers("t") == {HOME}


def test_a_peer_that_moved_back_is_followed_after_the_settle_time(
    gateways: Gateways,
) -> None:
    gateways.hear("t/2", NAT)
    gateways.b.loop.now += SETTLE
    gateways.hear("t/1", HOME)
    assert gateways.peers("t") == {HOME}
    gateways.b.loop.now += SETTLE - 0.001
    gateways.hear("t/2", NAT)
    assert gateways.peers("t") == {HOME}
    gateways.b.loop.now += 0.001
    gateways.hear("t/2", NAT)
    assert gateways.peers("t") == {NAT}


def test_old_forged_and_replayed_packets_move_no_peer(gateways: Gateways) -> None:
    older, newer, next_one = (gateways.send("t/1") for _ in range(3))
    gateways.hear("t/1", HOME, newer)
    gateways.hear("t/1", NAT, older)
    gateways.b.receive(next_one[:-1] + bytes([next_one[-1] ^ 1]), newer, older, address=NAT)
    assert gateways.peers("t") == {HOME}
    assert gateways.b.events == []


def sa(name: str, tunnel: str | None = None, pair: str | None = None) -> Sa:
    return replace(make_sa(name, pair=pair), tunnel=tunnel)


@pytest.mark.parametrize("pairs", [("out", "in"), ("out", None), (None, "in")])
def test_a_pair_without_a_tunnel_has_one_peer(pairs: tuple[str | None, str | None]) -> None:
    peers = Peers()
    inbound = peers.place(sa("in", pair=pairs[0]))
    assert peers.place(sa("out", pair=pairs[1])) is inbound


def test_unrelated_sas_have_separate_peers() -> None:
    peers = Peers()
    tunnel = sa("t/in", "t")
    others = [
        sa("x"),
        sa("t"),
        sa("u/in", "u"),
        replace(sa("t/out", "t", "t/in"), remote_port=4501),
        replace(sa("t/out.2", "t", "t/in"), encapsulation=Encapsulation.NONE),
    ]
    placed = [peers.place(one) for one in (tunnel, *others)]
    assert len({id(peer) for peer in placed}) == len(placed)


def test_a_peer_is_forgotten_with_its_last_sa() -> None:
    peers = Peers()
    peer: Peer | None = peers.place(sa("t/in", "t", "t/out"))
    assert peer is not None
    assert peer.follow(NAT, NOT_HEARD, 0)
    assert peers.place(sa("t/out", "t")).address == NAT
    peer = None
    gc.collect()
    assert peers.place(sa("t/out", "t")).address == ("192.0.2.2", 4500)
