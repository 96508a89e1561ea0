"""The UDP port that IKE shares with ESP (RFC 3948 2.2), as the owner's session uses it.

The engine owns the port's sockets. The IKE daemon has one end of a pair of datagram sockets: what
comes for it is written there by the engine, and what it writes there is sent by the engine.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import IPv6Address

from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.sources import Sources
from esp_gw.engine.base import RELAY_HEADER
from esp_gw.errors import EngineError
from esp_gw.logs import log
from esp_gw.model import IPAddress

_MAX_MESSAGE = 65535
_TURN = 64
"""Messages that are sent in a row, before others of the loop have their turn."""
_BUFFER = 1 << 20
"""Bytes of each direction's buffer, which the kernel caps at net.core.wmem_max."""


class IkePort:
    """The pair of sockets between the engine and the IKE daemon; there is none before `open`."""

    def __init__(self, gateway: Gateway, sources: Sources) -> None:
        self._gateway = gateway
        self._sources = sources
        self._ours: socket.socket | None = None
        self._has_warned = False

    async def open(self) -> socket.socket:
        """Receive IKE at the port; return the IKE daemon's end of a new pair.

        A former pair ends. Raises EspGwError.
        """
        await self._sources.listen()
        self.close()
        ours, theirs = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        theirs.setblocking(True)
        try:
            self._gateway.engine.relay_ike(ours.fileno())
        except EngineError:
            ours.close()
            theirs.close()
            raise
        self._ours, self._has_warned = ours, False
        asyncio.get_running_loop().add_reader(ours, self._send, ours)
        return theirs

    def close(self) -> None:
        """Pass nothing on any more, in either direction."""
        if self._ours is None:
            return
        asyncio.get_running_loop().remove_reader(self._ours)
        self._gateway.engine.relay_ike(None)
        self._ours.close()
        self._ours = None

    def _send(self, ours: socket.socket) -> None:
        for _ in range(_TURN):
            try:
                data = ours.recv(_MAX_MESSAGE)
            except BlockingIOError:
                return
            except ConnectionError:
                # The IKE daemon has closed its end.
                self.close()
                return
            if len(data) <= RELAY_HEADER.size:
                # One line for a socket, however many come.
                if not self._has_warned:
                    log.warning("messages of IKE without a header are not sent", bytes=len(data))
                self._has_warned = True
                continue
            source, destination, _, port = RELAY_HEADER.unpack(data[: RELAY_HEADER.size])
            try:
                self._gateway.engine.send_ike(
                    _address(source), _address(destination), port, data[RELAY_HEADER.size :]
                )
            except EngineError as error:
                log.debug("a message of IKE is not sent", reason=str(error))


def _address(packed: bytes) -> IPAddress:
    there = IPv6Address(packed)
    return there.ipv4_mapped or there
