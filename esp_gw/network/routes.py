"""Bulk access to the kernel's routes: rtnetlink route messages over a plain netlink socket.

This is a second netlink stack beside pyroute2 (kernel.py, link.py), for route messages only. It
stays because pyroute2 takes a third of a millisecond per route, and a gateway of 5,000 tunnels has
10,000 routes, all of which are read whenever another program changes one. Everything else is
infrequent or small enough for pyroute2.

Sources: netlink(7), rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from esp_gw.errors import NetworkError
from esp_gw.model import IPAddress, IPNetwork
from esp_gw.network.objects import Route, RouteKind

PROTOCOL = 0xE5
"""The routing protocol number of esp_gw, as in /etc/iproute2/rt_protos."""
GUARD_METRIC = 2**32 - 1
"""Metric of unreachable routes: any other route to the prefix takes precedence."""
TUN_METRIC = 1024

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, dst_len, src_len, TOS, table, protocol, scope, type, flags."""
_ATTRIBUTE = struct.Struct("=HH")
_NUMBER = struct.Struct("=I")
_ERROR = struct.Struct("=i")

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_REQUEST, _ACK, _DUMP, _REPLACE, _CREATE = 0x1, 0x4, 0x300, 0x100, 0x400
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 6, 7
_RTA_METRICS, _RTA_TABLE, _RTAX_MTU = 8, 15, 2
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_SCOPE_UNIVERSE, _SCOPE_NOWHERE = 0, 255
_TYPE_MASK = 0x3FFF
_SOL_NETLINK, _GET_STRICT_CHK = 270, 12
_RECEIVE = 1 << 17
_BATCH = 64
"""Requests per send: their replies fit even the smallest receive buffer."""
ADVICE = {
    errno.EPERM: "it needs CAP_NET_ADMIN: run it as root or as the systemd service",
    errno.EACCES: "IPv6 may be off: see net.ipv6.conf.all.disable_ipv6",
    errno.ENETDOWN: "the interface is down: 'ip link set' brings it up",
    errno.EOPNOTSUPP: "the kernel lacks policy routing for this family",
    errno.EAFNOSUPPORT: "the kernel lacks this address family",
}
"""Hint for each error number with which the kernel may refuse a request."""
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
"""Address families by IP version."""


class RouteSocket:
    """A netlink socket for our routes, into the TUN `index` or unreachable.

    All methods block briefly.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC)
        self._socket.bind((0, 0))
        # Before Linux 4.20 a dump can't be filtered; `_read` skips routes of other tables.
        with contextlib.suppress(OSError):
            self._socket.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def routes(self, tables: Sequence[int]) -> Iterator[Route]:
        """Yield our routes in the given tables. Raises NetworkError."""
        for version, family in FAMILY.items():
            for table in tables:
                request = _ROUTE.pack(family, 0, 0, 0, 0, PROTOCOL, 0, 0, 0)
                request += _attribute(_RTA_TABLE, _NUMBER.pack(table))
                self._socket.send(self._message(_RTM_GETROUTE, _DUMP, request))
                for body in self._dumped(f"routes of the table {table}"):
                    route = _read(body, version, table, self._index)
                    if route is not None:
                        yield route

    def replace(self, routes: Sequence[Route]) -> None:
        """Add routes, replacing those with the same key.

        Raises NetworkError for the first that is refused; the others are in place.
        """
        self._change(_RTM_NEWROUTE, _CREATE | _REPLACE, _encode, routes)

    def remove(self, routes: Sequence[Route]) -> None:
        """Remove routes; one that doesn't exist is no error. Raises NetworkError."""
        self._change(_RTM_DELROUTE, 0, _encode_key, routes, _GONE)

    def _change(
        self,
        kind: int,
        flags: int,
        encode: Callable[[Route, int], bytes],
        routes: Sequence[Route],
        ignored: tuple[int, ...] = (),
    ) -> None:
        refused: list[tuple[int, Route]] = []
        for start in range(0, len(routes), _BATCH):
            batch = routes[start : start + _BATCH]
            first = self._sequence + 1
            messages = [self._message(kind, flags | _ACK, encode(r, self._index)) for r in batch]
            self._socket.send(b"".join(messages))
            answered = 0
            while answered < len(batch):
                for sequence, _, body in self._receive():
                    answered += 1
                    code = -_ERROR.unpack_from(body)[0]
                    if code and code not in ignored:
                        refused.append((code, batch[sequence - first]))
        for code, route in refused:
            raise refusal(code, f"route {route.destination} table {route.table}")

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        length = _HEADER.size + len(body)
        return _HEADER.pack(length, kind, flags | _REQUEST, self._sequence, 0) + body

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield sequence number, type and body of each message in one datagram."""
        data = self._socket.recv(_RECEIVE)
        at = 0
        while at < len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
            yield sequence, kind, data[at + _HEADER.size : at + length]
            at += _aligned(length)

    def _dumped(self, what: str) -> list[bytes]:
        """Return the bodies of the route messages of a dump."""
        bodies: list[bytes] = []
        while True:
            for _, kind, body in self._receive():
                if kind == _NLMSG_DONE:
                    return bodies
                if kind == _NLMSG_ERROR:
                    code = -_ERROR.unpack_from(body)[0]
                    if code in _GONE:  # the table doesn't exist
                        return bodies
                    raise refusal(code, what)
                if kind == _RTM_NEWROUTE:
                    bodies.append(body)


def refusal(code: int, where: str) -> NetworkError:
    """Return the NetworkError for a kernel error number."""
    reason = errno.errorcode.get(code, str(code))
    text = f"the kernel refused it: {os.strerror(code)} ({reason})"
    return NetworkError(text, where=where, hint=ADVICE.get(code))


def _encode(route: Route, index: int) -> bytes:
    """Return the body of an RTM_NEWROUTE request."""
    body = _head(route, _SCOPE_UNIVERSE, index)
    if route.kind is RouteKind.TUN:
        body += _attribute(_RTA_METRICS, _attribute(_RTAX_MTU, _NUMBER.pack(route.mtu)))
        if route.source is not None:
            body += _attribute(_RTA_PREFSRC, route.source.packed)
    return body


def _encode_key(route: Route, index: int) -> bytes:
    """Return the body of an RTM_DELROUTE request."""
    return _head(route, _SCOPE_NOWHERE, index)


def _head(route: Route, scope: int, index: int) -> bytes:
    destination = route.destination
    is_guard = route.kind is RouteKind.UNREACHABLE
    kind, metric = (_RTN_UNREACHABLE, GUARD_METRIC) if is_guard else (_RTN_UNICAST, TUN_METRIC)
    family, bits = FAMILY[destination.version], destination.prefixlen
    body = _ROUTE.pack(family, bits, 0, 0, 0, PROTOCOL, scope, kind, 0)
    if bits:
        body += _attribute(_RTA_DST, destination.network_address.packed)
    body += _attribute(_RTA_TABLE, _NUMBER.pack(route.table))
    body += _attribute(_RTA_PRIORITY, _NUMBER.pack(metric))
    return body if is_guard else body + _attribute(_RTA_OIF, _NUMBER.pack(index))


def _read(body: bytes, version: int, table: int, index: int) -> Route | None:
    """Return the route in a message body if it is ours and in this table, else None."""
    family, bits, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    attributes = dict(_attributes(body[_ROUTE.size :]))
    found = _number(attributes.get(_RTA_TABLE))
    if (family, protocol, found) != (FAMILY[version], PROTOCOL, table):
        return None
    address, network = (IPv4Address, IPv4Network) if version == 4 else (IPv6Address, IPv6Network)
    number = int.from_bytes(attributes.get(_RTA_DST, b""), "big")
    destination: IPNetwork = network((number, bits))
    if kind == _RTN_UNREACHABLE:
        return Route(RouteKind.UNREACHABLE, destination, table)
    if kind != _RTN_UNICAST or _number(attributes.get(_RTA_OIF)) != index:
        return None
    metrics = dict(_attributes(attributes.get(_RTA_METRICS, b"")))
    packed = attributes.get(_RTA_PREFSRC)
    source: IPAddress | None = None if packed is None else address(packed)
    return Route(RouteKind.TUN, destination, table, _number(metrics.get(_RTAX_MTU)), source)


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += _aligned(max(length, _ATTRIBUTE.size))


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(_NUMBER.unpack(value)[0])


def _aligned(length: int) -> int:
    return (length + 3) & ~3
