"""Echo requests (ping) whose packets are never fragmented on the way.

Root uses a raw socket. Others use an ICMP socket where net.ipv4.ping_group_range allows it.

Sources: RFC 792, RFC 4443 4.1, icmp(7), raw(7), ip(7) on IP_MTU_DISCOVER.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from esp_gw.errors import NetworkError
from esp_gw.model import IPAddress
from esp_gw.network.messages import FAMILY
from esp_gw.protocol import (
    IPPROTO_ICMP,
    IPPROTO_ICMPV6,
    IPV4_HEADER_LEN,
    IPV6_HEADER_LEN,
)

HEADER = struct.Struct("!BBHHH")
"""Type, code, checksum, identifier, sequence number."""
_REQUEST = {4: 8, 6: 128}
_REPLY = {4: 0, 6: 129}
_PROTOCOL = {4: IPPROTO_ICMP, 6: IPPROTO_ICMPV6}
_IP_HEADER = {4: IPV4_HEADER_LEN, 6: IPV6_HEADER_LEN}
_DISCOVER = {4: (socket.IPPROTO_IP, 10), 6: (socket.IPPROTO_IPV6, 23)}
"""IP_MTU_DISCOVER and IPV6_MTU_DISCOVER."""
_PROBE = 3
"""IP_PMTUDISC_PROBE: never fragment, and take no notice of known path MTUs."""
_TOO_LARGE = (errno.EMSGSIZE, errno.ENOBUFS, errno.EAGAIN)


@dataclass(frozen=True, slots=True)
class Answer:
    """An echo reply: the number of its request, and its round-trip time in seconds."""

    number: int
    rtt: float


class Echo:
    """A socket for echo requests from one address to another.

    Raises NetworkError, for want of a permission with the PermissionError as its cause.
    """

    def __init__(self, source: IPAddress, target: IPAddress) -> None:
        self._version = target.version
        self._identifier = secrets.randbits(16)
        self._sent: dict[int, float] = {}
        self._number = 0
        self.refused = ""
        """The last error that the kernel, or a router on the way, had for a request."""
        self._socket, self._is_raw = _opened(self._version)
        try:
            self._socket.setsockopt(*_DISCOVER[self._version], _PROBE)
            self._socket.setblocking(False)
            self._socket.bind((str(source), 0))
            self._socket.connect((str(target), 0))
        except OSError as error:
            self._socket.close()
            raise NetworkError(error.strerror or str(error), where=f"from {source}") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, size: int) -> int:
        """Send a request of a size in bytes, IP header included, and return its number.

        One that the kernel refuses is lost, like one that is dropped on the way.
        """
        self._number = (self._number + 1) & 0xFFFF
        data = bytes(max(size - overhead(self._version), 0))
        packet = HEADER.pack(_REQUEST[self._version], 0, 0, self._identifier, self._number) + data
        if self._version == 4:
            # In IPv6 the kernel knows the addresses that belong to the checksum, and writes it.
            head = (8, 0, _checksum(packet), self._identifier, self._number)
            packet = HEADER.pack(*head) + data
        self._sent[self._number] = time.monotonic()
        try:
            self._socket.send(packet)
        except OSError as error:
            self._note(error)
        return self._number

    def answers(self, until: float) -> Iterator[Answer]:
        """Yield the replies that come until a time of the monotonic clock, each once."""
        while (left := until - time.monotonic()) > 0 and self._sent:
            if not select.select([self._socket], [], [], left)[0]:
                return
            number = self._number_of(self._received())
            at = self._sent.pop(number, None)
            if at is not None:
                yield Answer(number, time.monotonic() - at)

    def forget(self) -> None:
        """Count requests that were not answered as lost."""
        self._sent.clear()

    def _number_of(self, packet: bytes) -> int:
        """Return the number of the request that a packet answers, -1 if it answers none."""
        if self._is_raw and self._version == 4:
            packet = packet[(packet[0] & 15) * 4 :] if packet else b""
        if len(packet) < HEADER.size:
            return -1
        kind, _, _, identifier, number = HEADER.unpack_from(packet)
        # An ICMP socket has an identifier of the kernel's, and gets its own replies alone.
        ours = not self._is_raw or identifier == self._identifier
        return int(number) if kind == _REPLY[self._version] and ours else -1

    def _received(self) -> bytes:
        """Return the next packet, none instead of an error."""
        try:
            return self._socket.recv(1 << 16)
        except OSError as error:
            self._note(error)
            return b""

    def _note(self, error: OSError) -> None:
        if error.errno not in _TOO_LARGE:
            self.refused = error.strerror or str(error)


def overhead(version: int) -> int:
    """Return the bytes of an echo request that are no data: IP header and ICMP header."""
    return _IP_HEADER[version] + HEADER.size


def measure_path(echo: Echo, sizes: Iterable[int], wait: float) -> int:
    """Return the largest of these packet sizes that is answered, 0 if none is.

    Each is tried twice; `wait` is in seconds, for all of them.
    """
    asked = {}
    for size in sizes:
        for _ in range(2):
            asked[echo.send(size)] = size
    answers = list(echo.answers(time.monotonic() + wait))
    echo.forget()
    return max((asked[each.number] for each in answers if each.number in asked), default=0)


def _opened(version: int) -> tuple[socket.socket, bool]:
    """Return a socket for ICMP, and True if it is a raw one."""
    family, protocol = FAMILY[version], _PROTOCOL[version]
    with contextlib.suppress(PermissionError):
        return socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol), True
    try:
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, protocol), False
    except OSError as error:
        text = os.strerror(error.errno or errno.EACCES)
        raise NetworkError(f"no ICMP socket: {text}") from error


def _checksum(data: bytes) -> int:
    """Return the checksum of the Internet (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)
