"""IKE datagrams that come to the port of ESP in UDP, passed on to the program that has the keys."""

from __future__ import annotations

import os
import socket
from ipaddress import IPv6Address, ip_address

from esp_gw.engine.base import RELAY_HEADER
from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.outer import Outer
from esp_gw.engine.python.peers import SocketAddress
from esp_gw.errors import EngineError
from esp_gw.model import DropReason

MARKER_LEN = 4
"""Bytes of the Non-ESP Marker (RFC 3948 2.2), which is not passed on."""
_MAPPED = 0xFFFF << 32


class IkeRelay:
    """The socket to the program, and the datagrams that were passed on to it."""

    def __init__(self) -> None:
        self.passed = 0
        self._sock: socket.socket | None = None

    def replace(self, fd: int | None) -> None:
        """Pass later datagrams to a copy of another socket, or to none. Raises EngineError."""
        copy = None if fd is None else _copy(fd)
        self.close()
        self._sock = copy

    def close(self) -> None:
        """Pass nothing on any more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def pass_on(self, datagram: memoryview, source: SocketAddress, outer: Outer) -> None:
        """Pass on a datagram with its marker, which came to `outer`. Raises Drop."""
        if self._sock is None:
            raise Drop(DropReason.IKE_DATAGRAM)
        destination = outer.sock.getsockname()
        ends = (_mapped(source), _mapped(destination))
        header = RELAY_HEADER.pack(*ends, source[1], destination[1])
        try:
            self._sock.send(header + datagram[MARKER_LEN:])
        except OSError:
            raise Drop(DropReason.IKE_DATAGRAM) from None
        self.passed += 1


def _copy(fd: int) -> socket.socket:
    try:
        copy = socket.socket(fileno=os.dup(fd))
    except OSError as error:
        raise EngineError(f"IKE datagrams can't be passed on: {error.strerror}") from None
    if (copy.family, copy.type) != (socket.AF_UNIX, socket.SOCK_DGRAM):
        copy.close()
        raise EngineError("IKE datagrams can't be passed on: this is no unix datagram socket")
    copy.setblocking(False)
    return copy


def _mapped(address: SocketAddress) -> bytes:
    there = ip_address(address[0].partition("%")[0])
    return there.packed if isinstance(there, IPv6Address) else (_MAPPED | int(there)).to_bytes(16)
