"""Samples of refused packets and of openings, as the python engine takes them."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6, IPv6ExtHdrDestOpt
from scapy.packet import Packet, Raw

from esp_gw.engine.base import MAX_SAMPLES, Opening, Refused
from esp_gw.model import DropReason, Encapsulation, Mode
from tests.support.builders import OUTER, discard, protect, selector
from tests.support.rig import (
    HEADS,
    HOST_HEADS,
    HOSTS,
    SPIS,
    V4,
    V6,
    FakeOuter,
    on_the_wire,
    packet,
    pair,
)

PEER = {4: ("203.0.113.9", 61000), 6: ("2001:db8::9%wan", 61000, 0, 0)}


def outer_sample(
    reason: DropReason, sa: str | None, version: int, udp: bool, spi: int = SPIS["ab"]
) -> Refused:
    source = ip_address(PEER[version][0].partition("%")[0])
    port, protocol = (61000, 17) if udp else (0, 50)
    return Refused(reason, sa, source, port, None, 0, protocol, spi)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("udp", [True, False])
def test_a_refused_datagram_leaves_its_spi_and_source(version: int, udp: bool) -> None:
    way = Encapsulation.UDP if udp else Encapsulation.NONE
    with pair(V4, V6, version=version, encapsulation=way) as gateways:
        a, b = gateways.a, gateways.b
        b.install_inbound(gateways.b_in.sa, 100)
        sent = [on_the_wire(a.outer, sent) for sent in a.forward(*[packet()] * 101)]
        stale, good = sent[0], sent[100]
        address = PEER[version] if udp else (PEER[version][0], 0, *PEER[version][2:])
        b.receive(good, address=address)
        assert b.samples.take_refused() == []
        forged = good[:-20] + bytes(20)
        unknown = good.replace(SPIS["ab"].to_bytes(4), b"\0\0\x77\x77", 1)
        other = FakeOuter(version, not udp)
        esp = good[20:] if version == 4 and not udp else good
        strange = bytes(IP(proto=50) / Raw(esp)) if other.has_ip_header else esp
        fresh = on_the_wire(a.outer, a.forward(packet())[0])
        forged = fresh[:-20] + bytes(20)
        b.receive(stale, good, forged, unknown, address=address)
        b.receive(strange, address=PEER[version], outer=other)
        assert b.samples.take_refused() == [
            outer_sample(DropReason.REPLAY_DUPLICATE, "ab", version, udp),
            outer_sample(DropReason.AUTH_FAILED, "ab", version, udp),
            outer_sample(DropReason.UNKNOWN_SPI, None, version, udp, 0x7777),
            outer_sample(DropReason.WRONG_ENCAPSULATION, "ab", version, not udp),
        ]
        assert b.samples.take_refused() == []


def test_what_has_no_spi_leaves_no_sample() -> None:
    with pair(V4) as gateways:
        gateways.b.receive(b"", b"\xff\xff", b"\0" * 12, SPIS["ab"].to_bytes(4) + bytes(4))
        assert sum(gateways.b.drops_in().values()) == 4
        assert gateways.b.samples.take_refused() == []


def test_a_flood_leaves_the_first_samples_that_differ() -> None:
    with pair(V4) as gateways:
        strays = [(0x5000 + n // 2).to_bytes(4) + bytes(40) for n in range(100)]
        gateways.b.receive(*strays)
        taken = gateways.b.samples.take_refused()
        assert [refused.spi for refused in taken] == [0x5000 + n for n in range(MAX_SAMPLES)]
        gateways.b.receive(*strays[-2:])
        assert [refused.spi for refused in gateways.b.samples.take_refused()] == [0x5031]


@pytest.mark.parametrize("version", [4, 6])
def test_a_refused_inner_packet_leaves_its_flow(version: int) -> None:
    head = HEADS[version]
    ends = ip_address(head.src), ip_address(head.dst)
    with pair(V4, V6) as gateways:
        a = gateways.a

        def sample(reason: DropReason, sa: str | None = None) -> Refused:
            return Refused(reason, sa, ends[0], 1000, ends[1], 2000, 17, None)

        a.outbound.replace_policies([])
        a.forward(packet(head), packet(head))
        assert a.samples.take_refused() == [sample(DropReason.NO_POLICY)]
        a.forward(packet(head))
        assert a.samples.take_refused() == [sample(DropReason.NO_POLICY)]
        a.outbound.replace_policies([protect("ab", "gone", V4, V6)])
        a.forward(packet(head))
        assert a.samples.take_refused() == [sample(DropReason.NO_SA)]
        a.outbound.replace_policies([discard("never", V4, V6)])
        a.forward(packet(head))
        assert a.samples.take_refused() == []
        narrow = replace(gateways.a_out.sa, selectors=(selector("10.9.0.0/24", "10.9.1.0/24"),))
        a.install_outbound(narrow)
        a.outbound.replace_policies([gateways.policy])
        a.forward(packet(head))
        assert a.samples.take_refused() == [sample(DropReason.SELECTOR_MISMATCH)]
        a.install_outbound(gateways.a_out.sa).next_mtu_query = math.inf
        a.outer.verdicts.extend([DropReason.TOO_BIG] * 2)
        a.forward(packet(head))
        a.outer.verdicts.clear()
        assert a.samples.take_refused() == [sample(DropReason.TOO_BIG, "ab")]


@pytest.mark.parametrize("version", [4, 6])
def test_transport_mode_leaves_the_hosts(version: int) -> None:
    ends = [ip_address(end) for end in OUTER[version]]
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        gateways.a_out.next_mtu_query = math.inf
        gateways.a.outer.verdicts.extend([DropReason.TOO_BIG] * 2)
        gateways.a.forward(packet(HOST_HEADS[version]))
        (refused,) = gateways.a.samples.take_refused()
        assert (refused.source, refused.destination) == (ends[0], ends[1])
        assert (refused.source_port, refused.destination_port) == (1000, 2000)


def test_an_inner_packet_outside_the_selectors_leaves_its_addresses() -> None:
    with pair(V4, V6) as gateways:
        wide = selector("0.0.0.0/0", "0.0.0.0/0")
        gateways.a.install_outbound(replace(gateways.a_out.sa, selectors=(wide,)))
        gateways.a.outbound.replace_policies([protect("ab", "ab", wide)])
        for sent in gateways.a.forward(bytes(IP(src="10.1.0.1", dst="10.3.0.1", proto=47))):
            gateways.b.receive(sent.packet)
        ends = ip_address("10.1.0.1"), ip_address("10.3.0.1")
        assert gateways.b.samples.take_refused() == [
            Refused(DropReason.SELECTOR_MISMATCH, "ab", ends[0], 0, ends[1], 0, 47, None)
        ]


V4_HEAD, V6_HEAD = HEADS[4], HEADS[6]


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (V4_HEAD / ICMP(), (1, 0)),
        (V4_HEAD / ICMP(type=0), None),
        (V6_HEAD / ICMPv6EchoRequest(), (58, 0)),
        (V6_HEAD / ICMPv6EchoReply(), None),
        (V6_HEAD / IPv6ExtHdrDestOpt() / ICMPv6EchoRequest(), None),
        (V4_HEAD / TCP(dport=443, flags="S"), (6, 443)),
        (V6_HEAD / TCP(dport=443, flags="SEC"), (6, 443)),
        (V4_HEAD / TCP(dport=443, flags="SA"), None),
        (V4_HEAD / TCP(dport=443, flags="A"), None),
        (V4_HEAD / UDP(dport=53), None),
        (V4_HEAD.copy() / Raw(b""), None),
    ],
)
def test_what_asks_for_an_answer_is_an_opening_once_a_flow(
    inner: Packet, expected: tuple[int, int] | None
) -> None:
    with pair(V4, V6) as gateways:
        arrived = gateways.a_to_b(bytes(inner), bytes(inner))
        assert len(arrived) == 2
        found = gateways.b.samples.take_openings()
        if expected is None:
            assert found == []
            return
        head = V6_HEAD if isinstance(inner, IPv6) else V4_HEAD
        ends = ip_address(head.src), ip_address(head.dst)
        assert found == [Opening("ab", *ends, *expected)]
        assert gateways.b.samples.take_openings() == []


def test_a_scan_leaves_the_first_openings() -> None:
    with pair(V4) as gateways:
        gateways.a_to_b(*[bytes(V4_HEAD / TCP(dport=port, flags="S")) for port in range(1, 30)])
        found = gateways.b.samples.take_openings()
        assert [opening.destination_port for opening in found] == list(range(1, 9))
