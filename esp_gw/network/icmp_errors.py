"""Raw sockets for ICMP errors, which are polled and wake nobody.

Sources: icmp(7), linux/icmp.h, RFC 3542 3.2.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address

from esp_gw.model import IPAddress
from esp_gw.network.icmp import (
    PARAMETER_PROBLEM_6,
    UNREACHABLE_4,
    UNREACHABLE_6,
    Unreachable,
    parse_error,
)
from esp_gw.protocol import IPPROTO_ICMPV6

_SOL_RAW, _ICMP_FILTER, _ICMP6_FILTER = 255, 1, 1
_BUFFER = 64 * 1024
"""Bytes of errors that wait for the next look; the kernel drops further ones."""
_MAX_DRAINED = 64
_QUOTED = 256


class IcmpErrors:
    """Raw sockets that get ICMP errors; none where the kernel or the privileges don't allow it."""

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}
        for version, opened in ((4, _open_4), (6, _open_6)):
            with contextlib.suppress(OSError):
                self._sockets[version] = opened()

    def close(self) -> None:
        """Close the sockets."""
        for each in self._sockets.values():
            each.close()

    def drain(self) -> list[Unreachable]:
        """Return the errors since the last call, a bounded number."""
        return [
            error
            for version, each in self._sockets.items()
            for message, source in _received(each)
            if (error := parse_error(version, message, source)) is not None
        ]


def _received(sock: socket.socket) -> Iterator[tuple[bytes, IPAddress]]:
    for _ in range(_MAX_DRAINED):
        try:
            message, address = sock.recvfrom(_QUOTED)
        except OSError:
            return
        yield message, ip_address(address[0].partition("%")[0])


def _open_4() -> socket.socket:
    sock = _open(socket.AF_INET, socket.IPPROTO_ICMP)
    mask = 0xFFFFFFFF & ~(1 << UNREACHABLE_4)
    sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", mask))
    return sock


def _open_6() -> socket.socket:
    sock = _open(socket.AF_INET6, IPPROTO_ICMPV6)
    passed = 1 << UNREACHABLE_6 | 1 << PARAMETER_PROBLEM_6
    mask = struct.pack("=8I", 0xFFFFFFFF & ~passed, *[0xFFFFFFFF] * 7)
    sock.setsockopt(IPPROTO_ICMPV6, _ICMP6_FILTER, mask)
    return sock


def _open(family: int, protocol: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    except OSError:
        sock.close()
        raise
    return sock
