"""The outer sockets: ESP in UDP (RFC 3948) and ESP as IP protocol 50, over IPv4 and IPv6.

A peer that meets a full outer socket gets a send-only socket of its own, so that no peer waits for
another's packets. Packets that a full socket refuses wait in a queue of its own, in order.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Set
from contextlib import ExitStack

from esp_gw.engine.base import OuterSocket
from esp_gw.engine.python.peers import SocketAddress
from esp_gw.engine.python.sending import SendingSocket
from esp_gw.engine.python.sockets import (
    open_outer,
    open_path_mtu_learner,
    open_send_only,
    received_drops,
)
from esp_gw.engine.python.waiting import Sender, WaitingPacket
from esp_gw.model import DropReason, Encapsulation
from esp_gw.protocol import IPV4_HEADER_LEN, IPV6_HEADER_LEN, UDP_HEADER_LEN

MAX_OWN = 16
"""Bound on the peers of one outer socket that have a socket of their own."""
OPEN_INTERVAL = 0.1
"""Least interval between a failure to open such a socket and the next try, in seconds."""


class Outer:
    """One outer socket, and the sockets of its peers that have met it full.

    `has_ip_header`: recvmsg returns the IP header before the ESP header, as on raw IPv4 sockets.
    `headers`: bytes in front of a sent ESP packet.
    """

    def __init__(
        self, wanted: OuterSocket, port: int, fwmark: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.wanted = wanted
        self._closing = ExitStack()
        self.is_udp = wanted.encapsulation is Encapsulation.UDP
        self.is_ipv4 = wanted.address.version == 4
        self.headers = (IPV4_HEADER_LEN if self.is_ipv4 else IPV6_HEADER_LEN) + (
            UDP_HEADER_LEN if self.is_udp else 0
        )
        self.has_ip_header = self.is_ipv4 and not self.is_udp
        with ExitStack() as undo:
            self.sock = open_outer(wanted, port, fwmark)
            undo.callback(self.sock.close)
            if not (self.is_udp or self.is_ipv4):
                self._closing.enter_context(open_path_mtu_learner(wanted, fwmark))
            undo.pop_all()
        self._fwmark = fwmark
        self._loop = loop
        self._shared = SendingSocket(self.sock, loop)
        # By the peer's address, without its port.
        self._own: dict[str, SendingSocket] = {}
        self._next_open = -math.inf
        self._drops_seen = 0
        self._drops = 0

    def dropped(self) -> int:
        """Return the number of datagrams that the kernel has dropped at this socket so far.

        Its receive buffer was full, or their checksum wrong. The kernel's count has 32 bits.
        """
        now = received_drops(self.sock)
        self._drops += (now - self._drops_seen) % 2**32
        self._drops_seen = now
        return self._drops

    def send(
        self, state: Sender, packet: memoryview, inner_len: int, tos: int, may_fragment: bool
    ) -> DropReason | None:
        """Send one packet, or queue it if the socket is full; return the drop reason, if dropped.

        The SA counts the packet when the socket accepts it or the queue drops it. `tos` becomes
        the outer DSCP and ECN. `may_fragment` lets the kernel fragment the outer packet when it
        exceeds the path MTU.
        """
        to = self._socket_of(state.peer.address) if self._own else self._shared
        if to.waiting:
            to.retry()
        if not to.waiting:
            try:
                return to.send(state, packet, inner_len, tos, may_fragment)
            except BlockingIOError:
                pass
        if to is self._shared and (own := self._open_own(state.peer.address[0])) is not None:
            to = own
            try:
                return to.send(state, packet, inner_len, tos, may_fragment)
            except BlockingIOError:
                pass
        now = self._loop.time()
        to.wait(WaitingPacket(state, bytes(packet), inner_len, tos, may_fragment, now))
        return None

    def is_full(self, address: SocketAddress) -> bool:
        """Return True while packets wait for the socket that serves this address."""
        return bool(self._socket_of(address).waiting)

    def send_now(self, state: Sender, packet: memoryview) -> DropReason | None:
        """Send one packet that is never queued nor counted; return the drop reason, if dropped."""
        return self._socket_of(state.peer.address).send_now(state, packet)

    def send_keepalive(self, address: SocketAddress) -> bool:
        """Send a NAT keepalive (RFC 3948 4); return True if the socket accepted it.

        A keepalive is never queued.
        """
        return self._socket_of(address).send_keepalive(address)

    def discard(self, state: Sender) -> None:
        """Drop the queued packets of an SA, counted as send-error."""
        for sending in (*self._own.values(), self._shared):
            sending.discard(state)

    def close_unused(self, hosts: Set[str]) -> None:
        """Close the sockets of all peers but these; what waits for them goes by the shared one."""
        for host in self._own.keys() - hosts:
            own = self._own.pop(host)
            own.hand_over(self._shared)
            own.close()

    def close(self) -> None:
        """Close the sockets; queued packets are dropped and counted as send-error."""
        self._loop.remove_reader(self.sock)
        for own in self._own.values():
            own.close()
        self._own.clear()
        self._shared.close()
        self._closing.close()

    def _socket_of(self, address: SocketAddress) -> SendingSocket:
        return self._own.get(address[0], self._shared)

    def _open_own(self, host: str) -> SendingSocket | None:
        """Open a socket for a peer; None if there is no place or the kernel refuses."""
        now = self._loop.time()
        if now < self._next_open:
            return None
        try:
            if not self._make_room():
                raise BlockingIOError
            sock = open_send_only(self.wanted, self._fwmark, self.sock)
        except OSError:
            self._next_open = now + OPEN_INTERVAL
            return None
        own = self._own[host] = SendingSocket(sock, self._loop)
        return own

    def _make_room(self) -> bool:
        """Close the idle socket that was needed longest ago, if there is no place."""
        if len(self._own) < MAX_OWN:
            return True
        idle = [(own.needed, host) for host, own in self._own.items() if not own.waiting]
        if idle:
            self._own.pop(min(idle)[1]).close()
        return bool(idle)
