"""The kernel's network, as far as it belongs to one gateway: routes, rules, packet filter, TUN.

Routes and rules carry a protocol number of our own, so that a later run recognizes the leftovers
of a killed one; the packet filter is a table of its own. Nothing else is ever touched.

pyroute2's asyncio core needs an event loop that can watch a netlink socket, which uvloop can't. It
therefore runs on its own loop in one thread, so that nothing here delays packets. The monitors are
watched by the main loop, because pyroute2's runs only while it has a request to carry out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from itertools import groupby
from typing import Any, TypeVar

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from esp_gw.errors import NetworkError
from esp_gw.logs import log
from esp_gw.model import IPAddress
from esp_gw.network import link as links
from esp_gw.network.changes import (
    AddAddress,
    AddRoute,
    AddRule,
    NetworkChange,
    RemoveAddress,
    RemoveFirewall,
    RemoveRoute,
    RemoveRule,
    ReplaceFirewall,
    SetMtu,
    Step,
)
from esp_gw.network.firewall import Firewall
from esp_gw.network.link import GET_LINK, GET_ROUTE, GONE, TunLink
from esp_gw.network.messages import MessageSocket, refusal
from esp_gw.network.monitor import drain, route_monitor
from esp_gw.network.nft import NftTable
from esp_gw.network.objects import MAIN_TABLE, MAX_BYPASS_RULES, Host, Network, Rule
from esp_gw.network.routes import Routes
from esp_gw.network.rule_messages import our_rules, rule_request
from esp_gw.network.tun_queues import TunQueues, delete_link, read_tun_queues

SETTLE_TIME = 0.1
"""Seconds between the kernel's first notification and a check: changes come in bursts."""
FILTER_RETRY = 10.0
"""Seconds from a look at which nft failed to the next one."""

T = TypeVar("T")


class KernelNetwork:
    """The part of the kernel's network that belongs to the gateway with this routing `table`.

    Leftovers of an earlier run in its `former` tables count as ours, too. Without `attach` there is
    no TUN: the MTU is 0, and there are no addresses.
    """

    def __init__(self, table: int, former: frozenset[int] = frozenset()) -> None:
        self._table = table
        self._owned = former | {table}
        self._neighbours: dict[int, str] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="netlink")
        self._runner = asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)
        self._ipr: Any = None
        self._messages: Any = None
        self._routes: Any = None
        self._link: TunLink | None = None
        self._filter = NftTable(table, former)
        self._filter_fault: str | None = None
        self._filter_unseen: str | None = None

    async def open(self) -> None:
        """Open the netlink sockets. Raises NetworkError."""
        try:
            self._monitor = route_monitor()
        except OSError as error:
            raise refusal(error.errno or errno.EIO, "netlink") from None
        await self._call(self._open())

    def refuse_neighbours(self) -> None:
        """Raise NetworkError if a running gateway's table is so close that rules would mix."""
        links.refuse_close_tables(self._table, self._neighbours.items())

    async def join(self, interface: str) -> None:
        """Look at the network of the running gateway that has this TUN. Raises NetworkError."""
        await self._call(self._join(interface))

    async def attach(self, interface: str) -> None:
        """Take the TUN device: claim the table, disable IPv6 autoconfiguration and bring it up.

        Raises NetworkError, also if another gateway claimed a table too close at the same time.
        """
        await self._call(self._attach(interface))

    async def close(self) -> None:
        """Close the netlink sockets and end the thread."""
        self._monitor.close()
        self._filter.close()
        await self._call(self._close())
        await asyncio.get_running_loop().run_in_executor(self._thread, self._runner.close)
        self._thread.shutdown()

    async def tun_queues(self, interface: str) -> TunQueues:
        """Return the queues of the TUN device, also before `attach`. Raises NetworkError."""
        return await self._call(read_tun_queues(self._ipr, interface, self._index))

    async def delete_link(self, index: int) -> None:
        """Delete a device, whoever holds it. Raises NetworkError."""
        await self._call(delete_link(self._ipr, index))

    async def changed(self) -> None:
        """Wait until links, addresses, routes, rules or packet filters have changed.

        Changes of other programs' objects count, too. A burst of changes counts once.
        """
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        monitors = [self._monitor, *self._filter.monitors]
        for monitor in monitors:
            loop.add_reader(monitor.fileno(), readable.set)
        try:
            await readable.wait()
        finally:
            for monitor in monitors:
                loop.remove_reader(monitor.fileno())
        # A filter that another program flushed is repaired at once.
        if not self._filter.drain():
            await asyncio.sleep(SETTLE_TIME)
        drain(self._monitor)

    async def observe(self) -> Network:
        """Return the TUN's MTU and addresses, and our routes, rules and packet filter."""
        return await self._call(self._observe())

    async def host(self, fwmark: int) -> Host:
        """Return addresses, networks and routers of all other interfaces, by this mark's routes."""
        return await self._call(links.read_host(self._ipr, self._messages, self._index, fwmark))

    async def path_mtu(self, remote: IPAddress, fwmark: int) -> int | None:
        """Return the path MTU to `remote` in bytes, or None if there is no route."""
        return await self._call(self._path_mtu(remote, fwmark))

    async def source(self, remote: IPAddress, fwmark: int) -> IPAddress | None:
        """Return the address that packets to `remote` are sent from, or None without a route."""
        return await self._call(self._source(remote, fwmark))

    async def device_to(self, target: IPAddress, source: IPAddress) -> str | None:
        """Return the interface by which packets from an address of this host leave to `target`."""
        return await self._call(self._device_to(target, source))

    async def apply(self, changes: Sequence[NetworkChange]) -> None:
        """Apply changes in the given order. Raises NetworkError.

        A packet filter that this machine can't have is no error, but a warning.
        """
        await self._call(self._apply(changes))

    async def filter_drops(self) -> dict[str, int]:
        """Return the packets dropped by the packet filter, by reason."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._filter.drops)

    async def tun_overflow(self) -> int:
        """Return the packets that the kernel dropped because the TUN's queues were full."""
        return 0 if self._link is None else await self._call(self._link.overflow())

    @property
    def filter_fault(self) -> str | None:
        """The reason that the planned packet filter is not in place, or None."""
        return self._filter_fault

    @property
    def filter_warning(self) -> str | None:
        """The sentence on a planned packet filter that is not in place, or can't be looked at."""
        if self._filter_fault is not None:
            return (
                "not closed to sockets bound to a device, to cleartext from protected prefixes and "
                f"to forged sources: {self._filter_fault}"
            )
        if self._filter_unseen is not None:
            return (
                "the packet filter is in place, unless another program changed it, which can't be "
                f"looked at: {self._filter_unseen}"
            )
        return None

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        loop = asyncio.get_running_loop()
        where = None if self._link is None else self._link.name
        try:
            return await loop.run_in_executor(self._thread, self._runner.run, work)
        except RuntimeError:
            # It was never begun where no thread can be started.
            work.close()
            raise
        except NetlinkError as error:
            raise NetworkError(f"the kernel refused it: {error.args[-1]}", where=where) from None
        except OSError as error:
            raise refusal(error.errno or errno.EIO, where or "netlink") from None

    @property
    def _index(self) -> int:
        return 0 if self._link is None else self._link.index

    async def _open(self) -> None:
        self._ipr = AsyncIPRoute()
        self._messages = MessageSocket()
        self._routes = Routes(self._messages, 0)
        self._neighbours = links.neighbours(self._messages, 0)

    async def _attach(self, interface: str) -> None:
        # Claim first, then check the others' claims: of two that start at once, never both go on.
        found = await links.find_link(self._ipr, self._messages, interface)
        await found.claim(self._table)
        await self._join(interface)
        self.refuse_neighbours()
        await self._tun.bring_up()

    async def _join(self, interface: str) -> None:
        self._link = await links.find_link(self._ipr, self._messages, interface)
        self._neighbours = links.neighbours(self._messages, self._link.index)
        self._routes = Routes(self._messages, self._link.index)

    async def _close(self) -> None:
        if self._ipr is not None:
            self._ipr.close()
        if self._messages is not None:
            self._messages.close()

    @property
    def _tables(self) -> list[int]:
        return sorted(_pairs(self._owned) - _pairs(self._neighbours))

    async def _observe(self) -> Network:
        if self._link is None:
            # A gateway may have started since.
            self._neighbours = links.neighbours(self._messages, 0)
        mtu, is_up = (0, True) if self._link is None else await self._link.state()
        return Network(
            mtu=mtu,
            is_up=is_up,
            addresses=frozenset() if self._link is None else self._link.addresses(),
            routes=frozenset(self._routes.routes(self._tables)),
            rules=frozenset(self._our_rules()),
            firewall=self._observe_filter(),
        )

    def _observe_filter(self) -> Firewall | None:
        found = self._filter.observe()
        if self._filter.unseen is not None and self._filter_unseen is None:
            log.warning("the packet filter can't be looked at", reason=self._filter.unseen)
        self._filter_unseen = self._filter.unseen
        return found

    def _our_rules(self) -> Iterator[Rule]:
        for rule in our_rules(self._messages):
            if self._is_our_rule(rule.priority, rule.table):
                yield rule

    def _is_our_rule(self, priority: int, table: int) -> bool:
        if not any(priority in _priorities(ours) for ours in self._owned):
            return False
        if table == MAIN_TABLE:
            # All gateways have such rules; a neighbour's are in its own range of priorities.
            return not any(priority in _priorities(other) for other in self._neighbours)
        return table in self._tables

    async def _path_mtu(self, remote: IPAddress, fwmark: int) -> int | None:
        try:
            route = (await self._ipr.route(GET_ROUTE, dst=str(remote), mark=fwmark))[0]
        except NetlinkError:
            return None
        metrics = route.get("metrics")
        mtu = metrics.get("mtu") if metrics else None
        if mtu:
            return int(mtu)
        link = (await self._ipr.link(GET_LINK, index=route.get("oif")))[0]
        # The loopback's MTU of 65536 exceeds the largest IP packet.
        return min(int(link.get("mtu")), 65535)

    async def _source(self, remote: IPAddress, fwmark: int) -> IPAddress | None:
        try:
            route = (await self._ipr.route(GET_ROUTE, dst=str(remote), mark=fwmark))[0]
        except NetlinkError:
            return None
        source = route.get("prefsrc")
        return None if source is None else ip_address(source)

    async def _device_to(self, target: IPAddress, source: IPAddress) -> str | None:
        try:
            found = await self._ipr.route(GET_ROUTE, dst=str(target), src=str(source))
            link = (await self._ipr.link(GET_LINK, index=found[0].get("oif")))[0]
        except NetlinkError:
            return None
        return str(link.get("ifname"))

    async def _apply(self, changes: Sequence[NetworkChange]) -> None:
        refused: list[NetworkError] = []
        for step, group in groupby(changes, lambda change: change.step):
            run = list(group)
            # A refused part, as of a family that is off, leaves no other part open.
            if refused and not run[0].is_guard:
                break
            # Thousands of routes are changed together: they go in a few batches.
            routes = [change.route for change in run if isinstance(change, AddRoute | RemoveRoute)]
            try:
                if step is Step.REMOVE_ROUTES:
                    self._routes.remove(routes)
                elif routes:
                    self._routes.replace(routes)
            except NetworkError as error:
                refused.append(error)
            for change in [] if routes else run:
                try:
                    await self._apply_one(change)
                except NetworkError as error:
                    refused.append(error)
                    if not change.is_guard:
                        break
        if refused:
            raise refused[0]

    async def _apply_one(self, change: NetworkChange) -> None:
        match change:
            case AddRule(rule):
                await self._rule("add", rule, (errno.EEXIST,))
            case RemoveRule(rule):
                await self._rule("del", rule, GONE)
            case ReplaceFirewall(firewall):
                self._replace_filter(firewall)
            case RemoveFirewall():
                self._filter.remove()
                self._filter_fault = None
            case AddAddress(address):
                await self._tun.address("add", address)
            case RemoveAddress(address):
                await self._remove_address(address)
            case SetMtu(mtu):
                await self._tun.set_mtu(mtu)
            case _:
                raise TypeError(f"no way to carry out {type(change).__name__}")

    async def _remove_address(self, address: IPAddress) -> None:
        """Remove an address of the TUN, but none of its routes.

        With a device's last IPv4 address the kernel flushes all of its IPv4 routes
        (fib_inetaddr_event in net/ipv4/fib_frontend.c).
        """
        ours = [each for each in self._routes.routes(self._tables) if not each.is_guard]
        await self._tun.address("del", address)
        # A source that is nowhere on the host any more is refused, and takes its route along.
        with contextlib.suppress(NetworkError):
            self._routes.replace([each for each in ours if each.destination.version == 4])

    @property
    def _tun(self) -> TunLink:
        if self._link is None:
            raise NetworkError("there is no TUN device")
        return self._link

    async def _rule(self, command: str, rule: Rule, ignore: tuple[int, ...]) -> None:
        message = self._ipr.rule(command, **rule_request(rule))
        await links.request(f"rule {rule.priority}", message, ignore)

    def _replace_filter(self, firewall: Firewall) -> None:
        fault = None
        try:
            self._filter.apply(firewall)
        except NetworkError as error:
            fault = str(error)
        if fault != self._filter_fault and fault is not None:
            log.warning("the packet filter is not in place", reason=fault)
        self._filter_fault = fault


def _pairs(tables: Iterable[int]) -> set[int]:
    return {number for table in tables for number in (table, table + 1)}


def _priorities(table: int) -> range:
    return range(table - MAX_BYPASS_RULES, table + 2)
