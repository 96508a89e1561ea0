"""Bulk access to the kernel's routes, by rtnetlink route messages.

Sources: rtnetlink(7), linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from esp_gw.model import IPAddress, IPNetwork
from esp_gw.network.messages import (
    CREATE,
    FAMILY,
    NUMBER,
    REPLACE,
    MessageSocket,
    attribute,
    attributes,
    number,
    refusal,
)
from esp_gw.network.objects import Route, RouteKind

PROTOCOL = 0xE5
"""The routing protocol number of esp_gw, as in /etc/iproute2/rt_protos."""
GUARD_METRIC = 2**32 - 1
"""Metric of unreachable routes: any other route to the prefix takes precedence."""
TUN_METRIC = 1024

_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, dst_len, src_len, TOS, table, protocol, scope, type, flags."""
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 6, 7
_RTA_METRICS, _RTA_TABLE, _RTAX_MTU = 8, 15, 2
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
_SCOPE_UNIVERSE, _SCOPE_NOWHERE = 0, 255
_GONE = (errno.ESRCH, errno.ENOENT, errno.ENODEV)


class Routes:
    """Our routes in the kernel, into the TUN `index` or unreachable.

    All methods block briefly.
    """

    def __init__(self, messages: MessageSocket, index: int) -> None:
        self._messages = messages
        self._index = index

    def routes(self, tables: Sequence[int]) -> Iterator[Route]:
        """Yield our routes in the given tables. Raises NetworkError, OSError."""
        for version, family in FAMILY.items():
            for table in tables:
                request = _ROUTE.pack(family, 0, 0, 0, 0, PROTOCOL, 0, 0, 0)
                request += attribute(_RTA_TABLE, NUMBER.pack(table))
                what = f"routes of the table {table}"
                for body in self._messages.dump(_RTM_GETROUTE, request, what):
                    route = _read(body, version, table, self._index)
                    if route is not None:
                        yield route

    def replace(self, routes: Sequence[Route]) -> None:
        """Add routes, replacing those with the same key.

        Raises NetworkError for the first that is refused; the others are in place.
        """
        self._change(_RTM_NEWROUTE, CREATE | REPLACE, _encode, routes)

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

        def take(code: int, index: int) -> None:
            if code not in ignored:
                refused.append((code, routes[index]))

        self._messages.change(kind, flags, [encode(each, self._index) for each in routes], take)
        for code, route in refused:
            raise refusal(code, f"route {route.destination} table {route.table}")


def _encode(route: Route, index: int) -> bytes:
    """Return the body of an RTM_NEWROUTE request."""
    body = _head(route, _SCOPE_UNIVERSE, index)
    if route.kind is RouteKind.TUN:
        body += attribute(_RTA_METRICS, attribute(_RTAX_MTU, NUMBER.pack(route.mtu)))
        if route.source is not None:
            body += attribute(_RTA_PREFSRC, route.source.packed)
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
        body += attribute(_RTA_DST, destination.network_address.packed)
    body += attribute(_RTA_TABLE, NUMBER.pack(route.table))
    body += attribute(_RTA_PRIORITY, NUMBER.pack(metric))
    return body if is_guard else body + attribute(_RTA_OIF, NUMBER.pack(index))


def _read(body: bytes, version: int, table: int, index: int) -> Route | None:
    """Return the route in a message body if it is ours and in this table, else None."""
    family, bits, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(body)
    fields = dict(attributes(body[_ROUTE.size :]))
    found = number(fields.get(_RTA_TABLE))
    if (family, protocol, found) != (FAMILY[version], PROTOCOL, table):
        return None
    address, network = (IPv4Address, IPv4Network) if version == 4 else (IPv6Address, IPv6Network)
    first = int.from_bytes(fields.get(_RTA_DST, b""), "big")
    destination: IPNetwork = network((first, bits))
    if kind == _RTN_UNREACHABLE:
        return Route(RouteKind.UNREACHABLE, destination, table)
    if kind != _RTN_UNICAST or number(fields.get(_RTA_OIF)) != index:
        return None
    metrics = dict(attributes(fields.get(_RTA_METRICS, b"")))
    packed = fields.get(_RTA_PREFSRC)
    source: IPAddress | None = None if packed is None else address(packed)
    return Route(RouteKind.TUN, destination, table, number(metrics.get(_RTAX_MTU)), source)
