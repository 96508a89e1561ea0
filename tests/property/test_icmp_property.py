"""ICMP errors of routers behind a gateway, against scapy's view of what they quote."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet, Raw

from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.icmp import answered
from esp_gw.engine.python.wire import Inner, packet_length, parse
from esp_gw.model import DropReason
from tests.support.rig import V4, V6, pair

HERE = {4: "10.1.0.1", 6: "fd00:1::1"}
FAR = {4: "10.2.0.1", 6: "fd00:2::1"}
ROUTER = {4: "172.16.0.2", 6: "2001:db8:16::2"}
OTHER = {4: "10.9.0.1", 6: "fd00:9::1"}
versions = st.sampled_from([4, 6])
slow = settings(max_examples=150, deadline=None)


def ip(version: int, source: str, target: str) -> Packet:
    return (IP if version == 4 else IPv6)(src=source, dst=target)


@st.composite
def messages(draw: st.DrawFn, version: int) -> Packet:
    """The header of an ICMP error, rarely of another message."""
    if version == 4:
        return ICMP(type=draw(st.sampled_from([3, 4, 11, 12, 3, 11, 0, 5, 8])), code=0)
    kinds = [ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded]
    return draw(st.sampled_from(kinds))(type=draw(st.sampled_from([1, 2, 3, 4, 0, 128, 137])))


def is_error(message: Packet, version: int) -> bool:
    return message.type in ((3, 4, 11, 12) if version == 4 else (1, 2, 3, 4))


@given(st.binary(max_size=120), versions, st.data())
@settings(max_examples=300)
def test_any_bytes_quoted_by_an_error_are_read_or_refused_without_reading_behind_them(
    octets: bytes, version: int, data: st.DataObject
) -> None:
    first = bytes([data.draw(st.sampled_from([0x45, 0x4F, 0x40, 0x60, 0x00]))])
    head = ip(version, ROUTER[version], HERE[version]) / data.draw(messages(version))
    error = with_length(bytes(head) + first + octets)

    def read(behind: bytes) -> Inner | DropReason | None:
        view = memoryview(bytearray(error + behind))
        try:
            length = packet_length(view, len(error))
            return answered(view, length, parse(view, length))
        except Drop as drop:
            return drop.reason

    assert read(b"") == read(b"\x45" * 60)


def with_length(packet: bytes) -> bytes:
    at, size = (2, len(packet)) if packet[0] >> 4 == 4 else (4, len(packet) - 40)
    return packet[:at] + size.to_bytes(2) + packet[at + 2 :]


@given(versions, st.data())
@slow
def test_an_error_passes_both_gateways_exactly_when_what_it_quotes_came_through_the_tunnel(
    version: int, data: st.DataObject
) -> None:
    """From b's host to a's, quoted by a router behind a; its own addresses match nothing."""
    source = data.draw(st.sampled_from([FAR[version]] * 3 + [OTHER[version]]))
    target = data.draw(st.sampled_from([HERE[version]] * 3 + [OTHER[version]]))
    to = data.draw(st.sampled_from([source] * 3 + [FAR[version], OTHER[version]]))
    upper = data.draw(st.sampled_from([UDP(sport=7, dport=9), TCP(sport=7, dport=9), Raw(b"")]))
    quoted = bytes(ip(version, source, target) / upper / Raw(bytes(40)))
    kept = data.draw(st.sampled_from([len(quoted)] * 3 + [48, 44, 43, 28, 24, 23, 20, 19, 0]))
    message = data.draw(messages(version))
    error = bytes(ip(version, ROUTER[version], to) / message / Raw(quoted[:kept]))
    head = 20 if version == 4 else 40
    readable = kept >= head + (4 if upper.name in ("UDP", "TCP") else 0)
    through = (source, target, to) == (FAR[version], HERE[version], FAR[version])
    passes = is_error(message, version) and readable and through
    with pair(V4, V6) as gateways:
        assert gateways.a_to_b(error) == [error] * passes
        # A packet of the same addresses that quotes nothing is carried neither before nor after.
        ping = bytes(ip(version, ROUTER[version], to) / Raw(b"hello"))
        assert gateways.a_to_b(ping) == []
        assert gateways.a_to_b(error) == [error] * passes
