"""Inner packets of arbitrary bytes and arbitrary structure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.packet import Packet, Raw

from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.wire import (
    NO_PORT,
    Inner,
    flow_key,
    packet_length,
    parse,
    set_ecn,
    traffic_class,
)
from esp_gw.model import DropReason

ports = st.integers(0, 65535)
addresses4 = st.integers(0, 2**32 - 1)
addresses6 = st.integers(0, 2**128 - 1)
extensions = st.lists(
    st.one_of(
        st.builds(
            lambda size: IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(size))]), st.integers(0, 40)
        ),
        st.just(IPv6ExtHdrHopByHop()),
        st.just(IPv6ExtHdrRouting(addresses=["fd00::9"])),
        st.builds(lambda more: IPv6ExtHdrFragment(m=more), st.integers(0, 1)),
    ),
    max_size=7,
)
transports = st.builds(
    lambda layer, sport, dport: layer(sport=sport, dport=dport),
    st.sampled_from([UDP, TCP]),
    ports,
    ports,
)
# Bytes that begin like packets: purely random ones would rarely pass the first check.
first_octets = st.sampled_from([0x45, 0x46, 0x4F, 0x60, 0x6F])
header_like = st.builds(
    lambda first, length, protocol, rest: (
        bytes([first, 0]) + length.to_bytes(2) + protocol + rest
        if first >> 4 == 4
        else bytes([first]) + bytes(3) + (length % 64).to_bytes(2) + protocol[:1] + rest
    ),
    first_octets,
    st.integers(0, 90),
    st.sampled_from([b"\x00\x00\x00\x00\x40\x11", b"\x2c", b"\x00", b"\x3c", b"\x11", b"\x2b"]),
    st.binary(max_size=100),
)
octet_strings = st.one_of(st.binary(max_size=120), header_like)


def read(octets: bytes, behind: bytes) -> tuple[object, ...] | DropReason:
    """All results of the module for a packet followed by other bytes in its buffer."""
    view = memoryview(bytearray(octets + behind))
    try:
        length = packet_length(view, len(octets))
        return length, flow_key(view), traffic_class(view), *parse(view, length)
    except Drop as drop:
        return drop.reason


@given(octet_strings)
@settings(max_examples=300)
def test_any_bytes_are_parsed_or_malformed_regardless_of_trailing_bytes(octets: bytes) -> None:
    result = read(octets, bytes(64))
    assert result == read(octets, b"\xff" * 64)
    if isinstance(result, DropReason):
        assert result is DropReason.MALFORMED_INNER


@given(octet_strings)
@settings(max_examples=300)
def test_a_packet_with_a_flow_key_is_no_fragment_and_parses(octets: bytes) -> None:
    view = memoryview(bytearray(octets + bytes(64)))
    try:
        length = packet_length(view, len(octets))
    except Drop:
        return
    if flow_key(view) is not None:
        assert not parse(view, length).fragment


@given(st.data())
@settings(max_examples=300)
def test_packets_with_one_flow_key_match_the_same_selectors(data: st.DataObject) -> None:
    """The cache answers for the second packet as a lookup would."""

    def draw(octets: bytes) -> tuple[object, Inner] | None:
        view = memoryview(bytearray(octets))
        try:
            return flow_key(view), parse(view, packet_length(view, len(octets)))
        except Drop:
            return None

    base = bytes(IP(src="1.2.3.4", dst="5.6.7.8") / UDP(sport=1, dport=2))
    if data.draw(st.booleans()):
        base = bytes(IPv6(src="fd00::1", dst="fd00::2") / TCP(sport=1, dport=2))
    changed = bytearray(base)
    for at in data.draw(st.lists(st.integers(0, len(base) - 1), max_size=3)):
        changed[at] = data.draw(st.integers(0, 255))
    one, other = draw(base), draw(bytes(changed))
    if one is None or other is None or other[0] is None:
        return
    same_to_selectors = one[1][:6] == other[1][:6]
    assert (one[0] == other[0]) is same_to_selectors


@given(addresses4, addresses4, transports, st.integers(0, 0x1FFF), st.booleans(), st.binary())
@settings(max_examples=150)
def test_ipv4_packets_of_scapy_are_parsed(
    src: int, dst: int, transport: Packet, offset: int, more: bool, payload: bytes
) -> None:
    head = IP(src=str(IPv4Address(src)), dst=str(IPv4Address(dst)), frag=offset, flags=int(more))
    octets = memoryview(bytearray(bytes(head / transport / Raw(payload))))
    seen = (transport.sport, transport.dport) if not offset else (NO_PORT, NO_PORT)
    inner = parse(octets, packet_length(octets, len(octets)))
    protocol = 17 if isinstance(transport, UDP) else 6
    assert inner == (4, src, dst, protocol, *seen, 20, 20, more or offset > 0)


@given(addresses6, addresses6, extensions, transports, st.binary(max_size=50))
@settings(max_examples=150)
def test_ipv6_packets_of_scapy_are_parsed(
    src: int, dst: int, headers: list[Packet], transport: Packet, payload: bytes
) -> None:
    packet: Packet = IPv6(src=str(IPv6Address(src)), dst=str(IPv6Address(dst)))
    for header in headers:
        packet /= header
    octets = memoryview(bytearray(bytes(packet / transport / Raw(payload))))
    inner = parse(octets, packet_length(octets, len(octets)))
    fragment = any(isinstance(header, IPv6ExtHdrFragment) for header in headers)
    protocol = 17 if isinstance(transport, UDP) else 6
    ports = (transport.sport, transport.dport)
    upper = len(octets) - len(transport) - len(payload)
    assert inner == (6, src, dst, protocol, *ports, 40, upper, fragment)


@given(addresses4, addresses4, st.integers(0, 255), ports, st.integers(1, 3))
def test_the_checksum_stays_valid_when_the_ecn_field_is_set(
    src: int, dst: int, tos: int, ident: int, ecn: int
) -> None:
    packet = IP(src=str(IPv4Address(src)), dst=str(IPv4Address(dst)), tos=tos, id=ident)
    octets = memoryview(bytearray(bytes(packet)))
    set_ecn(octets, ecn)
    packet.tos = tos & 0xFC | ecn
    assert bytes(octets) == bytes(packet)
