"""System calls of outer sockets: their options, and the BPF program that they need.

Send-only sockets have the address, port and options of an outer socket, and receive nothing:

- UDP: the kernel puts them behind the outer socket in one SO_REUSEPORT group, whose program always
  chooses the first member. They are never connected: the kernel would prefer them to the group.
- Protocol 50: every raw socket gets a clone of each packet; a filter discards it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from contextlib import ExitStack, suppress

from esp_gw.engine.base import OuterSocket
from esp_gw.engine.python.peers import SocketAddress
from esp_gw.engine.refusals import socket_refused
from esp_gw.limits import has_files_left
from esp_gw.model import Encapsulation
from esp_gw.protocol import IPPROTO_ESP

SOCKET_BUFFER = 4 << 20
"""Requested socket buffer in each direction, in bytes.

Without CAP_NET_ADMIN the kernel caps it at net.core.wmem_max and rmem_max.
"""

# Constants missing from Python's socket module; values from the kernel's uapi headers.
_IP_MTU = 14
_IP_MTU_DISCOVER = 10
_IPV6_MTU = 24
_IPV6_MTU_DISCOVER = 23
_PMTUDISC_DONT = 0
_PMTUDISC_DO = 2
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78
_IPV6_RECVERR = 25
_UDP_NO_CHECK6_RX = 102
_SO_NO_CHECK = 11
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("=9I")
_MEMINFO_DROPS = 8
_SO_MARK = getattr(socket, "SO_MARK", 36)
_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
_SO_ATTACH_FILTER = 26
_SO_ATTACH_REUSEPORT_CBPF = 51

_RETURN_0 = struct.pack("HBBI", 0x06, 0, 0, 0)
"""The classic BPF program (struct sock_filter) that returns 0.

In a group that is the index of the first member; of a filter, the bytes to keep of a packet.
"""


def open_outer(wanted: OuterSocket, port: int, fwmark: int) -> socket.socket:
    """Open an outer socket. Raises EngineError."""
    try:
        with ExitStack() as undo:
            sock = _unbound(wanted, fwmark, undo)
            if _is_udp(wanted):
                # The kernel takes the program before the bind only where the port is to be shared,
                # and a port that is shared at the bind could be another program's already.
                _share_port(sock, True)
                _attach(sock, _SO_ATTACH_REUSEPORT_CBPF)
                _share_port(sock, False)
            _bind(sock, wanted, port)
            undo.pop_all()
    except OSError as error:
        raise socket_refused(wanted, port, error) from None
    return sock


def open_send_only(wanted: OuterSocket, fwmark: int, outer: socket.socket) -> socket.socket:
    """Open a send-only socket beside `outer`; it has to be closed before `outer`.

    Raises OSError; with EMFILE also if few more files could be opened.
    """
    with ExitStack() as undo:
        sock = _unbound(wanted, fwmark, undo)
        if not has_files_left(sock.fileno()):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        # The kernel raises it to its minimum.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        if _is_udp(wanted):
            _share_port(outer, True)
            _share_port(sock, True)
        else:
            _attach(sock, _SO_ATTACH_FILTER)
        _bind(sock, wanted, outer.getsockname()[1])
        undo.pop_all()
    return sock


def open_path_mtu_learner(wanted: OuterSocket, fwmark: int) -> socket.socket:
    """Open the socket by which the kernel learns path MTUs for all raw IPv6 sockets of an address.

    The kernel takes a Packet Too Big for protocol 50 only where a socket has IPV6_RECVERR
    (net/ipv6/raw.c, rawv6_err). On a socket that carries packets, the option would let any ICMP
    error fail a send or a receive. This one is never read: its error queue ends at the kernel's
    least receive buffer. Raises EngineError.
    """
    try:
        with ExitStack() as undo:
            sock = _unbound(wanted, fwmark, undo)
            _attach(sock, _SO_ATTACH_FILTER)
            # The kernel raises it to its minimum.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            _bind(sock, wanted, 0)
            undo.pop_all()
    except OSError as error:
        raise socket_refused(wanted, 0, error) from None
    return sock


def set_tos(sock: socket.socket, tos: int) -> None:
    """Set DSCP and ECN of later packets."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)


def let_fragment(sock: socket.socket) -> None:
    """Let the kernel fragment later packets."""
    _set_path_mtu_discovery(sock, _PMTUDISC_DONT)


def forbid_fragments(sock: socket.socket) -> None:
    """Let the kernel refuse later packets that exceed the path MTU."""
    _set_path_mtu_discovery(sock, _PMTUDISC_DO)


def received_drops(outer: socket.socket) -> int:
    """Return the datagrams that the kernel has dropped at a socket, modulo 2**32.

    A kernel without the option (before 4.12) counts none.
    """
    try:
        info = outer.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    except OSError:
        return 0
    return int(_MEMINFO.unpack(info)[_MEMINFO_DROPS])


def path_mtu(outer: socket.socket, address: SocketAddress) -> int | None:
    """Return the kernel's path MTU to an address in bytes, IP header included; None if unknown."""
    ipv4 = outer.family == socket.AF_INET
    with socket.socket(outer.family, socket.SOCK_DGRAM) as probe, suppress(OSError):
        mark = outer.getsockopt(socket.SOL_SOCKET, _SO_MARK)
        probe.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
        probe.connect((address[0], 9, *address[2:]))
        if ipv4:
            return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        return probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
    return None


def _is_udp(wanted: OuterSocket) -> bool:
    return wanted.encapsulation is Encapsulation.UDP


def _unbound(wanted: OuterSocket, fwmark: int, undo: ExitStack) -> socket.socket:
    """Return an unbound socket with all options, which `undo` closes."""
    ipv4, udp = wanted.address.version == 4, _is_udp(wanted)
    family = socket.AF_INET if ipv4 else socket.AF_INET6
    kind, protocol = (socket.SOCK_DGRAM, 0) if udp else (socket.SOCK_RAW, IPPROTO_ESP)
    sock = undo.enter_context(socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol))
    _configure(sock, ipv4, udp, fwmark)
    return sock


def _bind(sock: socket.socket, wanted: OuterSocket, port: int) -> None:
    sock.bind((str(wanted.address), port if _is_udp(wanted) else 0))


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
            # RFC 6935 5, RFC 6936 4: a tunnel may leave the checksum out; the ICV protects.
            sock.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
    forbid_fragments(sock)


def _share_port(sock: socket.socket, share: bool) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, share)


def _attach(sock: socket.socket, option: int) -> None:
    program = array("B", _RETURN_0)
    place, _ = program.buffer_info()
    # struct sock_fprog: the number of instructions, and where they are.
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("HP", 1, place))


def _set_path_mtu_discovery(sock: socket.socket, value: int) -> None:
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, value)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, value)
