"""ICMP errors: the packet that one quotes, and the one that says how large a packet may be.

By the quoted packet the error's SA is found (RFC 4301 6.2).

Sources: RFC 792, RFC 1122 3.2.2, RFC 1191 4, RFC 1812 4.3.2.3, RFC 4443.
"""

from __future__ import annotations

import struct

from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.fragments import fragment_of
from esp_gw.engine.python.wire import (
    Inner,
    checksum,
    parse,
    write_ipv4_header,
    write_ipv6_header,
)
from esp_gw.protocol import IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_HEADER_LEN, IPV6_HEADER_LEN

_HEADER_LEN = 8
_MAX_ERROR = {4: 576, 6: 1280}
"""Most bytes of an ICMP error, IP header included (RFC 1812 4.3.2.3, RFC 4443 2.4)."""
_TOS = 0xC0
"""Internetwork control (RFC 1812 4.3.2.5)."""
_REDIRECT_4, _REDIRECT_6, _FIRST_INFORMATIONAL_6 = 5, 137, 128
_ERRORS = {
    4: (IPPROTO_ICMP, frozenset((3, 4, 11, 12))),
    6: (IPPROTO_ICMPV6, frozenset((1, 2, 3, 4))),
}


def answered(packet: memoryview, length: int, inner: Inner) -> Inner | None:
    """Return the selector fields of the flow that an ICMP error answers, in the error's direction.

    They are those of the quoted packet, reversed. None if the packet is no whole ICMP error, or
    doesn't go to the source of what it quotes. `inner` is what parse returned for the packet.
    """
    protocol, errors = _ERRORS[inner.version]
    start = inner.upper + _HEADER_LEN
    if inner.protocol != protocol or inner.fragment or start >= length:
        return None
    if packet[inner.upper] not in errors or packet[start] >> 4 != inner.version:
        return None
    quoted = packet[start:length]
    header = (quoted[0] & 15) << 2 if inner.version == 4 else IPV6_HEADER_LEN
    if not IPV4_HEADER_LEN <= header <= len(quoted):
        return None
    try:
        sent = parse(quoted, len(quoted))
    except Drop:
        return None
    if sent.src != inner.dst:
        return None
    return sent._replace(src=sent.dst, dst=sent.src, src_port=sent.dst_port, dst_port=sent.src_port)


def too_big(packet: memoryview, length: int, mtu: int) -> bytes | None:
    """Return the ICMP error that tells the sender of a packet the largest that passes, in bytes.

    Its source is the packet's destination, whose replies come by the same way. None where no error
    may be sent (RFC 1122 3.2.2, RFC 4443 2.4): on an ICMP error, a later fragment, from or to what
    is no single host.
    """
    try:
        inner = parse(packet, length)
    except Drop:
        return None
    if not (_is_host(inner.version, inner.src) and _is_host(inner.version, inner.dst)):
        return None
    if _is_error(packet, length, inner):
        return None
    if inner.fragment:
        fragment = fragment_of(packet, inner)
        if fragment is None or not fragment.is_first:
            return None
    if inner.version == 4:
        return _too_big_4(packet[:length], inner, mtu)
    return _too_big_6(packet[:length], inner, mtu)


def _too_big_4(packet: memoryview, inner: Inner, mtu: int) -> bytes:
    quoted = packet[: _MAX_ERROR[4] - IPV4_HEADER_LEN - _HEADER_LEN]
    message = bytearray(struct.pack("!BBHHH", 3, 4, 0, 0, mtu)) + quoted
    struct.pack_into("!H", message, 2, _checksum(message))
    header = memoryview(bytearray(IPV4_HEADER_LEN))
    write_ipv4_header(header, inner.dst, inner.src, IPPROTO_ICMP, len(message), _TOS)
    return bytes(header) + message


def _too_big_6(packet: memoryview, inner: Inner, mtu: int) -> bytes:
    quoted = packet[: _MAX_ERROR[6] - IPV6_HEADER_LEN - _HEADER_LEN]
    message = bytearray(struct.pack("!BBHI", 2, 0, 0, mtu)) + quoted
    header = memoryview(bytearray(IPV6_HEADER_LEN))
    write_ipv6_header(header, inner.dst, inner.src, IPPROTO_ICMPV6, len(message), 0)
    # RFC 8200 8.1
    pseudo_header = bytes(header[8:40]) + struct.pack("!II", len(message), IPPROTO_ICMPV6)
    struct.pack_into("!H", message, 2, _checksum(pseudo_header + message))
    return bytes(header) + message


def _checksum(data: bytes | bytearray) -> int:
    return checksum(memoryview(data + bytes(len(data) % 2)))


def _is_host(version: int, address: int) -> bool:
    """Return True for the address of a single host: no multicast, broadcast or loopback one."""
    if version == 4:
        return 0 < address >> 24 < 224 and address >> 24 != 127
    return address > 1 and address >> 120 != 0xFF


def _is_error(packet: memoryview, length: int, inner: Inner) -> bool:
    """Return True for an ICMP error or a redirect, and where the packet ends before its type."""
    if inner.protocol != (IPPROTO_ICMP if inner.version == 4 else IPPROTO_ICMPV6):
        return False
    if inner.upper >= length:
        return True
    kind = packet[inner.upper]
    if inner.version == 4:
        return kind == _REDIRECT_4 or kind in _ERRORS[4][1]
    return kind == _REDIRECT_6 or kind < _FIRST_INFORMATIONAL_6
