"""The inbound path with real keys: accepted packets, drops, and peer address tracking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from esp_gw.engine.base import PeerAddressChanged
from esp_gw.engine.python import inbound
from esp_gw.model import DropReason, Encapsulation, Mode
from tests.support.builders import OUTER, protect, selector
from tests.support.esp import encap
from tests.support.rig import (
    HEADS,
    HOSTS,
    MSG_TRUNC,
    SPIS,
    V4,
    V6,
    FakeOuter,
    Pair,
    Side,
    fill,
    on_the_wire,
    packet,
    pair,
)

both_versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def tunnel() -> Iterator[Pair]:
    with pair(V4, V6) as gateways:
        yield gateways


# Drops


def refused(side: Side, *datagrams: bytes, **how: Any) -> Counter[str]:
    before = side.drops_in()
    assert side.receive(*datagrams, **how) == []
    return side.drops_in() - before


def test_an_inner_packet_outside_the_selectors_is_refused(tunnel: Pair) -> None:
    octets = packet(IP(src="10.1.0.1", dst="10.3.0.1"))
    wide = selector("0.0.0.0/0", "0.0.0.0/0")
    tunnel.a.install_outbound(replace(tunnel.a_out.sa, selectors=(wide,)))
    tunnel.a.outbound.replace_policies([protect("ab", "ab", wide)])
    for _ in range(2):
        (sent,) = tunnel.a.forward(octets)
        assert refused(tunnel.b, sent.packet) == {DropReason.SELECTOR_MISMATCH: 1}
    (good,) = tunnel.a.forward(packet())
    assert tunnel.b.receive(good.packet) == [packet()]


def test_a_packet_is_accepted_once(tunnel: Pair) -> None:
    (sent,) = tunnel.a.forward(packet())
    assert tunnel.b.receive(sent.packet) == [packet()]
    assert refused(tunnel.b, sent.packet) == {DropReason.REPLAY_DUPLICATE: 1}


@both_versions
@pytest.mark.parametrize("udp", [True, False])
def test_esp_in_another_encapsulation_or_ip_version_than_the_sas_is_refused(
    version: int, udp: bool
) -> None:
    """Such a packet neither delivers anything, nor moves the peer, nor raises."""
    with pair(V4) as gateways:
        (sent,) = gateways.a.forward(packet())
        other = FakeOuter(version, udp)
        datagram = on_the_wire(other, sent)
        if version == 4 and udp:
            assert gateways.b.receive(datagram, outer=other) == [packet()]
            return
        assert refused(gateways.b, datagram, outer=other) == {DropReason.WRONG_ENCAPSULATION: 1}
        assert gateways.b.events == []
        assert gateways.b_in.counters().remote == ip_address(OUTER[4][0])
        assert gateways.b.receive(sent.packet) == [packet()]


@pytest.mark.parametrize(
    ("datagram", "udp", "reason"),
    [
        (b"", True, DropReason.TOO_SHORT),
        (b"\xff\xff", True, DropReason.TOO_SHORT),
        (b"\xfe", True, DropReason.TOO_SHORT),
        (b"\xff", False, DropReason.TOO_SHORT),
        (b"\0" * 4 + b"IKE header", True, DropReason.IKE_DATAGRAM),
        (b"\0" * 4 + b"raw bytes.", False, DropReason.UNKNOWN_SPI),
        (b"\0\0\x10\x09" + bytes(40), True, DropReason.UNKNOWN_SPI),
        (SPIS["ab"].to_bytes(4) + b"\0\0\0\1", None, DropReason.TOO_SHORT),
        (SPIS["ab"].to_bytes(4) + b"\0\0\0\1" + bytes(40), None, DropReason.AUTH_FAILED),
    ],
)
@both_versions
def test_a_datagram_that_is_not_esp_is_dropped_with_its_reason(
    version: int, datagram: bytes, udp: bool | None, reason: DropReason
) -> None:
    for kind in (True, False) if udp is None else (udp,):
        encapsulation = Encapsulation.UDP if kind else Encapsulation.NONE
        with pair(V4, version=version, encapsulation=encapsulation) as gateways:
            outer = gateways.b.outer
            octets = bytes(IP(proto=50) / Raw(datagram)) if outer.has_ip_header else datagram
            assert refused(gateways.b, octets) == {reason: 1}
            assert gateways.b.inbound.keepalives == 0


def test_a_keepalive_is_counted_and_is_no_drop(tunnel: Pair) -> None:
    assert refused(tunnel.b, b"\xff") == {}
    assert tunnel.b.inbound.keepalives == 1


@pytest.mark.parametrize("octets", [b"", b"\x45", b"\x4f" + bytes(10), b"\x4f" + bytes(30)])
def test_a_raw_packet_whose_ip_header_is_cut_off_is_too_short(octets: bytes) -> None:
    with pair(V4, encapsulation=Encapsulation.NONE) as gateways:
        gateways.b.receive(b"\x4f" + bytes(200))
        assert refused(gateways.b, octets) == {DropReason.TOO_SHORT: 1}


def test_a_truncated_datagram_is_dropped(tunnel: Pair) -> None:
    (sent,) = tunnel.a.forward(packet())
    assert refused(tunnel.b, sent.packet, flags=MSG_TRUNC) == {DropReason.TRUNCATED: 1}


def test_a_socket_error_loses_no_datagram(tunnel: Pair) -> None:
    (sent,) = tunnel.a.forward(packet())
    tunnel.b.outer.sock.waiting.append(ConnectionRefusedError())
    assert tunnel.b.receive(sent.packet) == [packet()]


def seal(gateways: Pair, payload: bytes, next_header: int) -> bytes:
    """Return an ESP packet of a peer that seals an arbitrary payload."""
    return encap(gateways.a_out.esp, payload, next_header)


@pytest.mark.parametrize(
    ("payload", "next_header", "reason"),
    [
        (packet(), 41, DropReason.MALFORMED_INNER),
        (packet(HEADS[6]), 4, DropReason.MALFORMED_INNER),
        (b"", 4, DropReason.MALFORMED_INNER),
        (packet()[:-1], 4, DropReason.MALFORMED_INNER),
        (packet(), 17, DropReason.BAD_NEXT_HEADER),
        (packet(), 59, DropReason.DUMMY),
    ],
)
def test_a_tunnel_takes_only_whole_ip_packets(
    tunnel: Pair, payload: bytes, next_header: int, reason: DropReason
) -> None:
    assert refused(tunnel.b, seal(tunnel, payload, next_header)) == {reason: 1}
    # Same result when the buffer still holds an earlier good packet.
    assert tunnel.b.receive(seal(tunnel, packet(), 4)) == [packet()]
    assert refused(tunnel.b, seal(tunnel, payload, next_header)) == {reason: 1}


def test_a_transport_payload_too_long_for_a_packet_is_malformed() -> None:
    with pair(HOSTS[6], mode=Mode.TRANSPORT, version=6) as gateways:
        datagram = seal(gateways, bytes(65496), 17)
        assert refused(gateways.b, datagram) == {DropReason.MALFORMED_INNER: 1}


NOT_ECT, ECT_1, ECT_0, CE = range(4)
ECN = {
    # RFC 6040, figure 4: inner field, then the resulting inner field for each outer field.
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: None},
    ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
    ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
    CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
}


@both_versions
@pytest.mark.parametrize("encapsulation", Encapsulation)
@pytest.mark.parametrize("outer_ecn", range(4))
@pytest.mark.parametrize("inner_ecn", range(4))
def test_congestion_on_the_way_reaches_the_inner_packet(
    inner_ecn: int, outer_ecn: int, encapsulation: Encapsulation, version: int
) -> None:
    head = HEADS[version].copy()
    field = "tos" if version == 4 else "tc"
    setattr(head, field, 0xB8 | inner_ecn)
    with pair(V4, V6, encapsulation=encapsulation) as gateways:
        (sent,) = gateways.a.forward(packet(head))
        sent = replace(sent, tos=0x28 | outer_ecn)
        arrived = gateways.b.receive(on_the_wire(gateways.a.outer, sent), tos=sent.tos)
        expected = ECN[inner_ecn][outer_ecn]
        if expected is None:
            assert arrived == []
            assert gateways.b.drops_in() == {DropReason.ECN_NOT_ECT: 1}
        else:
            setattr(head, field, 0xB8 | expected)
            assert arrived == [packet(head)]


# The peer's address


def test_only_the_newest_authenticated_packet_moves_the_peer(tunnel: Pair) -> None:
    elsewhere, later = ("203.0.113.9", 61000), ("203.0.113.10", 61001)
    first, second, third = tunnel.a.forward(packet(), packet(), packet())
    assert tunnel.b.receive(second.packet, address=elsewhere) == [packet()]
    moved = PeerAddressChanged("ab", ip_address(elsewhere[0]), elsewhere[1])
    assert tunnel.b.events == [moved]
    # Older, forged, replayed: none of them redirects the replies.
    tunnel.b.receive(first.packet, address=later)
    tunnel.b.receive(third.packet[:-1] + b"!", address=later)
    tunnel.b.receive(second.packet, address=later)
    assert tunnel.b.events == [moved]
    assert tunnel.b_in.counters().remote == moved.address
    tunnel.b.receive(third.packet, address=elsewhere)
    assert tunnel.b.events == [moved]


def test_a_peer_without_udp_is_not_followed() -> None:
    with pair(V4, encapsulation=Encapsulation.NONE) as gateways:
        (sent,) = gateways.a.forward(packet())
        datagram = on_the_wire(gateways.a.outer, sent)
        gateways.b.receive(datagram, address=("203.0.113.9", 0))
        assert gateways.b.events == []


# A full TUN


def test_packets_queue_for_the_tun_in_order_and_excess_ones_are_dropped(tunnel: Pair) -> None:
    side, count = tunnel.b, inbound.MAX_QUEUED + 5
    filled = fill(side)
    sent = [tunnel.a.forward(packet(payload=b"%d" % n))[0].packet for n in range(count)]
    for datagram in sent:
        side.outer.sock.waiting.append((datagram, 0, 0, ("192.0.2.1", 4500)))
    while side.outer.sock.waiting:
        side.inbound.drain(side.outer)  # type: ignore[arg-type]
    assert tunnel.b_in.packets == 0
    assert side.drops_in() == {DropReason.TUN_QUEUE_FULL: 5}
    assert len(side.from_tun()) == filled
    for callback in list(side.loop.writers.values()):
        callback()
    assert side.loop.writers == {}
    waited = [IP(octets)[UDP].payload.load for octets in side.from_tun()]
    assert waited == [b"%d" % n for n in range(inbound.MAX_QUEUED)]
    assert tunnel.b_in.packets == inbound.MAX_QUEUED
    (last,) = tunnel.a.forward(packet())
    assert side.receive(last.packet) == [packet()]


def test_a_packet_does_not_overtake_queued_ones(tunnel: Pair) -> None:
    side = tunnel.b
    sent = tunnel.a.forward(*(packet(payload=b"%d" % n) for n in range(2)))
    filled = fill(side)
    side.outer.sock.waiting.append((sent[0].packet, 0, 0, ("192.0.2.1", 4500)))
    side.inbound.drain(side.outer)  # type: ignore[arg-type]
    assert len(side.from_tun()) == filled
    assert side.receive(sent[1].packet) == []
    for callback in list(side.loop.writers.values()):
        callback()
    assert [IP(octets)[UDP].payload.load for octets in side.from_tun()] == [b"0", b"1"]


def test_a_tun_that_fails_costs_a_drop_for_each_packet(tunnel: Pair) -> None:
    side = tunnel.b
    first, second, third = tunnel.a.forward(packet(), packet(), packet())
    fill(side)
    side.outer.sock.waiting.append((first.packet, 0, 0, ("192.0.2.1", 4500)))
    side.inbound.drain(side.outer)  # type: ignore[arg-type]
    side.tun.close()
    for callback in list(side.loop.writers.values()):
        callback()
    for sent in (second, third):
        side.outer.sock.waiting.append((sent.packet, 0, 0, ("192.0.2.1", 4500)))
    side.inbound.drain(side.outer)  # type: ignore[arg-type]
    assert side.drops_in() == {DropReason.TUN_ERROR: 3}
    assert (tunnel.b_in.packets, side.loop.writers) == (0, {})


@pytest.mark.parametrize("end", ["discard", "close"])
def test_packets_queued_for_the_tun_are_counted_when_their_sa_is_removed(
    tunnel: Pair, end: str
) -> None:
    side = tunnel.b
    filled = fill(side)
    for sent in tunnel.a.forward(*[packet()] * 3):
        side.outer.sock.waiting.append((sent.packet, 0, 0, ("192.0.2.1", 4500)))
    side.inbound.drain(side.outer)  # type: ignore[arg-type]
    assert (tunnel.b_in.packets, side.drops_in()) == (0, {})
    if end == "discard":
        side.inbound.discard(tunnel.b_in)
    else:
        side.inbound.close()
    assert side.drops_in() == {DropReason.TUN_ERROR: 3}
    assert len(side.from_tun()) == filled
    assert side.loop.writers == {}
