"""Bounds-checked parsing and rewriting of inner IP packets.

No function copies a packet: each works on a memoryview and a length, and never reads past the
length. Sources: RFC 791, RFC 8200, RFC 4301 4.4.1.1.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from esp_gw.engine.python.drop import Drop
from esp_gw.model import DropReason
from esp_gw.protocol import (
    DESTINATION_OPTIONS,
    FRAGMENT_HEADER,
    HOP_BY_HOP,
    IPV4_HEADER_LEN,
    IPV6_HEADER_LEN,
    PORT_PROTOCOLS,
    ROUTING,
)

_EXTENSIONS = frozenset((HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS))
MAX_EXTENSION_HEADERS = 8
"""More than any real packet has; a longer chain is dropped as malformed, not walked."""

NO_PORT = -1

_IPV4 = struct.Struct("!BBHHHBBHII")
_IPV6 = struct.Struct("!IHBB16s16s")
_PORTS = struct.Struct("!HH")
_WORD = 2**64 - 1
_SPREAD_SEED, _SPREAD_FACTOR = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


class Inner(NamedTuple):
    """Header fields that selectors match: addresses as integers, ports -1 if there are none.

    `payload` is the offset after the IPv4 header with its options, or after the fixed IPv6
    header; `upper` is that of the upper-layer header, behind the extension headers. `fragment` is
    true for every fragment, the first included.
    """

    version: int
    src: int
    dst: int
    protocol: int
    src_port: int
    dst_port: int
    payload: int
    upper: int
    fragment: bool


def packet_length(packet: memoryview, available: int) -> int:
    """Return the length in bytes of the IP packet at the start of `packet`, at most `available`.

    Raises Drop(MALFORMED_INNER) if the header doesn't fit or is inconsistent.
    """
    if available >= IPV4_HEADER_LEN:
        version = packet[0] >> 4
        if version == 4:
            length = packet[2] << 8 | packet[3]
            header = (packet[0] & 15) << 2
            if IPV4_HEADER_LEN <= header <= length <= available:
                return length
        elif version == 6 and available >= IPV6_HEADER_LEN:
            length = IPV6_HEADER_LEN + (packet[4] << 8 | packet[5])
            if length <= available:
                return length
    raise Drop(DropReason.MALFORMED_INNER)


def flow_key(packet: memoryview) -> tuple[int, bytes] | None:
    """Return protocol, addresses and ports as a flow cache key.

    Returns None for a packet whose ports are not at a fixed offset (options, extension headers,
    fragments) or whose transport header is truncated; such packets are parsed each time. The
    packet must have passed packet_length, so that its IP header is complete.
    """
    first = packet[0]
    if first == 0x45:
        protocol = packet[9]
        if packet[6] & 0x3F or packet[7]:
            return None
        if protocol not in PORT_PROTOCOLS:
            return protocol, bytes(packet[12:20])
        if packet[2] or packet[3] >= IPV4_HEADER_LEN + 4:
            return protocol, bytes(packet[12:24])
    elif first >> 4 == 6:
        protocol = packet[6]
        if protocol in _EXTENSIONS:
            return None
        if protocol not in PORT_PROTOCOLS:
            return protocol, bytes(packet[8:40])
        if packet[4] or packet[5] >= 4:
            return protocol, bytes(packet[8:44])
    return None


def address_key(packet: memoryview) -> tuple[int, bytes]:
    """Return the addresses alone as a key, the same for all fragments of a packet."""
    return 0, bytes(packet[12:20] if packet[0] >> 4 == 4 else packet[8:40])


def spread(key: tuple[int, bytes]) -> int:
    """Return the 64-bit hash that spreads flows over the SAs of a tunnel.

    It is the same for both directions of a flow and in both engines. `key` comes from flow_key or
    address_key.
    """
    protocol, data = key
    version, size = (4, 4) if len(data) < 32 else (6, 16)
    ports = data[2 * size :]
    low, high = sorted(
        [
            (int.from_bytes(data[:size]), int.from_bytes(ports[:2])),
            (int.from_bytes(data[size : 2 * size]), int.from_bytes(ports[2:])),
        ]
    )
    kind = version << 40 | protocol << 32 | low[1] << 16 | high[1]
    mixed = _SPREAD_SEED
    for word in (kind, low[0] >> 64, low[0], high[0] >> 64, high[0]):
        mixed ^= word & _WORD
        product = mixed * _SPREAD_FACTOR
        mixed = (product ^ product >> 64 ^ mixed << 32 ^ mixed >> 32) & _WORD
    return mixed


def parse(packet: memoryview, length: int) -> Inner:
    """Parse the headers of a packet of `length` bytes that has passed packet_length.

    Raises Drop(MALFORMED_INNER) for a broken extension header or truncated ports.
    """
    if packet[0] >> 4 == 4:
        return _parse_ipv4(packet, length)
    return _parse_ipv6(packet, length)


def _parse_ipv4(packet: memoryview, length: int) -> Inner:
    first, _, _, _, fragment, _, protocol, _, src, dst = _IPV4.unpack_from(packet)
    header = (first & 15) << 2
    offset = fragment & 0x1FFF
    src_port, dst_port = (NO_PORT, NO_PORT) if offset else _ports(packet, header, length, protocol)
    is_fragment = bool(fragment & 0x3FFF)
    return Inner(4, src, dst, protocol, src_port, dst_port, header, header, is_fragment)


def _parse_ipv6(packet: memoryview, length: int) -> Inner:
    _, _, protocol, _, src, dst = _IPV6.unpack_from(packet)
    offset, fragment, first = IPV6_HEADER_LEN, False, True
    for _ in range(MAX_EXTENSION_HEADERS):
        if protocol not in _EXTENSIONS:
            break
        if offset + 8 > length:
            raise Drop(DropReason.MALFORMED_INNER)
        following = packet[offset]
        if protocol == FRAGMENT_HEADER:
            fragment = True
            first = not (packet[offset + 2] << 8 | packet[offset + 3]) & 0xFFF8
            offset += 8
        else:
            offset += (packet[offset + 1] + 1) * 8
        protocol = following
        if not first:
            break
    else:
        if protocol in _EXTENSIONS:
            raise Drop(DropReason.MALFORMED_INNER)
    if offset > length:
        raise Drop(DropReason.MALFORMED_INNER)
    src_port, dst_port = _ports(packet, offset, length, protocol) if first else (NO_PORT, NO_PORT)
    return Inner(
        6,
        int.from_bytes(src),
        int.from_bytes(dst),
        protocol,
        src_port,
        dst_port,
        IPV6_HEADER_LEN,
        offset,
        fragment,
    )


def _ports(packet: memoryview, offset: int, length: int, protocol: int) -> tuple[int, int]:
    if protocol not in PORT_PROTOCOLS:
        return NO_PORT, NO_PORT
    if offset + 4 > length:
        raise Drop(DropReason.MALFORMED_INNER)
    ports: tuple[int, int] = _PORTS.unpack_from(packet, offset)
    return ports


def traffic_class(packet: memoryview) -> int:
    """Return DSCP and ECN as one byte (RFC 2474, RFC 3168)."""
    if packet[0] >> 4 == 4:
        return packet[1]
    return (packet[0] & 15) << 4 | packet[1] >> 4


def set_ecn(packet: memoryview, ecn: int) -> None:
    """Set the ECN field of a packet (RFC 3168); the IPv4 checksum is updated (RFC 1624)."""
    if packet[0] >> 4 == 6:
        packet[1] = packet[1] & 0xCF | ecn << 4
        return
    before = packet[0] << 8 | packet[1]
    packet[1] = packet[1] & 0xFC | ecn
    total = (~(packet[10] << 8 | packet[11]) & 0xFFFF) + (~before & 0xFFFF)
    total += packet[0] << 8 | packet[1]
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    packet[10], packet[11] = total >> 8, total & 0xFF


def checksum(header: memoryview) -> int:
    """Return the Internet checksum of a header with an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(header) // 2}H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def write_ipv4_header(
    out: memoryview, src: int, dst: int, protocol: int, payload_len: int, tos: int
) -> None:
    """Write a 20-byte IPv4 header for a transport-mode payload: DF set, TTL 64."""
    length = IPV4_HEADER_LEN + payload_len
    _IPV4.pack_into(out, 0, 0x45, tos, length, 0, 0x4000, 64, protocol, 0, src, dst)
    total = checksum(out[:IPV4_HEADER_LEN])
    out[10], out[11] = total >> 8, total & 0xFF


def write_ipv6_header(
    out: memoryview, src: int, dst: int, protocol: int, payload_len: int, tos: int
) -> None:
    """Write a 40-byte IPv6 header for a transport-mode payload: hop limit 64."""
    first = 6 << 28 | tos << 20
    _IPV6.pack_into(out, 0, first, payload_len, protocol, 64, src.to_bytes(16), dst.to_bytes(16))
