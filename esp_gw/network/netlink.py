"""The kernel's links, addresses and rules through pyroute2, and its routes through routes.py.

pyroute2's asyncio core needs an event loop that can watch a netlink socket, which uvloop can't. It
therefore runs on its own loop in one thread, so that nothing here delays packets.

Everything we create carries PROTOCOL (routes, rules) or sits on the TUN, so that a later run
recognizes the leftovers of a killed one. Nothing else is ever touched. The TUN's alias marks its
routing table as taken for as long as its gateway lives.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from itertools import groupby
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from esp_gw.errors import NetworkError
from esp_gw.model import IPAddress, IPNetwork, PortRange
from esp_gw.network.changes import (
    AddAddress,
    AddRoute,
    AddRule,
    NetworkChange,
    RemoveAddress,
    RemoveRoute,
    RemoveRule,
    SetMtu,
    Step,
)
from esp_gw.network.plan import MAIN_TABLE, MAX_BYPASS_RULES, Network, Rule
from esp_gw.network.routes import FAMILY, PROTOCOL, RouteSocket, refusal

SETTLE_TIME = 0.1
"""Seconds between the kernel's first notification and a check: changes come in bursts."""
_WATCHED = (1, 5, 7, 8, 9, 11, 19)
"""Multicast groups of links, addresses, routes and rules, IPv4 and IPv6 (rtnetlink(7))."""
_MAX_DRAINED = 4096
TX_QUEUE_LEN = 1000
"""Packets that the kernel queues for the TUN, as for an Ethernet card."""
_ALIAS = "esp_gw table {}"
_ALIAS_PATTERN = re.compile(r"esp_gw table (\d{1,10})")
_FR_ACT_TO_TBL = 1
_FIB_RULE_INVERT = 2
_FIB_RULE_FIND_SADDR = 0x00010000
_IFA_F_NODAD = 2
_IFF_UP = 1
_IN6_ADDR_GEN_MODE_NONE = 1
_GONE = (errno.ESRCH, errno.ENOENT, errno.EADDRNOTAVAIL, errno.ENODEV)

T = TypeVar("T")


class Netlink:
    """The part of the kernel's network that belongs to the gateway `interface` and its `table`.

    Leftovers of a killed run in its `former` tables count as ours, too.
    """

    def __init__(self, interface: str, table: int, former: frozenset[int] = frozenset()) -> None:
        self._interface = interface
        self._table = table
        self._owned = former | {table}
        self._neighbours: dict[int, str] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self._ipr: Any = None
        self._routes: Any = None
        self._index = 0

    async def open(self) -> None:
        """Find the TUN device, claim its table, disable IPv6 autoconfiguration and bring it up.

        Raises NetworkError, also if another gateway's table is so close that rules would mix.
        """
        self._monitor = _open_monitor()
        await self._call(self._open())

    async def close(self) -> None:
        """Close the netlink sockets and end the thread."""
        self._monitor.close()
        await self._call(self._close())
        await asyncio.get_running_loop().run_in_executor(self._thread, self._runner.close)
        self._thread.shutdown()

    async def changed(self) -> None:
        """Wait until links, addresses, routes or rules have changed since the last call.

        Changes of other programs' objects count, too. A burst of changes counts once.
        """
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._monitor.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._monitor.fileno())
        await asyncio.sleep(SETTLE_TIME)
        _drain(self._monitor)

    async def observe(self) -> Network:
        """Return the TUN's MTU and addresses, and our routes and rules."""
        return await self._call(self._observe())

    async def host_addresses(self) -> frozenset[IPAddress]:
        """Return the addresses of all other interfaces."""
        return await self._call(self._host_addresses())

    async def path_mtu(self, remote: IPAddress, fwmark: int) -> int | None:
        """Return the path MTU to `remote` in bytes, or None if there is no route."""
        return await self._call(self._path_mtu(remote, fwmark))

    async def apply(self, changes: Sequence[NetworkChange]) -> None:
        """Apply changes in the given order. Raises NetworkError."""
        await self._call(self._apply(changes))

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._runner.run, work)
        except NetlinkError as error:
            raise NetworkError(
                f"the kernel refused it: {error.args[-1]}", where=self._interface
            ) from None
        except OSError as error:
            raise refusal(error.errno or errno.EIO, self._interface) from None

    async def _open(self) -> None:
        self._ipr = AsyncIPRoute()
        found = await self._ipr.link_lookup(ifname=self._interface)
        if not found:
            raise NetworkError("the TUN device is gone", where=self._interface)
        self._index = found[0]
        self._routes = RouteSocket(self._index)
        await self._claim_table()
        await self._do(
            f"link {self._interface}",
            self._ipr.link(
                "set",
                index=self._index,
                af_spec={
                    "attrs": [
                        (
                            "AF_INET6",
                            {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _IN6_ADDR_GEN_MODE_NONE)]},
                        )
                    ]
                },
            ),
            ignore=(errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL),
        )
        await self._do(
            f"link {self._interface}",
            self._ipr.link("set", index=self._index, txqlen=TX_QUEUE_LEN, state="up"),
        )

    async def _claim_table(self) -> None:
        # Claim first, then check the others' claims: of two that start at once, never both go on.
        await self._do(
            f"link {self._interface}",
            self._ipr.link("set", index=self._index, ifalias=_ALIAS.format(self._table)),
        )
        async for link in await self._ipr.link("dump"):
            claim = _ALIAS_PATTERN.fullmatch(link.get("ifalias") or "")
            if claim is not None and link["index"] != self._index:
                self._neighbours[int(claim[1])] = link.get("ifname")
        for table, name in self._neighbours.items():
            if abs(table - self._table) <= MAX_BYPASS_RULES + 1:
                raise NetworkError(
                    f"the gateway of {name} uses routing table {table}, too close to "
                    f"{self._table}: the rules of both would mix",
                    where="gateway.table",
                    hint=f"choose a number at least {MAX_BYPASS_RULES + 2} away from {table}",
                )

    @property
    def _tables(self) -> list[int]:
        return sorted(_pairs(self._owned) - _pairs(self._neighbours))

    async def _close(self) -> None:
        if self._ipr is not None:
            self._ipr.close()
        if self._routes is not None:
            self._routes.close()

    async def _observe(self) -> Network:
        link = (await self._ipr.link("get", index=self._index))[0]
        addresses = [
            ip_address(message.get("address"))
            async for message in await self._ipr.addr("dump", index=self._index)
            if message["index"] == self._index
        ]
        return Network(
            mtu=link.get("mtu"),
            is_up=bool(link["flags"] & _IFF_UP),
            addresses=frozenset(addresses),
            routes=frozenset(self._routes.routes(self._tables)),
            rules=frozenset([rule async for rule in self._our_rules()]),
        )

    async def _our_rules(self) -> Any:
        for version, family in FAMILY.items():
            async for message in await self._ipr.rule("dump", family=family):
                ours = (
                    message["family"] == family
                    and message.get("protocol") == PROTOCOL
                    and self._is_our_rule(message.get("priority"), message.get("table"))
                )
                if ours:
                    yield _read_rule(message, version)

    def _is_our_rule(self, priority: int, table: int) -> bool:
        if not any(priority in _priorities(ours) for ours in self._owned):
            return False
        if table == MAIN_TABLE:
            # All gateways have such rules; a neighbour's are in its own range of priorities.
            return not any(priority in _priorities(other) for other in self._neighbours)
        return table in self._tables

    async def _host_addresses(self) -> frozenset[IPAddress]:
        return frozenset(
            [
                ip_address(message.get("local") or message.get("address"))
                async for message in await self._ipr.addr("dump")
                if message["index"] != self._index
            ]
        )

    async def _path_mtu(self, remote: IPAddress, fwmark: int) -> int | None:
        try:
            route = (await self._ipr.route("get", dst=str(remote), mark=fwmark))[0]
        except NetlinkError:
            return None
        metrics = route.get("metrics")
        mtu = metrics.get("mtu") if metrics else None
        if mtu:
            return int(mtu)
        link = (await self._ipr.link("get", index=route.get("oif")))[0]
        # The loopback's MTU of 65536 exceeds the largest IP packet.
        return min(int(link.get("mtu")), 65535)

    async def _apply(self, changes: Sequence[NetworkChange]) -> None:
        for step, group in groupby(changes, lambda change: change.step):
            run = list(group)
            # Thousands of routes are changed together: they go in a few batches.
            routes = [change.route for change in run if isinstance(change, AddRoute | RemoveRoute)]
            if not routes:
                for change in run:
                    await self._apply_one(change)
            elif step is Step.REMOVE_ROUTES:
                self._routes.remove(routes)
            else:
                self._routes.replace(routes)

    async def _apply_one(self, change: NetworkChange) -> None:
        match change:
            case AddRule(rule):
                await self._rule("add", rule)
            case RemoveRule(rule):
                await self._rule("del", rule)
            case AddAddress(address):
                await self._address("add", address)
            case RemoveAddress(address):
                await self._address("del", address)
            case SetMtu(mtu):
                await self._do(
                    f"link {self._interface} mtu {mtu}",
                    self._ipr.link("set", index=self._index, mtu=mtu),
                )
            case _:
                raise TypeError(f"no way to carry out {type(change).__name__}")

    async def _rule(self, command: str, rule: Rule) -> None:
        arguments: dict[str, Any] = {
            "family": FAMILY[rule.version],
            "priority": rule.priority,
            "table": rule.table,
            "action": _FR_ACT_TO_TBL,
            "FRA_PROTOCOL": PROTOCOL,
        }
        if rule.fwmark is not None:
            arguments |= {"fwmark": rule.fwmark, "fwmask": 0xFFFFFFFF}
        arguments["flags"] = (_FIB_RULE_INVERT if rule.inverted else 0) | (
            _FIB_RULE_FIND_SADDR if rule.find_source else 0
        )
        if rule.suppress_default:
            arguments["FRA_SUPPRESS_PREFIXLEN"] = 0
        for key, prefix in (("src", rule.source), ("dst", rule.destination)):
            if prefix is not None:
                arguments[key] = str(prefix.network_address)
                arguments[f"{key}_len"] = prefix.prefixlen
        if rule.protocol is not None:
            arguments["ip_proto"] = rule.protocol
        for key, ports in (
            ("sport_range", rule.source_port),
            ("dport_range", rule.destination_port),
        ):
            if ports is not None:
                arguments[key] = f"{ports.first}:{ports.last}"
        ignore = _GONE if command == "del" else (errno.EEXIST,)
        await self._do(f"rule {rule.priority}", self._ipr.rule(command, **arguments), ignore)

    async def _address(self, command: str, address: IPAddress) -> None:
        arguments: dict[str, Any] = {
            "index": self._index,
            "address": str(address),
            "prefixlen": address.max_prefixlen,
        }
        if address.version == 6:
            arguments["flags"] = _IFA_F_NODAD
        ignore = _GONE if command == "del" else (errno.EEXIST,)
        await self._do(f"address {address}", self._ipr.addr(command, **arguments), ignore)

    async def _do(self, what: str, request: Any, ignore: tuple[int, ...] = ()) -> None:
        try:
            await request
        except NetlinkError as error:
            if error.code in ignore:
                return
            raise refusal(error.code, what) from None


def _open_monitor() -> socket.socket:
    """Return a socket that becomes readable on a change, for the main event loop.

    pyroute2's loop runs only while it has a request to carry out.
    """
    monitor = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    groups = sum(1 << (group - 1) for group in _WATCHED)
    monitor.bind((0, groups))
    return monitor


def _drain(monitor: socket.socket) -> None:
    """Discard the notifications: the state is read afresh, so a lost one doesn't matter."""
    for _ in range(_MAX_DRAINED):
        try:
            monitor.recv(1)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _pairs(tables: Iterable[int]) -> set[int]:
    return {number for table in tables for number in (table, table + 1)}


def _priorities(table: int) -> range:
    return range(table - MAX_BYPASS_RULES, table + 2)


def _read_rule(message: Any, version: int) -> Rule:
    return Rule(
        version=version,
        priority=message.get("priority"),
        table=message.get("table"),
        fwmark=message.get("fwmark"),
        inverted=bool(message["flags"] & _FIB_RULE_INVERT),
        suppress_default=message.get("FRA_SUPPRESS_PREFIXLEN") == 0,
        find_source=bool(message["flags"] & _FIB_RULE_FIND_SADDR),
        source=_prefix(message.get("src"), message["src_len"]),
        destination=_prefix(message.get("dst"), message["dst_len"]),
        protocol=message.get("ip_proto"),
        source_port=_ports(message.get("sport_range")),
        destination_port=_ports(message.get("dport_range")),
    )


def _prefix(address: str | None, length: int) -> IPNetwork | None:
    return None if address is None else ip_network(f"{address}/{length}")


def _ports(text: str | None) -> PortRange | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    return PortRange(int(first), int(last or first))
