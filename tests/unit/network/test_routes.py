"""The encoding of route messages, compared with pyroute2's decoding."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from esp_gw.model import IPNetwork
from esp_gw.network.objects import Route, RouteKind
from esp_gw.network.routes import GUARD_METRIC, PROTOCOL, TUN_METRIC, _encode, _encode_key, _read

INDEX = 7


@st.composite
def routes(draw: st.DrawFn) -> Route:
    version = draw(st.sampled_from([4, 6]))
    address = draw(st.ip_addresses(v=version))
    bits = draw(st.integers(0, address.max_prefixlen))
    prefix: IPNetwork = ip_network((address, bits), strict=False)
    table = draw(st.integers(2, 2**31))
    if draw(st.booleans()):
        return Route(RouteKind.UNREACHABLE, prefix, table)
    source = draw(st.none() | st.ip_addresses(v=version))
    return Route(RouteKind.TUN, prefix, table, draw(st.integers(68, 65535)), source)


def as_pyroute2_reads(body: bytes) -> rtmsg:
    message = rtmsg(struct.pack("=IHHII", 16 + len(body), 24, 0, 0, 0) + body)
    message.decode()
    return message


@given(routes())
def test_a_route_is_read_as_it_was_written(route: Route) -> None:
    version = route.destination.version
    body = _encode(route, INDEX)
    assert _read(body, version, route.table, INDEX) == route
    assert _read(body, version, route.table + 1, INDEX) is None
    assert _read(body, 10 - version, route.table, INDEX) is None
    of_another_device = _read(body, version, route.table, INDEX + 1)
    assert of_another_device == (route if route.kind is RouteKind.UNREACHABLE else None)
    assert _read(_encode_key(route, INDEX), version, route.table, INDEX) is not None


@given(routes())
def test_pyroute2_reads_the_same_route(route: Route) -> None:
    for body in (_encode(route, INDEX), _encode_key(route, INDEX)):
        message = as_pyroute2_reads(body)
        guard = route.kind is RouteKind.UNREACHABLE
        assert message["dst_len"] == route.destination.prefixlen
        assert message["proto"] == PROTOCOL
        assert message["type"] == (7 if guard else 1)
        text = message.get_attr("RTA_DST")
        assert ip_address(text or 0) == route.destination.network_address or text is None
        assert message.get_attr("RTA_TABLE") == route.table
        assert message.get_attr("RTA_PRIORITY") == (GUARD_METRIC if guard else TUN_METRIC)
        assert message.get_attr("RTA_OIF") == (None if guard else INDEX)
    message = as_pyroute2_reads(_encode(route, INDEX))
    source = message.get_attr("RTA_PREFSRC")
    assert (None if source is None else ip_address(source)) == route.source
    metrics = message.get_attr("RTA_METRICS")
    assert (metrics.get_attr("RTAX_MTU") if metrics else 0) == route.mtu
