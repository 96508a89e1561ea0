"""A fake data plane and a fake kernel, held in memory, for the tests of the layers above them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from esp_gw.crypto.aead import AfAlgStatus
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import (
    NEVER,
    CeilingNear,
    Counters,
    EngineStatus,
    Event,
    LaneStatus,
    LatencyStatus,
    OffloadStatus,
    Opening,
    OuterSocket,
    Refused,
    SaCounters,
)
from esp_gw.engine.stages import StageTimes
from esp_gw.errors import EngineError, NetworkError
from esp_gw.model import Direction, IPAddress, Lease, Policy, Sa
from esp_gw.network import changes
from esp_gw.network.objects import Host, Network
from esp_gw.network.tun_queues import TunQueues
from lab.waiting import comes_to_hold


class _Collector(logging.Handler):
    def __init__(self, entries: list[dict[str, Any]]) -> None:
        super().__init__()
        self.entries = entries

    def emit(self, record: logging.LogRecord) -> None:
        line = {"event": record.getMessage(), "log_level": record.levelname.lower()}
        if record.exc_info:
            line["exc_info"] = record.exc_info
        self.entries.append(line | record.__dict__["fields"])


@contextmanager
def captured_logs() -> Iterator[list[dict[str, Any]]]:
    """Collect log entries: the event, its level and its fields."""
    logger = logging.getLogger("esp_gw")
    before = logger.level
    collector = _Collector([])
    logger.addHandler(collector)
    logger.setLevel(logging.DEBUG)
    try:
        yield collector.entries
    finally:
        logger.removeHandler(collector)
        logger.setLevel(before)


async def until(condition: Callable[[], object]) -> None:
    assert await comes_to_hold(10, condition)


_Wanted = tuple[str, Sa, Lease | int | None]
"""An SA with its lease or floor; or with the name of the SA that it replaces, and None."""


class FakeEngine:
    """An engine that only records its calls; `used` is the last sequence number of each SA.

    `fences` and `notices` have the numbers of inbound SAs that are watched, `placed` the addresses
    that peers were last at. `dummies` has how many of the numbers of an inbound SA were those of
    dummies. `flows` has how many flows an SA carries.
    `is_profiled` is True while a profile runs; `stage_ns` are the times of its thread.
    `replaced` has the former and the new name of each SA that `replace_sa` has changed.
    """

    name = "fake"
    queues = 2

    def __init__(self) -> None:
        self.is_open = False
        self.is_started = False
        self.af_alg: dict[str, AfAlgStatus] = {}
        self.latency = LatencyStatus("normal")
        self.sas: dict[str, Sa] = {}
        self.leases: dict[str, Lease] = {}
        self.floors: dict[str, int] = {}
        self.fences: dict[str, int] = {}
        self.notices: dict[str, int] = {}
        self._begins: dict[str, tuple[int, int]] = {}
        self.placed: dict[str, tuple[IPAddress, int]] = {}
        self.used: dict[str, int] = {}
        self.flows: dict[str, int] = {}
        self.dummies: dict[str, int] = {}
        self.sent_dummies: list[str] = []
        self.relay: int | None = None
        self.ike_sent: list[tuple[IPAddress, IPAddress, int, bytes]] = []
        self._reported: dict[str, int] = {}
        self.extensions: list[tuple[str, Lease]] = []
        self.policies: tuple[Policy, ...] = ()
        self.sockets: frozenset[OuterSocket] = frozenset()
        self.refuses: str | None = None
        self.replaced: list[tuple[str, str]] = []
        self._waiting: list[_Wanted] | None = None
        self.is_profiled = False
        self.stage_ns: dict[str, int] = {}

    def open(self, settings: EngineSettings, on_event: Callable[[Event], None]) -> None:
        assert not self.is_open
        self.is_open = True
        self.tell = on_event

    def start(self) -> None:
        assert self.is_open
        assert not self.is_started
        self.is_started = True

    def close(self) -> None:
        assert self.is_open
        self.is_open = self.is_started = False

    def set_outer_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        self.sockets = frozenset(wanted)

    def install_outbound(self, sa: Sa, lease: Lease) -> None:
        self._collect("", sa, lease)

    def install_inbound(
        self, sa: Sa, highest_seq: int, fence: int = 0, notice_at: int = NEVER
    ) -> None:
        self._begins[sa.name] = (fence, notice_at)
        self._collect("", sa, highest_seq)

    def watch_numbers(self, notices: Mapping[str, int]) -> None:
        self.notices |= {name: at for name, at in notices.items() if name in self.sas}

    def place_peer(self, name: str, address: IPAddress, port: int) -> None:
        self.placed[name] = (address, port)

    def replace_sa(self, name: str, sa: Sa) -> None:
        self._collect(name, sa, None)

    def _collect(self, name: str, sa: Sa, begin: Lease | int | None) -> None:
        assert self.is_started
        assert OuterSocket(sa.local, sa.encapsulation) in self.sockets
        if sa.name == self.refuses:
            self.refuses = None
            raise EngineError("refused", where=sa.name)
        if self._waiting is None:
            self._change([(name, sa, begin)])
        else:
            self._waiting.append((name, sa, begin))

    @contextmanager
    def at_once(self) -> Iterator[None]:
        assert self._waiting is None
        waiting = self._waiting = []
        try:
            yield
        finally:
            self._waiting = None
        self._change(waiting)

    def _change(self, wanted: Sequence[_Wanted]) -> None:
        """Install and replace SAs together, or raise EngineError and change nothing."""
        replaced = {name: sa for name, sa, begin in wanted if begin is None}
        assert len(replaced) == sum(begin is None for _, _, begin in wanted)
        for name, sa in replaced.items():
            if name not in self.sas:
                raise EngineError("no such SA", where=name)
            same = [(each.keymat, each.suite, each.direction) for each in (self.sas[name], sa)]
            if same[0] != same[1]:
                raise EngineError("another key or direction", where=name)
        after = [sa for name, sa in self.sas.items() if name not in replaced]
        after += [sa for _, sa, _ in wanted]
        for held in ([sa.name for sa in after], [sa.spi for sa in after if _is_inbound(sa)]):
            if len(set(held)) != len(held):
                raise EngineError("another SA has this name or SPI")
        self.sas = {sa.name: sa for sa in after}
        states: list[dict[str, Any]] = [self.leases, self.floors, self.used, self._reported]
        states += [self.fences, self.notices]
        moved = [
            (state, sa.name, state.pop(name))
            for name, sa in replaced.items()
            for state in states
            if name in state
        ]
        for state, name, value in moved:
            state[name] = value
        for _, sa, begin in wanted:
            if begin is not None:
                self.used.pop(sa.name, None)
            if isinstance(begin, Lease):
                self.leases[sa.name] = begin
            elif begin is not None:
                self.floors[sa.name] = begin
                self.fences[sa.name], self.notices[sa.name] = self._begins[sa.name]
        self.replaced += [(name, sa.name) for name, sa in replaced.items()]

    def receive(self, name: str, packets: int) -> None:
        """Receive packets with the next numbers of an inbound SA."""
        self.used[name] = self.used.get(name, self.floors[name]) + packets
        if self.used[name] > self.notices[name]:
            self.notices[name] = NEVER
            self.tell(CeilingNear(name, self.used[name]))

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        counters = self.counters().sas
        for name in names:
            del self.sas[name]
        return [counters[name] for name in names]

    def send_dummy(self, name: str) -> None:
        self.sent_dummies.append(name)

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        assert all(self.sas.keys() & set(policy.sas) for policy in policies if policy.sas)
        self.policies = tuple(policies)

    def extend_lease(self, name: str, lease: Lease) -> None:
        assert name in self.sas
        self.extensions.append((name, lease))

    def start_profile(self) -> None:
        self.is_profiled = True

    def stop_profile(self) -> None:
        self.is_profiled = False

    def stage_times(self) -> list[StageTimes]:
        return [StageTimes("fake", dict(self.stage_ns), 1, 1, 1)]

    def stage_clock_ns(self) -> float:
        return 20.0

    def status(self) -> EngineStatus:
        offload = {"udp_gso": OffloadStatus(True), "merge": OffloadStatus(False, "switched off")}
        suites = {sa.suite.name: "OpenSSL 3.6.0" for sa in self.sas.values()}
        inbound = (sa for sa in self.sas.values() if sa.direction is Direction.INBOUND)
        lanes = LaneStatus(laned=sum(sa.lane is not None for sa in inbound))
        return EngineStatus(1, False, self.latency, suites, "AES-NI", offload, self.af_alg, lanes)

    def advanced_replay_floors(self) -> dict[str, int]:
        inbound = [sa.name for sa in self.sas.values() if sa.direction is Direction.INBOUND]
        now = {name: self.used[name] for name in inbound if name in self.used}
        advanced = dict(now.items() - self._reported.items())
        self._reported |= now
        return advanced

    def refused(self) -> list[Refused]:
        return []

    def openings(self) -> list[Opening]:
        return []

    def lane_flows(self) -> dict[str, int]:
        return {name: self.flows.get(name, 0) for name, sa in self.sas.items() if _is_laned(sa)}

    def relay_ike(self, fd: int | None) -> None:
        self.relay = fd

    def send_ike(
        self, source: IPAddress, destination: IPAddress, port: int, message: bytes
    ) -> None:
        self.ike_sent.append((source, destination, port, message))

    def forget_flows(self) -> None: ...

    def counters(self) -> Counters:
        return Counters(
            *(0, 0, 0, 0, 0, 0, {}), {name: self._counters(sa) for name, sa in self.sas.items()}
        )

    def counters_of(self, names: Collection[str]) -> dict[str, SaCounters]:
        return {name: self._counters(self.sas[name]) for name in names if name in self.sas}

    def _counters(self, sa: Sa) -> SaCounters:
        used = self.used.get(sa.name)
        if sa.direction is Direction.OUTBOUND:
            lease = self.leases[sa.name]
            seq = lease.first if used is None else used + 1
            return SaCounters(used or 0, 0, seq, lease.end, sa.remote, sa.remote_port)
        seq = self.floors[sa.name] if used is None else used
        dummies = self.dummies.get(sa.name, 0)
        packets = (used or 0) - dummies
        return SaCounters(packets, 0, seq, 0, sa.remote, sa.remote_port, {"dummy": dummies})


def _is_laned(sa: Sa) -> bool:
    return sa.lane is not None and sa.direction is Direction.OUTBOUND


def _is_inbound(sa: Sa) -> bool:
    return sa.direction is Direction.INBOUND


class FakeKernel:
    """The network of a kernel; `fail_at` makes it refuse the action of that number, once.

    `queues` are the answers to the next questions for the TUN's queues; the last one stays.
    """

    def __init__(self) -> None:
        self.network = Network(mtu=1500)
        self.queues = [TunQueues(7, FakeEngine.queues, 0, persistent=False)]
        self.deleted: list[int] = []
        self.actions = 0
        self.there = Host()
        self.sources: dict[IPAddress, IPAddress] = {}
        self.filter_fault: str | None = None
        self.filter_warning: str | None = None
        self.events = asyncio.Semaphore(0)
        self._failing: int | None = None

    def fail_at(self, number: int | None) -> None:
        self.actions = 0
        self._failing = number

    async def open(self) -> None: ...

    async def attach(self, interface: str) -> None: ...

    def refuse_neighbours(self) -> None: ...

    async def close(self) -> None: ...

    async def tun_queues(self, interface: str) -> TunQueues:
        return self.queues.pop(0) if len(self.queues) > 1 else self.queues[0]

    async def delete_link(self, index: int) -> None:
        self.deleted.append(index)

    async def changed(self) -> None:
        await self.events.acquire()

    async def tun_overflow(self) -> int:
        return 0

    async def observe(self) -> Network:
        await asyncio.sleep(0)
        return self.network

    async def host(self, fwmark: int) -> Host:
        return self.there

    async def filter_drops(self) -> dict[str, int]:
        return {"cleartext-out": 3}

    async def source(self, remote: IPAddress, fwmark: int) -> IPAddress | None:
        return self.sources.get(remote)

    async def path_mtu(self, remote: IPAddress, fwmark: int) -> int | None:
        return 1500

    async def apply(self, wanted: Sequence[changes.NetworkChange]) -> None:
        for change in wanted:
            await asyncio.sleep(0)
            if self.actions == self._failing:
                self._failing = None
                raise NetworkError("the kernel refused it")
            self.actions += 1
            self._execute(change)

    def _execute(self, change: changes.NetworkChange) -> None:
        old = self.network
        match change:
            case changes.AddRoute(route):
                same = (route.kind, route.destination, route.table)
                others = [r for r in old.routes if (r.kind, r.destination, r.table) != same]
                self.network = replace(old, routes=frozenset((*others, route)))
            case changes.RemoveRoute(route):
                self.network = replace(old, routes=old.routes - {route})
            case changes.AddRule(rule):
                self.network = replace(old, rules=old.rules | {rule})
            case changes.RemoveRule(rule):
                self.network = replace(old, rules=old.rules - {rule})
            case changes.AddAddress(address):
                self.network = replace(old, addresses=old.addresses | {address})
            case changes.RemoveAddress(address):
                self.network = replace(old, addresses=old.addresses - {address})
            case changes.ReplaceFirewall(firewall):
                self.network = replace(old, firewall=firewall)
            case changes.RemoveFirewall():
                self.network = replace(old, firewall=None)
            case changes.SetMtu(mtu):
                self.network = replace(old, mtu=mtu)
