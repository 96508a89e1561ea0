"""ICMP errors on our ESP packets, which say why a peer is not reached.

An error is believed if it quotes a packet that we send; it explains a loss and changes nothing.

Sources: RFC 792, RFC 4443 3, RFC 5927, linux/icmp.h, linux/icmpv6.h.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from esp_gw.model import IPAddress
from esp_gw.protocol import (
    IPPROTO_ESP,
    IPPROTO_UDP,
    IPV4_HEADER_LEN,
    IPV6_HEADER_LEN,
    UDP_HEADER_LEN,
)

UNREACHABLE_4 = 3
UNREACHABLE_6, PARAMETER_PROBLEM_6 = 1, 4
_UNKNOWN_NEXT_HEADER = 1
_ICMP_HEADER_LEN = 8


class What(enum.StrEnum):
    """Meaning of an error, the same in both IP versions."""

    NETWORK = "network"
    HOST = "host"
    PROTOCOL = "protocol"
    PORT = "port"
    PROHIBITED = "prohibited"


_CODES_4 = {
    0: What.NETWORK,
    1: What.HOST,
    2: What.PROTOCOL,
    3: What.PORT,
    9: What.PROHIBITED,
    10: What.PROHIBITED,
    13: What.PROHIBITED,
}
_CODES_6 = {0: What.NETWORK, 1: What.PROHIBITED, 3: What.HOST, 4: What.PORT, 5: What.PROHIBITED}


@dataclass(frozen=True, slots=True)
class Unreachable:
    """An error of `source` on a packet from `local` to `remote`; `remote_port` is 0 without UDP.

    `protocol` is 17 or 50. `spi` is None if the quoted part of the packet is too short.
    """

    source: IPAddress
    what: What
    local: IPAddress
    remote: IPAddress
    protocol: int
    remote_port: int
    spi: int | None = None


def parse_error(version: int, message: bytes, source: IPAddress) -> Unreachable | None:
    """Return what a raw ICMP socket received, or None if it is no error on UDP or ESP.

    An IPv4 message begins with its IP header, an IPv6 one with the ICMP header.
    """
    if version == 4:
        if not message:
            return None
        message = message[(message[0] & 15) << 2 :]
    if len(message) < _ICMP_HEADER_LEN:
        return None
    kind, code = message[0], message[1]
    if version == 4:
        what = _CODES_4.get(code) if kind == UNREACHABLE_4 else None
    elif kind == PARAMETER_PROBLEM_6:
        what = What.PROTOCOL if code == _UNKNOWN_NEXT_HEADER else None
    else:
        what = _CODES_6.get(code) if kind == UNREACHABLE_6 else None
    if what is None:
        return None
    return _quoted(version, message[_ICMP_HEADER_LEN:], source, what)


def _quoted(version: int, packet: bytes, source: IPAddress, what: What) -> Unreachable | None:
    local: IPAddress
    remote: IPAddress
    if len(packet) < (IPV4_HEADER_LEN if version == 4 else IPV6_HEADER_LEN):
        return None
    if packet[0] >> 4 != version:
        return None
    if version == 4:
        protocol, start = packet[9], (packet[0] & 15) << 2
        local, remote = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    else:
        protocol, start = packet[6], IPV6_HEADER_LEN
        local, remote = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    if protocol == IPPROTO_ESP:
        return Unreachable(source, what, local, remote, protocol, 0, _spi(packet, start))
    if protocol != IPPROTO_UDP or len(packet) < start + 4:
        return None
    (port,) = struct.unpack_from("!H", packet, start + 2)
    spi = _spi(packet, start + UDP_HEADER_LEN)
    return Unreachable(source, what, local, remote, protocol, port, spi)


def _spi(packet: bytes, start: int) -> int | None:
    return int.from_bytes(packet[start : start + 4]) if len(packet) >= start + 4 else None
