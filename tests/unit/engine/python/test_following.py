"""The peer is followed by any authentic packet, whatever is in it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP

from esp_gw.engine.base import PeerAddressChanged
from esp_gw.model import DropReason, Encapsulation
from tests.support.esp import padded, seal
from tests.support.rig import V4, V6, packet, pair

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
