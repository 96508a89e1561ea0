"""The kernel's own answer on the way of a packet, as `ip route get` has it.

Sources: rtnetlink(7), inet_rtm_getroute in net/ipv4/route.c, inet6_rtm_getroute in
net/ipv6/route.c.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

from esp_gw.model import IPAddress
from esp_gw.network.flow import Flow
from esp_gw.network.messages import (
    FAMILY,
    NUMBER,
    MessageSocket,
    attribute,
    attributes,
    number,
)
from esp_gw.protocol import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP

_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, two prefix lengths, TOS, table, protocol, scope, type, flags."""
_PORT = struct.Struct("!H")
_RTM_GETROUTE = 26
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY = 1, 2, 3, 4, 5
_RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE, _RTA_VIA = 7, 8, 15, 18
_RTA_IP_PROTO, _RTA_SPORT, _RTA_DPORT = 27, 28, 29
_RTAX_MTU = 2
_LOOKUP_TABLE = 0x1000
"""RTM_F_LOOKUP_TABLE: the reply names the table; IPv6 does anyhow, and refuses the flag."""
_RTN_LOCAL = 2
_PORTED = (IPPROTO_TCP, IPPROTO_UDP)
_KNOWN = {4: (*_PORTED, IPPROTO_ICMP), 6: (*_PORTED, IPPROTO_ICMPV6)}
"""Protocols that a lookup takes, by IP version."""


@dataclass(frozen=True, slots=True)
class Way:
    """A route as the kernel finds it; `error` is the number of its refusal, 0 for none.

    A missing `device` or `gateway` is empty or None; `mtu` is 0 if the route has none of its own.
    """

    error: int = 0
    is_local: bool = False
    device: str = ""
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    table: int = 0
    mtu: int = 0


def way_of(messages: MessageSocket, flow: Flow, arrives: str = "") -> Way:
    """Return the route of a flow from this host, or of one that `arrives` at an interface.

    Raises OSError if the kernel can't be asked.
    """
    found = [attribute(_RTA_SRC, flow.source.packed)]
    if arrives:
        try:
            index = socket.if_nametoindex(arrives)
        except OSError:
            return Way(error=errno.ENODEV)
        found.append(attribute(_RTA_IIF, NUMBER.pack(index)))
    return _asked(messages, flow, flow.source.max_prefixlen, found)


def way_to(messages: MessageSocket, destination: IPAddress) -> Way:
    """Return the route to an address, from whatever source the kernel chooses. Raises OSError."""
    return _asked(messages, Flow(destination, destination), 0, [])


def _asked(messages: MessageSocket, flow: Flow, source_len: int, more: list[bytes]) -> Way:
    version = flow.destination.version
    body = _ROUTE.pack(
        FAMILY[version],
        flow.destination.max_prefixlen,
        source_len,
        *(0, 0, 0, 0, 0),
        _LOOKUP_TABLE if version == 4 else 0,
    )
    body += attribute(_RTA_DST, flow.destination.packed) + b"".join(more)
    body += b"".join(_transport(flow))
    try:
        return _read(messages.get(_RTM_GETROUTE, body))
    except OSError as error:
        if not error.errno:
            raise
        return Way(error=error.errno)


def _transport(flow: Flow) -> Iterator[bytes]:
    """Yield what a rule may look for in the packet's transport header."""
    if flow.protocol not in _KNOWN[flow.destination.version]:
        return
    yield attribute(_RTA_IP_PROTO, bytes([flow.protocol]))
    if flow.protocol in _PORTED:
        for kind, port in ((_RTA_SPORT, flow.source_port), (_RTA_DPORT, flow.destination_port)):
            if port:
                yield attribute(kind, _PORT.pack(port))


def _read(body: bytes) -> Way:
    _, _, _, _, table, _, _, kind, _ = _ROUTE.unpack_from(body)
    fields = dict(attributes(body[_ROUTE.size :]))
    metrics = dict(attributes(fields.get(_RTA_METRICS, b"")))
    return Way(
        is_local=kind == _RTN_LOCAL,
        device=_name(number(fields.get(_RTA_OIF))),
        gateway=_gateway(fields),
        source=_address(fields.get(_RTA_PREFSRC)),
        table=number(fields.get(_RTA_TABLE)) or table,
        mtu=number(metrics.get(_RTAX_MTU)),
    )


def _gateway(fields: dict[int, bytes]) -> IPAddress | None:
    via = fields.get(_RTA_VIA)
    # struct rtvia: an IPv4 route by way of an IPv6 router.
    return _address(fields.get(_RTA_GATEWAY) if via is None else via[2:])


def _address(value: bytes | None) -> IPAddress | None:
    return None if value is None else ip_address(value)


def _name(index: int) -> str:
    with contextlib.suppress(OSError):
        return socket.if_indextoname(index)
    return ""
