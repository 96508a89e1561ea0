"""The peer is followed by any authentic packet, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP

from esp_gw.engine.base import CeilingNear, PeerAddressChanged
from esp_gw.engine.python.sad import InboundState, OutboundState
from esp_gw.model import DropReason, Encapsulation
from tests.support.esp import padded, seal
from tests.support.rig import V4, V6, Pair, packet, pair

ELSEWHERE = {4: ("203.0.113.9", 61000), 6: ("2001:db8::9", 61000, 0, 0)}
OUTSIDE = packet(IP(src="10.1.0.1", dst="10.3.0.1"))
TEXTS: dict[DropReason, bytes] = {
    DropReason.DUMMY: padded(bytes(4), 59, 2),
    DropReason.BAD_PADDING: bytes(4) + bytes([9, 9, 2, 4]),
    DropReason.BAD_NEXT_HEADER: padded(packet()[:32], 17, 2),
    DropReason.MALFORMED_INNER: padded(bytes(20), 4, 2),
    DropReason.SELECTOR_MISMATCH: padded(OUTSIDE, 4, -(len(OUTSIDE) + 2) % 4),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("reason", TEXTS)
def test_an_authentic_packet_moves_the_peer_before_its_content_is_judged(
    reason: DropReason, version: int
) -> None:
    with pair(V4, V6, version=version) as gateways:
        sealed = seal(gateways.a_out.sa, 7, TEXTS[reason])
        assert gateways.b.receive(sealed, address=ELSEWHERE[version]) == []
        assert gateways.b.drops_in() == {reason: 1}
        address, port = ELSEWHERE[version][:2]
        assert gateways.b.events == [PeerAddressChanged("ab", ip_address(address), port)]
        counters = gateways.b_in.counters()
        assert (counters.remote, counters.remote_port) == (ip_address(address), port)


BACK = packet(IP(src="10.2.0.1", dst="10.1.0.1"))


def let_be_anywhere(gateways: Pair) -> tuple[InboundState, OutboundState]:
    """Let the peer of b be anywhere; return b's new SAs."""
    into, out = gateways.b_in.sa, gateways.b_out.sa
    nowhere = type(into.remote)(0)
    return (
        gateways.b.install_inbound(replace(into, remote=nowhere, pair="ba")),
        gateways.b.install_outbound(replace(out, remote=nowhere, pair="ab")),
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("way", Encapsulation)
def test_a_peer_that_may_be_anywhere_is_learned_from_an_authentic_packet(
    way: Encapsulation, version: int
) -> None:
    with pair(V4, V6, version=version, encapsulation=way) as gateways:
        _, anywhere = let_be_anywhere(gateways)
        assert gateways.b.forward(BACK) == []
        assert gateways.b.drops_out() == {DropReason.NO_PEER: 1}
        address = ELSEWHERE[version]
        if way is Encapsulation.NONE:
            address = (address[0], 0, *address[2:])
        forged = bytearray(seal(gateways.a_out.sa, 7, TEXTS[DropReason.DUMMY]))
        forged[-1] ^= 1
        gateways.b.receive(bytes(forged), address=address)
        assert not anywhere.peer.is_known
        gateways.b.receive(seal(gateways.a_out.sa, 8, TEXTS[DropReason.DUMMY]), address=address)
        assert anywhere.counters().remote == ip_address(address[0])
        assert [sent.address for sent in gateways.b.forward(BACK)] == [address]


def test_a_peer_is_taken_to_be_where_it_was_last_until_it_is_heard() -> None:
    with pair(V4, V6) as gateways:
        _, anywhere = let_be_anywhere(gateways)
        anywhere.peer.place(ip_address("2001:db8::9"), 4500)
        assert not anywhere.peer.is_known
        anywhere.peer.place(ip_address("203.0.113.1"), 4501)
        assert [sent.address for sent in gateways.b.forward(BACK)] == [("203.0.113.1", 4501)]
        dummy = seal(gateways.a_out.sa, 8, TEXTS[DropReason.DUMMY])
        gateways.b.receive(dummy, address=ELSEWHERE[4])
        anywhere.peer.place(ip_address("203.0.113.1"), 4501)
        assert anywhere.peer.address == ELSEWHERE[4]


@pytest.mark.parametrize("version", [4, 6])
def test_no_packet_puts_a_peer_nowhere(version: int) -> None:
    with pair(V4, V6, version=version) as gateways:
        home = gateways.b_in.peer.address
        nowhere = (str(type(gateways.b_in.sa.remote)(0)), *ELSEWHERE[version][1:])
        dummy = seal(gateways.a_out.sa, 8, TEXTS[DropReason.DUMMY])
        gateways.b.receive(dummy, address=nowhere)
        assert gateways.b.drops_in() == {DropReason.DUMMY: 1}
        assert gateways.b_in.peer.address == home


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("seq", [9, 10, 11])
def test_numbers_up_to_the_fence_neither_teach_nor_move_a_peer_that_may_be_anywhere(
    seq: int, is_known: bool
) -> None:
    with pair(V4, V6) as gateways:
        anywhere, _ = let_be_anywhere(gateways)
        anywhere.fence = 10
        if is_known:
            anywhere.peer.place(ip_address("203.0.113.1"), 4501)
        before = anywhere.peer.address
        dummy = seal(gateways.a_out.sa, seq, TEXTS[DropReason.DUMMY])
        gateways.b.receive(dummy, address=ELSEWHERE[4])
        assert gateways.b.drops_in() == {DropReason.DUMMY: 1}
        assert anywhere.peer.address == (ELSEWHERE[4] if seq > 10 else before)


def test_a_peer_with_an_address_is_followed_below_the_fence() -> None:
    with pair(V4, V6) as gateways:
        gateways.b_in.fence = 10
        dummy = seal(gateways.a_out.sa, 9, TEXTS[DropReason.DUMMY])
        gateways.b.receive(dummy, address=ELSEWHERE[4])
        assert gateways.b_in.peer.address == ELSEWHERE[4]


def test_the_passing_of_a_watched_number_is_reported_once() -> None:
    with pair(V4, V6) as gateways:
        gateways.b_in.notice_at = 5
        home = gateways.b_in.peer.address
        for seq in (5, 7, 6, 8):
            dummy = seal(gateways.a_out.sa, seq, TEXTS[DropReason.DUMMY])
            gateways.b.receive(dummy, address=home)
        assert gateways.b.events == [CeilingNear("ab", 7)]


Forgery = Callable[[bytes], bytes]


@pytest.mark.parametrize("reason", TEXTS)
@pytest.mark.parametrize(
    ("why", "forge"),
    [
        (DropReason.AUTH_FAILED, lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (DropReason.REPLAY_DUPLICATE, lambda sealed: sealed),
    ],
)
def test_a_forged_or_replayed_one_moves_nothing(
    reason: DropReason, why: DropReason, forge: Forgery
) -> None:
    with pair(V4, V6) as gateways:
        sealed = seal(gateways.a_out.sa, 7, TEXTS[reason])
        home = gateways.a_out.sa.local
        gateways.b.receive(sealed, address=(str(home), 4500))
        datagram = forge(seal(gateways.a_out.sa, 8, TEXTS[reason]))
        again = sealed if why is DropReason.REPLAY_DUPLICATE else datagram
        gateways.b.receive(again, address=ELSEWHERE[4])
        assert gateways.b.drops_in() == {reason: 1, why: 1}
        assert gateways.b.events == []


def test_an_older_authentic_one_moves_nothing() -> None:
    with pair(V4) as gateways:
        dummies = [seal(gateways.a_out.sa, seq, TEXTS[DropReason.DUMMY]) for seq in (8, 7)]
        gateways.b.receive(dummies[0], address=(str(gateways.a_out.sa.local), 4500))
        gateways.b.receive(dummies[1], address=ELSEWHERE[4])
        assert gateways.b.drops_in() == {DropReason.DUMMY: 2}
        assert gateways.b.events == []


def test_without_udp_nothing_moves() -> None:
    with pair(V4, encapsulation=Encapsulation.NONE, version=6) as gateways:
        dummy = seal(gateways.a_out.sa, 7, TEXTS[DropReason.DUMMY])
        gateways.b.receive(dummy, address=("2001:db8::9", 0, 0, 0))
        assert gateways.b.drops_in() == {DropReason.DUMMY: 1}
        assert gateways.b.events == []
