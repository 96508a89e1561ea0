"""The TUN device as a network interface: its state, alias, MTU and addresses.

The alias marks the gateway's routing table as taken for as long as the device lives.

Source: rtnetlink(7).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from pyroute2.netlink import NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_GETROUTE

from esp_gw.errors import NetworkError
from esp_gw.model import IPAddress, IPNetwork
from esp_gw.network import dumps
from esp_gw.network.messages import MessageSocket, refusal
from esp_gw.network.objects import MAX_BYPASS_RULES, Host
from esp_gw.protocol import MIN_IPV6_MTU

TX_QUEUE_LEN = 1000
"""Packets that the kernel queues for the TUN, as for an Ethernet card."""
TUN_OVERFLOW = "tun-overflow"
"""Drop reason of a packet that found the queues of the TUN full; the kernel counts it."""
GET_LINK = (RTM_GETLINK, NLM_F_REQUEST)
"""A `get` of one link by pyroute2, without an ACK.

Its own `get` asks for an ACK behind the answer, reads none, and keeps it for ever in the queue of
messages that nobody asked for: upstream, a request's queue should live until its ACK has come.
"""
GET_ROUTE = (RTM_GETROUTE, NLM_F_REQUEST)
"""A `get` of the route to an address, likewise."""
GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV, errno.ENXIO)
"""Errors of a request to delete an object that doesn't exist; ENXIO on a device without IPv6."""
_ALIAS = "esp_gw table {}"
_ALIAS_PATTERN = re.compile(r"esp_gw table (\d{1,10})")
_IFA_F_NODAD = 2
_IFF_UP = 1
_IN6_ADDR_GEN_MODE_NONE = 1
_LINK_LOCAL_LEN = 64
_LOOPBACK_INDEX = 1
"""The index of `lo` in every network namespace."""
_RT_SCOPE_LINK = 253
_ANYWHERE = {4: "240.0.0.1", 6: "3fff::1"}
"""Addresses to which default routes alone lead (RFC 1112 4, RFC 9637)."""
_PROC_NET = Path("/proc/self/net")
_ADDRESSES_6 = _PROC_NET / "if_inet6"
"""Missing in a kernel booted with ipv6.disable=1 (Documentation/networking/ipv6.rst)."""


class TunLink:
    """The interface `name` with this `index`; requests go through pyroute2's `ipr`.

    Addresses come by `messages`.
    """

    def __init__(self, ipr: Any, messages: MessageSocket, name: str, index: int) -> None:
        self._ipr = ipr
        self._messages = messages
        self.name = name
        self.index = index

    async def claim(self, table: int) -> None:
        """Mark the routing table as taken. Raises NetworkError."""
        await self._set(ifalias=_ALIAS.format(table))

    async def bring_up(self) -> None:
        """Disable IPv6 autoconfiguration and bring the interface up. Raises NetworkError."""
        await self._disable_autoconfiguration()
        await self._set(txqlen=TX_QUEUE_LEN, state="up")

    async def set_mtu(self, mtu: int) -> None:
        """Set the MTU, in bytes. Raises NetworkError.

        The kernel removes IPv6 from a device below IPv6's minimum MTU, and brings it back with its
        defaults.
        """
        former, _ = await self.state()
        await self._set(mtu=mtu)
        if former < MIN_IPV6_MTU <= mtu:
            await self._disable_autoconfiguration()
            for address in self.addresses():
                if address.is_link_local:
                    await self.address("del", address, _LINK_LOCAL_LEN)

    async def _disable_autoconfiguration(self) -> None:
        mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]}
        await self._set(
            ignore=(errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL),
            af_spec={"attrs": [("AF_INET6", mode)]},
        )

    async def state(self) -> tuple[int, bool]:
        """Return the MTU in bytes, and True if the interface is up."""
        link = (await self._ipr.link(GET_LINK, index=self.index))[0]
        return int(link.get("mtu")), bool(link["flags"] & _IFF_UP)

    async def overflow(self) -> int:
        """Return the packets that the kernel dropped on their way into the device.

        Its queues were full: `tx_dropped` of ip-link(8).
        """
        link = (await self._ipr.link(GET_LINK, index=self.index))[0]
        statistics = link.get("stats64") or link.get("stats")
        return 0 if statistics is None else int(statistics["tx_dropped"])

    def addresses(self) -> frozenset[IPAddress]:
        """Return the interface's addresses. Raises NetworkError, OSError."""
        return frozenset(each.address for each in dumps.addresses(self._messages, self.index))

    async def address(self, command: str, address: IPAddress, length: int | None = None) -> None:
        """Carry out `add` or `del`; a repeated one is no error. Raises NetworkError.

        `length` is that of the prefix, all bits by default.
        """
        arguments: dict[str, Any] = {
            "index": self.index,
            "address": str(address),
            "prefixlen": address.max_prefixlen if length is None else length,
        }
        if address.version == 6:
            arguments["flags"] = _IFA_F_NODAD
        ignore = GONE if command == "del" else (errno.EEXIST,)
        await request(f"address {address}", self._ipr.addr(command, **arguments), ignore)

    async def _set(self, ignore: tuple[int, ...] = (), **values: Any) -> None:
        what = f"link {self.name}"
        await request(what, self._ipr.link("set", index=self.index, **values), ignore)


async def find_link(ipr: Any, messages: MessageSocket, name: str) -> TunLink:
    """Return the interface called `name`. Raises NetworkError."""
    try:
        found = await ipr.link(GET_LINK, ifname=name)
    except NetlinkError:
        raise NetworkError("the TUN device is gone", where=name) from None
    return TunLink(ipr, messages, name, found[0]["index"])


def neighbours(messages: MessageSocket, index: int) -> dict[int, str]:
    """Return the routing tables claimed by other gateways, with the names of their interfaces.

    `index` is the own interface, 0 for none. Raises NetworkError, OSError.
    """
    found: dict[int, str] = {}
    for other, name, alias in dumps.links(messages):
        claim = _ALIAS_PATTERN.fullmatch(alias)
        if claim is not None and other != index:
            found[int(claim[1])] = name
    return found


def refuse_close_tables(table: int, taken: Iterable[tuple[int, str]]) -> None:
    """Raise NetworkError if a table is so close to another gateway's that rules would mix."""
    for other, name in taken:
        if abs(other - table) <= MAX_BYPASS_RULES + 1:
            raise NetworkError(
                f"the gateway of {name} uses routing table {other}, too close to "
                f"{table}: the rules of both would mix",
                where="gateway.table",
                hint=f"choose a number at least {MAX_BYPASS_RULES + 2} away from {other}",
            )


async def read_host(ipr: Any, messages: MessageSocket, index: int, fwmark: int) -> Host:
    """Return the host's addresses, networks and routers, without the interface of this index.

    The routers are the default gateways of packets with the mark `fwmark`, as outer ones have.
    """
    addresses: set[IPAddress] = set()
    connected: set[IPNetwork] = set()
    for found in dumps.addresses(messages):
        if found.index == index:
            continue
        addresses.add(found.address)
        if (
            found.index != _LOOPBACK_INDEX
            and found.scope < _RT_SCOPE_LINK
            and found.network != ip_network(found.address)
        ):
            connected.add(found.network)
    versions = _versions()
    routers = {
        await _router(ipr, anywhere, fwmark) for v, anywhere in _ANYWHERE.items() if v in versions
    }
    return Host(
        frozenset(addresses),
        frozenset(connected),
        versions,
        frozenset(each for each in routers if each is not None),
    )


async def _router(ipr: Any, destination: str, fwmark: int) -> IPAddress | None:
    """Return the next hop to an address; a dump would have all of a BGP router's routes."""
    try:
        route = (await ipr.route(GET_ROUTE, dst=destination, mark=fwmark))[0]
    except NetlinkError:
        return None
    gateway = route.get("gateway")
    return None if gateway is None else ip_address(gateway)


def _versions() -> frozenset[int]:
    """Return the IP versions of the kernel: without IPv6 it refuses every object of that family.

    There is no way out for IPv6 packets then. A socket would not tell it from a service that may
    not use the family.
    """
    return frozenset({4} if _PROC_NET.is_dir() and not _ADDRESSES_6.exists() else {4, 6})


async def request(what: str, awaitable: Any, ignore: tuple[int, ...] = ()) -> None:
    """Await a pyroute2 request. Raises NetworkError, unless its error number is in `ignore`."""
    try:
        await awaitable
    except NetlinkError as error:
        if error.code in ignore:
            return
        raise refusal(error.code, what) from None
