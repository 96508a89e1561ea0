"""The outer sockets: ESP in UDP (RFC 3948) and ESP as IP protocol 50, over IPv4 and IPv6.

Sockets are non-blocking. Packets that a full socket refuses wait in a queue of its own, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket

from esp_gw.engine.base import OuterSocket
from esp_gw.engine.python.peers import SocketAddress
from esp_gw.engine.python.waiting import (
    MAX_WAIT,
    TRY_INTERVAL,
    Sender,
    WaitingPacket,
    WaitingPackets,
)
from esp_gw.engine.refusals import socket_refused
from esp_gw.model import DropReason, Encapsulation
from esp_gw.protocol import IPPROTO_ESP

SOCKET_BUFFER = 4 << 20
"""Requested socket buffer in each direction, in bytes.

Without CAP_NET_ADMIN the kernel caps it at net.core.wmem_max and rmem_max.
"""

_KEEPALIVE = b"\xff"
# Constants missing from Python's socket module; values from the kernel's uapi headers.
_IP_MTU = 14
_IP_MTU_DISCOVER = 10
_IPV6_MTU = 24
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT = 0
_PMTUDISC_DO = 2
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_SO_NO_CHECK = 11
_SO_MARK = getattr(socket, "SO_MARK", 36)
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32


class Outer:
    """One outer socket and its send queue.

    `has_ip_header`: recvmsg returns the IP header before the ESP header, as on raw IPv4 sockets.
    """

    def __init__(
        self, wanted: OuterSocket, port: int, fwmark: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.wanted = wanted
        self.is_udp = wanted.encapsulation is Encapsulation.UDP
        self.is_ipv4 = wanted.address.version == 4
        self.has_ip_header = self.is_ipv4 and not self.is_udp
        self.sock = _open(wanted, port, fwmark)
        self._loop = loop
        self._waiting = WaitingPackets()
        self._next_try = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tos = 0
        self._may_fragment = False

    def send(
        self, state: Sender, packet: memoryview, inner_len: int, tos: int, may_fragment: bool
    ) -> DropReason | None:
        """Send one packet, or queue it if the socket is full; return the drop reason, if dropped.

        The SA counts the packet when the socket accepts it or the queue drops it. `tos` becomes
        the outer DSCP and ECN. `may_fragment` lets the kernel fragment the outer packet when it
        exceeds the path MTU.
        """
        if self._waiting and self._loop.time() >= self._next_try:
            self._send_waiting()
        if self._waiting:
            self._wait(state, packet, inner_len, tos, may_fragment)
            return None
        try:
            self._send(state, packet, tos, may_fragment)
        except BlockingIOError:
            self._wait(state, packet, inner_len, tos, may_fragment)
            return None
        except OSError as error:
            return _drop_reason(error)
        state.packets += 1
        state.bytes += inner_len
        return None

    @property
    def is_full(self) -> bool:
        """True while packets wait for the socket."""
        return bool(self._waiting)

    def send_now(self, state: Sender, packet: memoryview) -> DropReason | None:
        """Send one packet that is never queued nor counted; return the drop reason, if dropped."""
        try:
            self._send(state, packet, 0, False)
        except BlockingIOError:
            return DropReason.QUEUE_FULL
        except OSError as error:
            return _drop_reason(error)
        return None

    def send_keepalive(self, address: SocketAddress) -> bool:
        """Send a NAT keepalive (RFC 3948 4); return True if the socket accepted it.

        A keepalive is never queued.
        """
        if self._waiting:
            return False
        try:
            if self._tos:
                self._set_tos(0)
            self.sock.sendto(_KEEPALIVE, address)
        except OSError:
            return False
        return True

    def discard(self, state: Sender) -> None:
        """Drop the queued packets of an SA, counted as send-error."""
        self._waiting.discard(state)
        self._stop_waiting()

    def close(self) -> None:
        """Close the socket; queued packets are dropped and counted as send-error."""
        self._loop.remove_reader(self.sock)
        self._waiting.discard()
        self._stop_waiting()
        self.sock.close()

    def _send(
        self, state: Sender, packet: memoryview | bytes, tos: int, may_fragment: bool
    ) -> None:
        if tos != self._tos:
            self._set_tos(tos)
        if may_fragment is not self._may_fragment:
            self._set_may_fragment(may_fragment)
        try:
            self.sock.sendto(packet, state.peer.address)
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # what a full raw socket says (ip_append_data)
                raise BlockingIOError from error
            raise

    def _wait(
        self, state: Sender, packet: memoryview, inner_len: int, tos: int, may_fragment: bool
    ) -> None:
        now = self._loop.time()
        waiting = WaitingPacket(state, bytes(packet), inner_len, tos, may_fragment, now)
        if not self._waiting:
            self._next_try = now + TRY_INTERVAL
            self._loop.add_writer(self.sock, self._writable)
            self._timer = self._loop.call_at(now + MAX_WAIT, self._drop_late)
        self._waiting.add(waiting)

    def _writable(self) -> None:
        first = self._waiting.first
        self._send_waiting()
        if self._waiting and self._waiting.first is first:
            # The socket has room and refuses: waiting for more room would spin.
            self._waiting.refused()
            self._stop_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            waiting = self._waiting.first
            state = waiting.state
            try:
                self._send(state, waiting.packet, waiting.tos, waiting.may_fragment)
            except BlockingIOError:
                self._next_try = self._loop.time() + TRY_INTERVAL
                return
            except OSError as error:
                state.drops[_drop_reason(error)] += 1
            else:
                state.packets += 1
                state.bytes += waiting.inner_len
            self._waiting.taken()
        self._stop_waiting()

    def _drop_late(self) -> None:
        self._waiting.drop_late(self._loop.time())
        if self._waiting:
            self._timer = self._loop.call_at(self._waiting.deadline, self._drop_late)
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        """Poll the socket for writing no longer, and stop the timer, once nothing waits."""
        if not self._waiting:
            self._loop.remove_writer(self.sock)
            if self._timer is not None:
                self._timer.cancel()

    def _set_tos(self, tos: int) -> None:
        if self.is_ipv4:
            self.sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        else:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
        self._tos = tos

    def _set_may_fragment(self, may_fragment: bool) -> None:
        _set_path_mtu_discovery(self.sock, _PMTUDISC_DONT if may_fragment else _PMTUDISC_DO)
        self._may_fragment = may_fragment


def _drop_reason(error: OSError) -> DropReason:
    return DropReason.TOO_BIG if error.errno == errno.EMSGSIZE else DropReason.SEND_ERROR


def path_mtu(outer: Outer, address: SocketAddress) -> int | None:
    """Return the kernel's path MTU to an address in bytes, IP header included; None if unknown."""
    family = socket.AF_INET if outer.is_ipv4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        mark = outer.sock.getsockopt(socket.SOL_SOCKET, _SO_MARK)
        probe.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        probe.connect((address[0], 9, *address[2:]))
        if outer.is_ipv4:
            return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return None


def _open(wanted: OuterSocket, port: int, fwmark: int) -> socket.socket:
    ipv4 = wanted.address.version == 4
    family = socket.AF_INET if ipv4 else socket.AF_INET6
    udp = wanted.encapsulation is Encapsulation.UDP
    kind, protocol = (socket.SOCK_DGRAM, 0) if udp else (socket.SOCK_RAW, IPPROTO_ESP)
    try:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    except OSError as error:
        raise socket_refused(wanted, port, error) from None
    try:
        _configure(sock, ipv4, udp, fwmark)
        sock.bind((str(wanted.address), port if udp else 0))
    except OSError as error:
        sock.close()
        raise socket_refused(wanted, port, error) from None
    return sock


def _configure(sock: socket.socket, ipv4: bool, udp: bool, fwmark: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, fwmark)
    for force, plain in (
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, SOCKET_BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, plain, SOCKET_BUFFER)
    # FREEBIND: the address may not be assigned yet when the daemon starts (DHCP at boot).
    if ipv4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        if udp:
            # RFC 3948 2.1: the UDP checksum of encapsulated ESP should be zero over IPv4.
            sock.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
    else:
        if udp:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    _set_path_mtu_discovery(sock, _PMTUDISC_DO)


def _set_path_mtu_discovery(sock: socket.socket, value: int) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, value)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, value)
