"""Reassembly of fragments that the local kernel made, before transport mode seals the whole.

RFC 4301 4.1 lets transport mode protect whole datagrams only, while the kernel fragments a large
datagram before the TUN sees it. The fragments come from this host, in order or nearly so.
"""

from __future__ import annotations

import struct

from esp_gw.wire import FRAGMENT_HEADER, IPV6_HEADER_LEN

MAX_DATAGRAMS = 16
MAX_DATAGRAM_LEN = 65535
TIMEOUT = 2.0
"""Seconds after which an unfinished datagram is given up; a local kernel sends all at once."""


class _Datagram:
    __slots__ = ("began", "header", "next_header", "parts", "received", "total")

    def __init__(self, now: float) -> None:
        self.began = now
        self.parts: dict[int, bytes] = {}
        self.received = 0
        self.total = -1
        self.header = b""
        self.next_header = 0


class Reassembler:
    """Collects fragments of at most 16 datagrams; the oldest makes room for a new one."""

    def __init__(self) -> None:
        self._datagrams: dict[bytes, _Datagram] = {}

    def add(self, packet: memoryview, length: int, now: float) -> bytes | None:
        """Take a fragment; return the whole packet when it was the last one missing.

        An overlap or a size that contradicts another fragment forgets the datagram (RFC 5722).
        """
        fragment = _read_ipv4(packet) if packet[0] >> 4 == 4 else _read_ipv6(packet, length)
        if fragment is None:
            return None
        key, start, more, offset, next_header = fragment
        datagram = self._datagrams.get(key)
        if datagram is None or now - datagram.began > TIMEOUT:
            self._datagrams.pop(key, None)
            if len(self._datagrams) >= MAX_DATAGRAMS:
                self._datagrams.pop(next(iter(self._datagrams)))
            datagram = self._datagrams[key] = _Datagram(now)
        part = bytes(packet[start:length])
        end = offset + len(part)
        too_long = end > MAX_DATAGRAM_LEN - IPV6_HEADER_LEN
        if too_long or (more and (len(part) % 8 or not part)) or offset in datagram.parts:
            del self._datagrams[key]
            return None
        datagram.parts[offset] = part
        datagram.received += len(part)
        if not more:
            datagram.total = end
        if offset == 0:
            datagram.header = bytes(packet[: _header_len(packet)])
            datagram.next_header = next_header
        if datagram.received != datagram.total:
            return None
        del self._datagrams[key]
        return _join(datagram)


def _header_len(packet: memoryview) -> int:
    return (packet[0] & 15) << 2 if packet[0] >> 4 == 4 else IPV6_HEADER_LEN


def _read_ipv4(packet: memoryview) -> tuple[bytes, int, bool, int, int]:
    field = packet[6] << 8 | packet[7]
    key = bytes(packet[4:6]) + bytes(packet[9:10]) + bytes(packet[12:20])
    return key, (packet[0] & 15) << 2, bool(field & 0x2000), (field & 0x1FFF) * 8, packet[9]


def _read_ipv6(packet: memoryview, length: int) -> tuple[bytes, int, bool, int, int] | None:
    at = IPV6_HEADER_LEN
    if packet[6] != FRAGMENT_HEADER or at + 8 > length:
        return None
    field = packet[at + 2] << 8 | packet[at + 3]
    key = bytes(packet[at + 4 : at + 8]) + bytes(packet[8:40])
    return key, at + 8, bool(field & 1), field & 0xFFF8, packet[at]


def _join(datagram: _Datagram) -> bytes | None:
    payload = bytearray()
    for offset in sorted(datagram.parts):
        if offset != len(payload):
            return None
        payload += datagram.parts[offset]
    header = bytearray(datagram.header)
    if header[0] >> 4 == 4:
        if len(header) + len(payload) > MAX_DATAGRAM_LEN:
            return None
        struct.pack_into("!H", header, 2, len(header) + len(payload))
        struct.pack_into("!H", header, 6, 0)
    else:
        header[6] = datagram.next_header
        struct.pack_into("!H", header, 4, len(payload))
    return bytes(header + payload)
