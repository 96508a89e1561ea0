"""Parsing and rewriting of inner packets, compared with scapy's packets."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.wire import (
    MAX_EXTENSION_HEADERS,
    NO_PORT,
    Inner,
    checksum,
    flow_key,
    packet_length,
    parse,
    set_ecn,
    traffic_class,
    write_ipv4_header,
    write_ipv6_header,
)
from esp_gw.model import DropReason

V4 = {"src": "10.1.0.1", "dst": "10.2.0.2"}
V6 = {"src": "fd00:1::1", "dst": "fd00:2::2"}
LONG_OPTIONS = [PadN(optdata=bytes(20))]


def view(packet: Packet | bytes) -> memoryview:
    return memoryview(bytearray(bytes(packet)))


def parsed(packet: Packet | bytes) -> Inner:
    octets = view(packet)
    assert packet_length(octets, len(octets)) == len(octets)
    return parse(octets, len(octets))


def is_malformed(packet: Packet | bytes) -> bool:
    try:
        parsed(packet)
    except Drop as drop:
        assert drop.reason is DropReason.MALFORMED_INNER
        return True
    return False


IPV6_CHAINS = {
    "none": IPv6(**V6),
    "hop-by-hop": IPv6(**V6) / IPv6ExtHdrHopByHop(options=LONG_OPTIONS),
    "routing": IPv6(**V6) / IPv6ExtHdrRouting(addresses=["fd00:3::1", "fd00:3::2"]),
    "destination": IPv6(**V6) / IPv6ExtHdrDestOpt(options=LONG_OPTIONS),
    "all": IPv6(**V6)
    / IPv6ExtHdrHopByHop()
    / IPv6ExtHdrDestOpt()
    / IPv6ExtHdrRouting(addresses=["fd00:3::1"])
    / IPv6ExtHdrFragment(id=7)
    / IPv6ExtHdrDestOpt(options=LONG_OPTIONS),
}
IPV4_HEADS = {
    "none": IP(**V4),
    "options": IP(**V4, options=[IPOption(b"\x94\x04\x00\x00")]),
    "most options": IP(**V4, options=[IPOption(b"\x01")] * 40),
    "first fragment": IP(**V4, flags="MF"),
    "don't fragment": IP(**V4, flags="DF"),
}
HEADS = {f"v4 {name}": head for name, head in IPV4_HEADS.items()} | {
    f"v6 {name}": head for name, head in IPV6_CHAINS.items()
}
TRANSPORTS = {
    6: TCP(sport=40000, dport=443),
    17: UDP(sport=53, dport=65535),
    132: SCTP(sport=9, dport=10),
    33: Raw(b"\x00\x01\xff\xfe" + bytes(12)),
    136: Raw(b"\x12\x34\x56\x78" + bytes(4)),
}
PORTS = {6: (40000, 443), 17: (53, 65535), 132: (9, 10), 33: (1, 0xFFFE), 136: (0x1234, 0x5678)}


def with_protocol(head: Packet, protocol: int, payload: Packet) -> Packet:
    """Return `head` / `payload` with a protocol number that scapy might not set by itself."""
    packet = head.copy()
    last = packet.lastlayer()
    setattr(last, "proto" if isinstance(last, IP) else "nh", protocol)
    return packet / payload


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("protocol", TRANSPORTS)
def test_ports_are_found_behind_any_headers(head: Packet, protocol: int) -> None:
    inner = parsed(with_protocol(head, protocol, TRANSPORTS[protocol]))
    assert (inner.protocol, inner.src_port, inner.dst_port) == (protocol, *PORTS[protocol])
    assert inner.version == head.version
    assert (inner.src, inner.dst) == (int(ip_address(head.src)), int(ip_address(head.dst)))


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_protocol_without_ports_has_none(head: Packet) -> None:
    inner = parsed(with_protocol(head, 1, ICMP()))
    assert (inner.protocol, inner.src_port, inner.dst_port) == (1, NO_PORT, NO_PORT)


@pytest.mark.parametrize(("options", "length"), [(0, 20), (4, 24), (40, 60)])
def test_the_payload_begins_behind_the_ipv4_options(options: int, length: int) -> None:
    packet = IP(**V4, options=[IPOption(b"\x01")] * options) / UDP()
    assert parsed(packet).payload == length


def test_the_payload_begins_behind_the_fixed_ipv6_header() -> None:
    assert parsed(IPv6(**V6) / IPv6ExtHdrHopByHop() / UDP()).payload == 40


# Fragments


@pytest.mark.parametrize(
    ("field", "fragment", "ports"),
    [
        ({"flags": "MF"}, True, True),
        ({"flags": "MF", "frag": 1}, True, False),
        ({"frag": 1}, True, False),
        ({"frag": 0x1FFF}, True, False),
        ({"flags": "DF"}, False, True),
        ({}, False, True),
    ],
)
def test_ipv4_fragments_have_ports_in_the_first_only(
    field: dict[str, object], fragment: bool, ports: bool
) -> None:
    inner = parsed(IP(**V4, **field) / UDP(sport=1, dport=2))
    assert inner.fragment is fragment
    assert (inner.src_port, inner.dst_port) == ((1, 2) if ports else (NO_PORT, NO_PORT))
    assert inner.protocol == 17


@pytest.mark.parametrize(
    ("field", "ports"),
    [({"m": 1}, True), ({}, True), ({"offset": 1}, False), ({"m": 1, "offset": 0x1FFF}, False)],
)
def test_ipv6_fragments_have_ports_in_the_first_only(field: dict[str, int], ports: bool) -> None:
    inner = parsed(IPv6(**V6) / IPv6ExtHdrFragment(**field) / UDP(sport=1, dport=2))
    assert inner.fragment
    assert (inner.src_port, inner.dst_port) == ((1, 2) if ports else (NO_PORT, NO_PORT))
    assert inner.protocol == 17


def test_what_looks_like_a_header_in_a_later_fragment_is_not_read() -> None:
    fragment = IPv6ExtHdrFragment(offset=9, nh=60) / Raw(b"\xff" * 8)
    inner = parsed(IPv6(**V6) / fragment)
    assert (inner.protocol, inner.src_port) == (60, NO_PORT)


# Packets that contradict themselves


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x45",
        bytes(IP(**V4))[:19],
        b"\x44" + bytes(IP(**V4))[1:],
        b"\x46" + bytes(IP(**V4, len=20))[1:],
        b"\x55" + bytes(IP(**V4))[1:],
        bytes(IP(**V4, len=21)),
        bytes(IP(**V4, len=19)),
        bytes(IPv6(**V6))[:39],
        bytes(IPv6(**V6, plen=1)),
        bytes(40),
    ],
)
def test_a_header_that_contradicts_the_packet_is_malformed(octets: bytes) -> None:
    with pytest.raises(Drop) as caught:
        packet_length(view(octets + bytes(100)), len(octets))
    assert caught.value.reason is DropReason.MALFORMED_INNER


@pytest.mark.parametrize("packet", [IP(**V4) / UDP(), IPv6(**V6) / UDP()], ids=["v4", "v6"])
def test_octets_behind_a_packet_are_not_counted(packet: Packet) -> None:
    assert packet_length(view(bytes(packet) + bytes(33)), len(packet) + 33) == len(packet)


@pytest.mark.parametrize("protocol", TRANSPORTS)
@pytest.mark.parametrize(
    "head", [HEADS["v4 none"], HEADS["v4 options"], HEADS["v6 none"], HEADS["v6 all"]]
)
def test_cut_off_ports_are_malformed(head: Packet, protocol: int) -> None:
    cut_off = with_protocol(head, protocol, Raw(bytes(3)))
    assert is_malformed(cut_off)
    assert flow_key(view(bytes(cut_off) + bytes(40))) is None
    assert not is_malformed(with_protocol(head, protocol, Raw(bytes(4))))


@pytest.mark.parametrize("kind", [0, 43, 60])
def test_an_extension_header_longer_than_the_packet_is_malformed(kind: int) -> None:
    assert is_malformed(IPv6(**V6, nh=kind) / Raw(b"\x3b\x01" + bytes(13)))
    assert not is_malformed(IPv6(**V6, nh=kind) / Raw(b"\x3b\x01" + bytes(14)))


@pytest.mark.parametrize("kind", [0, 43, 44, 60])
def test_a_cut_off_extension_header_is_malformed(kind: int) -> None:
    assert is_malformed(IPv6(**V6, nh=kind) / Raw(b"\x3b" + bytes(6)))


@pytest.mark.parametrize(("more", "malformed"), [(0, False), (1, True)])
def test_a_chain_of_too_many_extension_headers_is_malformed(more: int, malformed: bool) -> None:
    headers = (b"\x3c\x00" + bytes(6)) * (MAX_EXTENSION_HEADERS + more - 1) + b"\x11" + bytes(7)
    packet = IPv6(**V6, nh=60) / Raw(headers + b"\x00\x01\x00\x02")
    assert is_malformed(packet) is malformed
    if not malformed:
        assert parsed(packet).dst_port == 2


# The key of the flow cache


@pytest.mark.parametrize(
    "head", [head for name, head in HEADS.items() if name not in ("v4 none", "v6 none")]
)
def test_packets_whose_ports_are_not_in_a_fixed_place_have_no_flow_key(head: Packet) -> None:
    packet = with_protocol(head, 17, UDP(sport=1, dport=2))
    fixed = isinstance(head, IP) and head.flags == "DF"
    assert (flow_key(view(packet)) is None) is not fixed


@pytest.mark.parametrize("head", [HEADS["v4 none"], HEADS["v6 none"]], ids=["v4", "v6"])
def test_flows_that_differ_in_anything_a_selector_sees_have_different_keys(head: Packet) -> None:
    other = head.copy()
    other.src, reversed_head = head.dst, head.copy()
    reversed_head.src, reversed_head.dst = head.dst, head.src
    packets = [
        with_protocol(head, 17, UDP(sport=1, dport=2)),
        with_protocol(head, 17, UDP(sport=2, dport=1)),
        with_protocol(head, 17, UDP(sport=1, dport=3)),
        with_protocol(head, 6, TCP(sport=1, dport=2)),
        with_protocol(head, 1, ICMP()),
        with_protocol(head, 50, Raw(bytes(8))),
        with_protocol(other, 17, UDP(sport=1, dport=2)),
        with_protocol(reversed_head, 17, UDP(sport=1, dport=2)),
    ]
    keys = [flow_key(view(packet)) for packet in packets]
    assert None not in keys
    assert len(set(keys)) == len(packets)


@pytest.mark.parametrize("head", [HEADS["v4 none"], HEADS["v6 none"]], ids=["v4", "v6"])
def test_packets_of_one_flow_have_one_key(head: Packet) -> None:
    later = head.copy()
    setattr(later, "ttl" if isinstance(head, IP) else "hlim", 3)
    one, other = UDP(sport=1, dport=2) / b"short", UDP(sport=1, dport=2) / bytes(300)
    assert flow_key(view(with_protocol(head, 17, one))) == flow_key(
        view(with_protocol(later, 17, other))
    )


# Traffic class and ECN


@pytest.mark.parametrize("tos", [0, 1, 2, 3, 0x48, 0xB9, 0xFF])
def test_the_traffic_class_is_read(tos: int) -> None:
    assert traffic_class(view(IP(**V4, tos=tos))) == tos
    assert traffic_class(view(IPv6(**V6, tc=tos, fl=0xFFFFF))) == tos


@pytest.mark.parametrize("ecn", [1, 2, 3])
@pytest.mark.parametrize("tos", [0, 1, 2, 0x48 | 2, 0xFC | 1, 0xFF])
def test_setting_the_ecn_field_changes_nothing_else(tos: int, ecn: int) -> None:
    for ident in (0, 1, 0x7777, 0xFFFF):
        packet = IP(**V4, tos=tos, id=ident) / UDP()
        octets = view(packet)
        set_ecn(octets, ecn)
        expected = packet.copy()
        expected.tos = tos & 0xFC | ecn
        assert bytes(octets) == bytes(expected)
    packet = IPv6(**V6, tc=tos, fl=0xABCDE) / UDP()
    octets = view(packet)
    set_ecn(octets, ecn)
    packet.tc = tos & 0xFC | ecn
    assert bytes(octets) == bytes(packet)


# Headers that are written


@pytest.mark.parametrize("tos", [0, 0xB9])
@pytest.mark.parametrize("length", [0, 1, 1400, 65515])
def test_the_ipv4_header_of_transport_mode_is_right(tos: int, length: int) -> None:
    src, dst = (int(ip_address(V4[name])) for name in ("src", "dst"))
    out = memoryview(bytearray(b"\xaa" * 24))
    write_ipv4_header(out, src, dst, 17, length, tos)
    expected = IP(**V4, tos=tos, len=20 + length, id=0, flags="DF", ttl=64, proto=17)
    assert bytes(out) == bytes(expected) + b"\xaa" * 4


@pytest.mark.parametrize("tos", [0, 0xB9])
@pytest.mark.parametrize("length", [0, 1, 1400, 65495])
def test_the_ipv6_header_of_transport_mode_is_right(tos: int, length: int) -> None:
    src, dst = (int(ip_address(V6[name])) for name in ("src", "dst"))
    out = memoryview(bytearray(b"\xaa" * 44))
    write_ipv6_header(out, src, dst, 17, length, tos)
    expected = IPv6(**V6, tc=tos, plen=length, hlim=64, nh=17)
    assert bytes(out) == bytes(expected) + b"\xaa" * 4


@pytest.mark.parametrize("words", [b"", bytes(20), b"\xff" * 60, b"\xff\xff\x00\x01"])
def test_a_header_with_its_checksum_sums_to_zero(words: bytes) -> None:
    check = checksum(memoryview(words))
    assert checksum(memoryview(words + check.to_bytes(2))) == 0
