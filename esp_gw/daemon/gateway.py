"""The gateway: owner of the wanted state, which it brings to the engine, the ledger and the kernel.

Requests and events go through one queue. A request carries a state; an event carries a fact, such
as a path MTU, after which the network is looked at with the wanted state of that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from esp_gw.daemon.background import Background
from esp_gw.daemon.lanes import Lanes
from esp_gw.daemon.lingering import Lingering
from esp_gw.daemon.names import NAMES_NAME, Names
from esp_gw.daemon.new_lanes import NewLanes
from esp_gw.daemon.notices import Notices
from esp_gw.daemon.outer_sockets import OuterSockets
from esp_gw.daemon.ownership import evict, open_alone
from esp_gw.daemon.peers import PEERS_NAME, Peers
from esp_gw.daemon.plan_keeping import PlanKeeping
from esp_gw.daemon.planning import Planning
from esp_gw.daemon.queue import ChangeQueue
from esp_gw.daemon.reconcile import (
    InstallSa,
    Observed,
    RemoveSa,
    ReplacePolicies,
    RetireSa,
    SetSockets,
    changes_of,
    needing_no_tun,
    reconcile,
    step_of,
    without_tun,
)
from esp_gw.daemon.samples import RefusedSamples
from esp_gw.daemon.sas import InstalledSas, Totals
from esp_gw.desired import Desired
from esp_gw.engine.base import (
    CeilingNear,
    Counters,
    Engine,
    EngineFailed,
    Event,
    HardExpired,
    LeaseLow,
    PathMtuChanged,
    PeerAddressChanged,
    SaCounters,
    SoftExpired,
)
from esp_gw.errors import EngineError, EspGwError
from esp_gw.ledger.thread import SequenceNumbers
from esp_gw.logs import log
from esp_gw.model import IPAddress, Policy, Sa
from esp_gw.network.changes import Change, NetworkChange, ReplaceFirewall
from esp_gw.network.guard import GuardState, hold, release, without_guard
from esp_gw.network.kernel import FILTER_RETRY, KernelNetwork
from esp_gw.network.objects import Network, missing_from
from esp_gw.network.watch import CheckResult, Watch

FLOOR_INTERVAL = 5.0
"""Seconds between writes of the replay floors, and so the replays that a crash lets in."""

Record = Callable[[], Awaitable[None]]


async def _no_record() -> None:
    """Record of a request whose state is on disk already, such as a reload."""


class Gateway:
    """The running gateway: the only place where engine, ledger and network are changed.

    The start closes the protected prefixes, and makes the engine after that.
    """

    engine: Engine
    samples: RefusedSamples
    installed: InstalledSas
    placed: Desired
    """The state in place, with looked-up addresses filled in; SAs that lack one are left out."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        kernel: KernelNetwork,
        ledger: SequenceNumbers,
        guard: GuardState,
        on_failure: Callable[[str], None],
    ) -> None:
        self._make_engine = make_engine
        self._kernel = kernel
        self._ledger = ledger
        self._guard = guard
        self._on_failure = on_failure
        self._changes = ChangeQueue()
        self.settled = self._changes.settled
        self._background = Background(on_failure)
        self.plan_file = PlanKeeping(guard)
        self._policies: tuple[Policy, ...] | None = ()
        self.sockets = OuterSockets()
        self.peers = Peers(ledger.path.parent / PEERS_NAME)
        self._notices = Notices()
        self._lanes = Lanes(ledger)
        self._network = Network(mtu=0)
        self._watch = Watch(kernel.changed, self._look, self._next_deadline)
        self.new_lanes = NewLanes(self._watch.wake)
        self.names = Names(ledger.path.parent / NAMES_NAME, self._watch.wake)
        self._planning = Planning(kernel, self.names, self.peers)
        self._around = self._planning.around
        self._was_down = False
        self._lingering = Lingering()
        self._stopped = False
        self.takes_event: Callable[[Event], bool] = lambda _event: False
        """Called with each event of the engine; one that it takes is not handled here."""

    async def start(self, desired: Desired) -> None:
        """Close what is protected, open the data plane and bring it to `desired`.

        After a failure the protected prefixes stay closed. Raises EspGwError.
        """
        settings = desired.settings
        self._wanted = self.placed = Desired(settings)
        self._interface = settings.interface
        await self._kernel.open()
        try:
            await self._around.refuse_to_start(desired.lasting, self._guard)
            await hold(self._kernel, desired)
            with contextlib.suppress(EspGwError):
                await asyncio.to_thread(self._guard.remember, desired)
            self.engine = self._make_engine()
            self.samples = RefusedSamples(self.engine.refused)
            self.installed = self._sas = InstalledSas(self.engine, self._ledger)
            await open_alone(self.engine, self._kernel, settings, self._on_event)
        except EspGwError:
            await self._kernel.close()
            raise
        try:
            await self._kernel.attach(settings.interface)
            await self._changes.run(lambda: self._bring_to(desired))
        except EspGwError:
            await self.abandon()
            raise
        self._wanted = desired
        await self.plan_file.write(desired)
        self.plan_file.run(self._background)
        self._background.repeat("the writing of replay floors", self._keep_floors)
        self._background.repeat("the watch of the network", self._watch.step)
        self._background.repeat("the keeping of the peers' addresses", self.peers.step)
        self._background.repeat("announcing lanes", lambda: self.new_lanes.step(self.engine))
        self._background.repeat(
            "the resolution of names", lambda: self.names.step(lambda: self.host_addresses)
        )

    async def apply(self, desired: Desired, record: Record = _no_record) -> list[str]:
        """Bring the gateway to `desired`, changing only what differs; return the changes in words.

        `record` makes the request last, and is awaited once it is in place. If it or anything
        before it fails, the state of the last request that succeeded is restored. Raises EspGwError
        and the exceptions of `record`.
        """
        return await self._changes.run(lambda: self._request(desired, record))

    async def apply_known(self, desired: Desired, record: Record) -> list[str]:
        """As `apply`, without a look at a network that stays the same: the watch has one."""
        return await self._changes.run(lambda: self._request_known(desired, record))

    async def stop(self) -> None:
        """Stop sending and accepting, and return leases; protected prefixes stay closed."""
        await self._end()
        try:
            if self._guard.is_opened:
                await release(self._kernel)
            else:
                await hold(self._kernel, self._wanted)
        finally:
            await self._close()

    async def release(self) -> None:
        """Stop as `stop` does, but remove everything from the kernel's network."""
        await self._end()
        try:
            await release(self._kernel)
        finally:
            await self._close()

    async def abandon(self) -> None:
        """Stop after a failure; protected prefixes stay unreachable, as after a kill."""
        await self._end()
        await self._close()

    async def _end(self) -> None:
        await self._background.stop()
        await self.plan_file.write_due()
        await self.peers.keep()
        await self._changes.run(self._stop_sas)

    async def _stop_sas(self) -> None:
        self._stopped = True
        await self._sas.remove_all()

    async def _close(self) -> None:
        self.engine.close()
        await self._kernel.close()
        await self._ledger.close()

    def counters(self) -> Counters:
        """Return a snapshot of the engine's counters."""
        return self.engine.counters()

    async def filter_drops(self) -> dict[str, int]:
        """Return the packets that the packet filter dropped, by reason."""
        return await self._kernel.filter_drops()

    @property
    def ledger_path(self) -> Path:
        """Path of the ledger, whether it exists or not."""
        return self._ledger.path

    async def tun_overflow(self) -> int:
        """Return the packets that the kernel dropped because the TUN's queues were full."""
        return await self._kernel.tun_overflow()

    @property
    def host_addresses(self) -> frozenset[IPAddress]:
        """The addresses of this host and its TUN when its network was looked at last."""
        known = self._around.host.addresses
        return known | frozenset(self._wanted.settings.addresses) if known else known

    @property
    def mtu(self) -> int:
        """The TUN's MTU, in bytes."""
        return self._network.mtu

    @property
    def warnings(self) -> list[str]:
        """Warnings about the gateway's network, and other programs' changes to it."""
        warnings = [*self._watch.warnings, *self._background.warnings, *self.new_lanes.warnings]
        warnings += [*self.names.missing, *self._planning.missing, *self._around.warnings]
        if self._guard.is_opened:
            warnings.append("the guard is open: a restart of the gateway closes it again")
        elif self._planning.needs_filter and self._kernel.filter_warning is not None:
            warnings.append(self._kernel.filter_warning)
        return warnings

    @property
    def sas(self) -> list[Sa]:
        """The installed SAs, without those that retire."""
        retired = self._sas.retired
        return [sa for name, sa in self._sas.sas.items() if name not in retired]

    @property
    def waiting(self) -> list[Sa]:
        """The wanted SAs that wait for an address, or have no sequence number left."""
        return [sa for sa in self._wanted.sas if sa.name not in self._sas]

    def is_used_up(self, sa: Sa) -> bool:
        """Return True for an SA that is left out because it has no sequence number left."""
        return sa.name in self._lanes.left_out

    @property
    def retired(self) -> list[tuple[Sa, float]]:
        """The inbound SAs under a replaced key, with the seconds for which they go on."""
        sas = self._sas.sas
        return [(sas[name], max(end - _now(), 0)) for name, end in self._sas.retired.items()]

    def totals(self, counters: Mapping[str, SaCounters]) -> dict[str, Totals]:
        """Return what all SAs of each name have counted, those under replaced keys included.

        `counters` are the engine's.
        """
        return self._sas.totals(counters)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The SPD, in order."""
        return self._wanted.policies

    async def _request(self, desired: Desired, record: Record) -> list[str]:
        self._planning.doubt()
        changes = await self._request_known(desired, record)
        await self.plan_file.write(desired)
        return changes

    async def _request_known(self, desired: Desired, record: Record) -> list[str]:
        if self._stopped:
            raise EngineError("the gateway is stopping")
        await self._around.refuse_cut_off(desired, self._wanted)
        retired = self._sas.retired.keys()
        try:
            changes = await self._bring_to(desired)
            await record()
        except Exception:
            self._planning.doubt()
            await self._restore(retired)
            raise
        self._wanted = desired
        self._watch.forget()
        if self._sas.retired or self._lingering.ends:
            # Its next deadline may be an earlier one now.
            self._watch.wake()
        self.plan_file.write_soon(desired)
        return [change.describe() for change in changes]

    async def _bring_to(self, desired: Desired) -> list[Change]:
        desired = await self._place(desired)
        network = await self._plan(desired)
        there = await self._planning.there(network, self._network)
        changes = reconcile(desired, network, self._observed(there))
        if not there.is_up:
            changes = without_tun(changes, self._interface)
        await self._carry_out(changes)
        self._sas.forget_totals()
        self._network = self._in_place(network) if there.is_up else self._network
        self.placed = desired
        self._planning.settle(there)
        return changes

    async def _restore(self, retired: Set[str]) -> None:
        """Bring the wanted state back; the SAs of the failed request have no grace time."""
        try:
            await self._bring_to(self._wanted)
        except Exception as error:
            log.error("can't restore the previous state: it is tried again", reason=str(error))
            self._watch.wake()
        if self._sas.end_grace(self._sas.retired.keys() - retired, _now()):
            with contextlib.suppress(Exception):
                await self._bring_to(self._wanted)
            self._watch.wake()

    async def _look(self) -> CheckResult:
        return await self._changes.run(self._adapt)

    async def _adapt(self) -> CheckResult:
        """Restore what is missing, and adapt to the current paths to the peers.

        A TUN device that others have opened is a failure: it is deleted.
        """
        if self._stopped:
            return CheckResult()
        self._planning.doubt()
        self._planning.paths.expire(_now())
        if await evict(self.engine, self._kernel, self._interface, self._fail):
            return CheckResult()
        there = await self._kernel.observe()
        wanted = await self._place(self._wanted)
        network = await self._plan(wanted)
        there = self._planning.ours(there, network)
        changes = reconcile(wanted, network, self._observed(there))
        missing, fault = missing_from(there, self._network, network), None
        if not there.is_up:
            # The kernel accepts no route into a device that is down; the rest works regardless.
            changes = needing_no_tun(changes)
            missing = missing if changes else ()
            name = self._interface
            fault = f"{name} is down: no tunnel works; run 'ip link set {name} up'"
        elif self._was_down:
            # The kernel has removed the routes into the device.
            missing = ()
        self._was_down = not there.is_up
        result = CheckResult.of(missing, changes)
        try:
            await self._carry_out(changes)
        except EspGwError as error:
            return replace(result, fault=str(error))
        if self._kernel.filter_fault is not None:
            others = [c for c in changes if not isinstance(c, ReplaceFirewall)]
            result = CheckResult.of(missing, others)
        if there.is_up:
            self._network, self.placed = self._in_place(network), wanted
            self._planning.settle(there)
        taken = self.sockets.fault
        return replace(result, fault=fault or taken, waits=taken is None)

    def _in_place(self, network: Network) -> Network:
        """Return a planned network without the packet filter that this machine can't have."""
        return network if self._kernel.filter_fault is None else replace(network, firewall=None)

    def _fail(self, reason: str) -> None:
        log.error(reason)
        self._on_failure(f"{self._interface}: {reason}")

    async def _carry_out(self, changes: Sequence[Change]) -> None:
        """Apply changes in order, adjacent ones of one step, or of the network, as one batch."""
        new = [c.sa for c in changes if isinstance(c, InstallSa) and c.moves is None]
        ready = await self._sas.register(new)
        for step, group in groupby(changes, step_of):
            run = list(group)
            if step is None:
                await self._kernel.apply(changes_of(NetworkChange, run))
                continue
            match run[0]:
                case SetSockets(sockets):
                    self.sockets.set(self.engine, sockets)
                case InstallSa():
                    await self._sas.install(changes_of(InstallSa, run), ready, _now())
                    if not self.peers.place(self.engine, self._sas.sas) <= self._planning.remotes:
                        self._watch.wake()
                case RemoveSa():
                    await self._sas.remove([each.name for each in changes_of(RemoveSa, run)], ready)
                case RetireSa():
                    self._sas.retire(changes_of(RetireSa, run), _now())
                case ReplacePolicies(policies):
                    self._policies = None
                    self.engine.replace_policies(policies)
                    self._policies = policies
                case unknown:
                    raise TypeError(f"no way to carry out {type(unknown).__name__}")

    async def _place(self, desired: Desired) -> Desired:
        """Return the desired state with looked-up addresses, without SAs that can't be there."""
        placed = await self._planning.place(desired, self._sas.sas, self._counted)
        self.sockets.want(placed)
        self._lingering.leave(placed, self._sas.sas, _now())
        placed = await self._lanes.pass_over(placed, self._sas.sas)
        return self.new_lanes.hold(placed, self._sas.sas, _now())

    async def _plan(self, desired: Desired) -> Network:
        network = await self._planning.plan(desired, self._sas.sas, self._counted, _now())
        return without_guard(network) if self._guard.is_opened else network

    def _counted(self, names: Set[str]) -> Mapping[str, SaCounters]:
        return self.engine.counters_of(names)

    def _observed(self, network: Network) -> Observed:
        now = _now()
        retired, lingering = self._sas.in_grace(now), self._lingering.at(now)
        sockets = self.sockets.there
        return Observed(self._sas.sas, self._policies, sockets, network, retired, lingering)

    def _next_deadline(self) -> float | None:
        ends = [
            self._planning.paths.next_expiry,
            *self._sas.retired.values(),
            *self._lingering.ends,
        ]
        if self._planning.needs_filter and self._kernel.filter_warning is not None:
            ends.append(self._planning.looked + FILTER_RETRY)
        return min((end for end in ends if end is not None), default=None)

    def _on_event(self, event: Event) -> None:
        try:
            self._take_event(event)
        except Exception:
            # The events behind it must not be lost with it.
            log.exception("an event of the engine could not be handled")

    def _take_event(self, event: Event) -> None:
        if self.takes_event(event):
            return
        match event:
            case LeaseLow(name):
                self._background.retry(
                    f"the lease of sequence numbers for {name}", lambda: self._extend_lease(name)
                )
            case PathMtuChanged(remote, mtu):
                # A router's report quotes any destination.
                if remote in self._planning.remotes and self._planning.paths.report(
                    remote, mtu, _now()
                ):
                    self._watch.wake()
            case PeerAddressChanged(name, address, port):
                if address not in self._planning.remotes:
                    self._watch.wake()
                if (sa := self._sas.find(name)) is not None:
                    self.peers.follow(sa, address, port, _now())
            case CeilingNear(name, highest):
                if self._sas.near(name, highest):
                    self._background.retry(
                        "the writing of ceilings", lambda: self._sas.raise_ceilings(_now())
                    )
            case HardExpired(name):
                if self._lanes.expire(name, self._sas.sas):
                    self._watch.wake()
            case EngineFailed(reason):
                self._on_failure(reason)
            case notice:
                self._notices.tell(notice)

    async def _extend_lease(self, name: str) -> None:
        if await self._sas.extend_lease(name):
            self._on_event(SoftExpired(name))

    async def _keep_floors(self) -> None:
        await asyncio.sleep(FLOOR_INTERVAL)
        await self._sas.write_floors(_now())


def _now() -> float:
    return asyncio.get_running_loop().time()
