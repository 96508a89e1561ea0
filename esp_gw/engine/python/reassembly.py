"""Reassembly of locally generated fragments, before transport mode seals the whole datagram.

RFC 4301 4.1 lets transport mode protect whole datagrams only, but the kernel fragments a large
datagram before it reaches the TUN. The fragments come from this host, in order or nearly so.
"""

from __future__ import annotations

import struct

from esp_gw.engine.python.drop import Drop
from esp_gw.model import DropReason
from esp_gw.protocol import FRAGMENT_HEADER, IPV6_HEADER_LEN

MAX_DATAGRAMS = 16
MAX_FRAGMENTS = 256
"""Fragments of one datagram: 64 KiB over an MTU of 300 bytes."""
MAX_DATAGRAM_LEN = 65535
TIMEOUT = 2.0
"""Seconds after which an incomplete datagram is dropped; a local kernel sends all at once."""


class _Datagram:
    __slots__ = ("began", "header", "next_header", "parts", "received", "total")

    def __init__(self, now: float) -> None:
        self.began = now
        self.parts: dict[int, bytes] = {}
        self.received = 0
        self.total = -1
        self.header = b""
        self.next_header = 0

    def accepts(self, offset: int, part: bytes, more: bool) -> bool:
        """Return True if a fragment is consistent with those received so far."""
        end = offset + len(part)
        if not part or (more and len(part) % 8) or end > MAX_DATAGRAM_LEN - IPV6_HEADER_LEN:
            return False
        if end > self.total >= 0 or len(self.parts) >= MAX_FRAGMENTS:
            return False
        return not any(
            offset < start + len(other) and (start < end or not more)
            for start, other in self.parts.items()
        )


class Reassembler:
    """Reassembles at most MAX_DATAGRAMS datagrams at a time; the oldest is evicted for a new one.

    `dropped` counts the fragments that were accepted but never became part of a whole packet.
    """

    def __init__(self) -> None:
        self._datagrams: dict[bytes, _Datagram] = {}
        self.dropped = 0

    def add(self, packet: memoryview, length: int, now: float) -> bytes | None:
        """Add a fragment; return the whole packet if it was the last one missing, else None.

        A fragment that overlaps or contradicts another discards the datagram (RFC 5722). Raises
        Drop(UNSUPPORTED_HEADER) if the fragment header isn't the first extension header.
        """
        fragment = _read_ipv4(packet) if packet[0] >> 4 == 4 else _read_ipv6(packet)
        key, start, more, offset, next_header = fragment
        self._forget_stale(now)
        datagram = self._datagrams.get(key)
        if datagram is None:
            if len(self._datagrams) >= MAX_DATAGRAMS:
                self._forget(next(iter(self._datagrams)))
            datagram = self._datagrams[key] = _Datagram(now)
        part = bytes(packet[start:length])
        if not datagram.accepts(offset, part, more):
            self.dropped += 1
            self._forget(key)
            return None
        datagram.parts[offset] = part
        datagram.received += len(part)
        if not more:
            datagram.total = offset + len(part)
        if offset == 0:
            datagram.header = bytes(packet[: _header_len(packet)])
            datagram.next_header = next_header
        if datagram.received != datagram.total:
            return None
        whole = _join(datagram)
        if whole is None:
            self._forget(key)
        else:
            del self._datagrams[key]
        return whole

    def _forget_stale(self, now: float) -> None:
        while self._datagrams:
            key, datagram = next(iter(self._datagrams.items()))
            if now - datagram.began <= TIMEOUT:
                return
            self._forget(key)

    def _forget(self, key: bytes) -> None:
        self.dropped += len(self._datagrams.pop(key).parts)


def _header_len(packet: memoryview) -> int:
    return (packet[0] & 15) << 2 if packet[0] >> 4 == 4 else IPV6_HEADER_LEN


def _read_ipv4(packet: memoryview) -> tuple[bytes, int, bool, int, int]:
    field = packet[6] << 8 | packet[7]
    key = bytes(packet[4:6]) + bytes(packet[9:10]) + bytes(packet[12:20])
    return key, (packet[0] & 15) << 2, bool(field & 0x2000), (field & 0x1FFF) * 8, packet[9]


def _read_ipv6(packet: memoryview) -> tuple[bytes, int, bool, int, int]:
    at = IPV6_HEADER_LEN
    if packet[6] != FRAGMENT_HEADER:
        raise Drop(DropReason.UNSUPPORTED_HEADER)
    field = packet[at + 2] << 8 | packet[at + 3]
    key = bytes(packet[at + 4 : at + 8]) + bytes(packet[8:40])
    return key, at + 8, bool(field & 1), field & 0xFFF8, packet[at]


def _join(datagram: _Datagram) -> bytes | None:
    """Join the parts, which don't overlap and add up to the total, so that none is missing.

    Returns None if the result would exceed the largest IPv4 packet.
    """
    payload = b"".join(part for _, part in sorted(datagram.parts.items()))
    header = bytearray(datagram.header)
    if header[0] >> 4 == 4:
        if len(header) + len(payload) > MAX_DATAGRAM_LEN:
            return None
        struct.pack_into("!H", header, 2, len(header) + len(payload))
        struct.pack_into("!H", header, 6, 0)
    else:
        header[6] = datagram.next_header
        struct.pack_into("!H", header, 4, len(payload))
    return bytes(header) + payload
