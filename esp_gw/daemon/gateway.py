"""The gateway: applies the changes of reconcile to the engine, the ledger and the kernel."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from esp_gw.daemon.ownership import evict, open_alone
from esp_gw.daemon.reconcile import (
    InstallSa,
    Observed,
    RemoveSa,
    ReplacePolicies,
    SetSockets,
    reconcile,
)
from esp_gw.desired import Desired
from esp_gw.engine.base import (
    AfAlgLost,
    Counters,
    Engine,
    EngineFailed,
    Event,
    GsoRefused,
    HardExpired,
    LeaseLow,
    OuterSocket,
    PathMtuChanged,
    PeerAddressChanged,
    SoftExpired,
)
from esp_gw.errors import EngineError, EspGwError, LedgerError
from esp_gw.ledger.thread import LedgerThread
from esp_gw.logs import log
from esp_gw.model import Direction, IPAddress, KeyMaterial, Lease, Policy, Sa
from esp_gw.network.changes import Change, NetworkChange, ReplaceFirewall, Step
from esp_gw.network.guard import GuardState, hold, release, without_guard
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.objects import Network, missing_from
from esp_gw.network.plan import plan_network, shadowed
from esp_gw.network.watch import CheckResult, Watch

FLOOR_INTERVAL = 5.0
"""Seconds between writes of the replay floors, and so the replays that a crash lets in."""
LEASE_RETRY = 1.0
"""Seconds before a failed lease extension is retried."""
ADDRESS_LOG_INTERVAL = 10.0
"""Minimum seconds between log lines on an SA's peer address, which some NATs change constantly."""
_NAMED = 5
"""SAs named in a log line about many."""
PATH_MTU_LIFETIME = 660.0
"""Seconds after which a learned path MTU is queried again; the kernel forgets it after 600."""


@dataclass(slots=True)
class _Installed:
    """An SA in the engine; `lease` is the leased range whose unused part the ledger takes back."""

    sa: Sa
    lease: Lease | None = None
    floor: int = 0
    quiet_until: float = 0.0


@dataclass(slots=True)
class _Ready:
    """SAs registered in the ledger and ready to install: by name, and the inbound ones by key."""

    entries: dict[str, _Installed] = field(default_factory=dict)
    inbound: dict[KeyMaterial, _Installed] = field(default_factory=dict)


class Gateway:
    """The running gateway: the only place where engine, ledger and network are changed.

    The engine is made by the start, which closes the protected prefixes before.
    """

    engine: Engine

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        kernel: KernelNetwork,
        ledger: LedgerThread,
        guard: GuardState,
        on_failure: Callable[[str], None],
    ) -> None:
        self._make_engine = make_engine
        self._kernel = kernel
        self._ledger = ledger
        self._guard = guard
        self._on_failure = on_failure
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._installed: dict[str, _Installed] = {}
        self._policies: tuple[Policy, ...] = ()
        self._sockets: frozenset[OuterSocket] = frozenset()
        self._learned_mtus: dict[IPAddress, int] = {}
        self._without_gso: set[IPAddress] = set()
        self._path_mtus: dict[IPAddress, int] = {}
        self._network = Network(mtu=0)
        self._shadowed: list[str] = []
        self._needs_filter = False
        self._watch = Watch(kernel.changed, self._check_network)
        self._stopped = False

    async def start(self, desired: Desired) -> None:
        """Close what is protected, open the data plane and bring it to `desired`.

        After a failure the protected prefixes stay closed. Raises EspGwError.
        """
        settings = desired.settings
        self._desired = Desired(settings)
        self._interface = settings.interface
        await self._kernel.open()
        try:
            await hold(self._kernel, desired)
            await asyncio.to_thread(self._guard.remember, desired)
            self.engine = self._make_engine()
            await open_alone(self.engine, self._kernel, settings, self._on_event)
        except EspGwError:
            await self._kernel.close()
            raise
        try:
            await self._kernel.attach(settings.interface)
            async with self._lock:
                await self._apply(desired)
        except EspGwError:
            await self.abandon()
            raise
        self._spawn(self._keep_floors())
        self._spawn(self._watch.run())

    async def apply(self, desired: Desired) -> list[str]:
        """Bring the gateway to `desired`, changing only what differs; return the changes in words.

        On failure the previous state is restored. Raises EspGwError.
        """
        async with self._lock:
            if self._stopped:
                raise EngineError("the gateway is stopping")
            try:
                changes = await self._apply(desired)
                self._watch.forget()
                return changes
            except EspGwError:
                await self._restore()
                raise

    async def stop(self) -> None:
        """Stop sending and accepting, and return leases; protected prefixes stay closed."""
        await self._end()
        try:
            if self._guard.is_opened:
                await release(self._kernel)
            else:
                await hold(self._kernel, self._desired)
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
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        async with self._lock:
            self._stopped = True
            await self._remove_sas(list(self._installed), _Ready())

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

    @property
    def mtu(self) -> int:
        """The TUN's MTU, in bytes."""
        return self._network.mtu

    @property
    def warnings(self) -> list[str]:
        """Warnings about the gateway's network, and other programs' changes to it."""
        warnings = [*self._watch.warnings, *self._shadowed]
        if self._guard.is_opened:
            warnings.append("the guard is open: a restart of the gateway closes it again")
        elif self._needs_filter and self._kernel.filter_fault is not None:
            warnings.append(
                "not closed to sockets bound to a device, to cleartext from protected prefixes and "
                f"to forged sources: {self._kernel.filter_fault}"
            )
        return warnings

    @property
    def sas(self) -> list[Sa]:
        """The installed SAs."""
        return [entry.sa for entry in self._installed.values()]

    @property
    def policies(self) -> tuple[Policy, ...]:
        """The SPD, in order."""
        return self._policies

    async def _apply(self, desired: Desired) -> list[str]:
        network = await self._plan(desired)
        changes = reconcile(desired, network, self._observed(await self._kernel.observe()))
        await self._carry_out(changes)
        self._desired, self._network = desired, self._in_place(network)
        await asyncio.to_thread(self._guard.remember, desired)
        return [change.describe() for change in changes]

    async def _check_network(self) -> CheckResult:
        """Restore missing objects, and adapt to the current paths to the peers.

        A TUN device that others have opened is a failure: it is deleted.
        """
        async with self._lock:
            if await evict(self.engine, self._kernel, self._interface, self._fail):
                return CheckResult()
            there = await self._kernel.observe()
            network = await self._plan(self._desired)
            # Other programs may add addresses of their own to the TUN while we run.
            ours = there.addresses & (self._network.addresses | network.addresses)
            changes = reconcile(
                self._desired, network, self._observed(replace(there, addresses=ours))
            )
            missing, fault = missing_from(there, self._network, network), None
            if not there.is_up:
                # The kernel accepts no route into a device that is down; guards work regardless.
                changes = [change for change in changes if change.is_guard]
                missing = missing if changes else ()
                name = self._desired.settings.interface
                fault = f"{name} is down: no tunnel works; run 'ip link set {name} up'"
            done = tuple(change.describe() for change in changes)
            try:
                await self._carry_out(changes)
            except EspGwError as error:
                return CheckResult(missing, done, str(error))
            if self._kernel.filter_fault is not None:
                done = tuple(c.describe() for c in changes if not isinstance(c, ReplaceFirewall))
            if there.is_up:
                self._network = self._in_place(network)
            return CheckResult(missing, done, fault, waits=True)

    def _in_place(self, network: Network) -> Network:
        """Return a planned network without the packet filter that this machine can't have."""
        return network if self._kernel.filter_fault is None else replace(network, firewall=None)

    def _fail(self, reason: str) -> None:
        log.error(reason)
        self._on_failure(f"{self._interface}: {reason}")

    async def _carry_out(self, changes: Sequence[Change]) -> None:
        """Apply changes in order, adjacent ones of one step, or of the network, as one batch."""
        ready = await self._prepare(changes)
        for step, group in groupby(changes, _step):
            run = list(group)
            if step is None:
                await self._kernel.apply([c for c in run if isinstance(c, NetworkChange)])
                continue
            match run[0]:
                case SetSockets(sockets):
                    self.engine.set_outer_sockets(sorted(sockets, key=str))
                    self._sockets = sockets
                case InstallSa():
                    await self._install_sas([ready.entries[name] for name in _names(run)], ready)
                case RemoveSa():
                    await self._remove_sas(_names(run), ready)
                case ReplacePolicies(policies):
                    self.engine.replace_policies(policies)
                    self._policies = policies
                case unknown:
                    raise TypeError(f"no way to carry out {type(unknown).__name__}")

    async def _restore(self) -> None:
        try:
            await self._apply(self._desired)
        except EspGwError as error:
            log.error("can't restore the previous state", reason=str(error))

    async def _plan(self, desired: Desired) -> Network:
        mtus: dict[IPAddress, int] = {}
        for remote in sorted({sa.remote for sa in desired.sas}, key=str):
            mtu = await self._kernel.path_mtu(remote, desired.settings.fwmark)
            # While there is no route to the peer, keep its last path MTU.
            mtu = self._path_mtus.get(remote) if mtu is None else mtu
            if mtu is not None:
                self._path_mtus[remote] = mtu
                mtus[remote] = min(mtu, self._learned_mtus.get(remote, mtu))
        host = await self._kernel.host()
        self._shadowed = shadowed(desired, host)
        network = plan_network(desired, mtus, host)
        self._needs_filter = network.firewall is not None
        return without_guard(network) if self._guard.is_opened else network

    def _observed(self, network: Network) -> Observed:
        sas = {name: entry.sa for name, entry in self._installed.items()}
        return Observed(sas, self._policies, self._sockets, network)

    async def _prepare(self, changes: Sequence[Change]) -> _Ready:
        """Register every SA in the ledger first, so that it refuses before anything is changed."""
        ready = _Ready()
        sas = [change.sa for change in changes if isinstance(change, InstallSa)]
        if sas:
            outbound = [sa for sa in sas if sa.direction is Direction.OUTBOUND]
            inbound = [sa for sa in sas if sa.direction is Direction.INBOUND]
            leases, floors = await self._ledger.begin(outbound, inbound)
            for sa, lease in zip(outbound, leases, strict=True):
                ready.entries[sa.name] = _Installed(sa, lease=lease)
            for sa, floor in zip(inbound, floors, strict=True):
                entry = ready.entries[sa.name] = _Installed(sa, floor=floor)
                ready.inbound[sa.keymat] = entry
        return ready

    async def _install_sas(self, entries: Sequence[_Installed], ready: _Ready) -> None:
        replaced = [entry.sa.name for entry in entries if entry.sa.name in self._installed]
        gone = self._forget(replaced, ready)
        try:
            with self.engine.at_once():
                for entry in entries:
                    if entry.lease is not None:
                        self.engine.install_outbound(entry.sa, entry.lease)
                    else:
                        self.engine.install_inbound(entry.sa, entry.floor)
            self._installed.update((entry.sa.name, entry) for entry in entries)
        finally:
            # Leases of replaced SAs aren't returned: the ledger has leased numbers after them.
            await self._write([(entry, seq) for entry, seq in gone if entry.lease is None])

    async def _remove_sas(self, names: Sequence[str], ready: _Ready) -> None:
        await self._write(self._forget(names, ready))

    def _forget(self, names: Sequence[str], ready: _Ready) -> list[tuple[_Installed, int]]:
        """Remove SAs from the engine; return them with their last sequence numbers.

        A packet accepted since the ledger was read must not be accepted again by a new SA with the
        same key, whatever its name, so the floor of that SA is raised.
        """
        if not names:
            return []
        counters = self.engine.remove_sas(names)
        gone = [(self._installed.pop(name), c.seq) for name, c in zip(names, counters, strict=True)]
        for entry, seq in gone:
            successor = ready.inbound.get(entry.sa.keymat) if entry.lease is None else None
            if successor is not None:
                successor.floor = max(successor.floor, seq)
        return gone

    async def _write(self, gone: Sequence[tuple[_Installed, int]]) -> None:
        """Write the last sequence numbers of removed SAs to the ledger."""
        if not gone:
            return
        try:
            await self._ledger.end(
                [(e.sa.keymat, e.lease, seq) for e, seq in gone if e.lease is not None],
                [(e.sa.keymat, seq) for e, seq in gone if e.lease is None],
            )
        except LedgerError as error:
            # IVs are safe: the rest of the lease counts as used. Replays since the last stored
            # floor are not detected.
            names = ", ".join(entry.sa.name for entry, _ in gone[:_NAMED])
            more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
            log.error("can't write the ledger", sa=f"{names}{more}", reason=str(error))

    def _on_event(self, event: Event) -> None:
        match event:
            case LeaseLow(name):
                self._spawn(self._extend_lease(name))
            case PathMtuChanged(remote, mtu):
                if self._learned_mtus.get(remote) != mtu:
                    self._learned_mtus[remote] = mtu
                    self._spawn(self._follow_path_mtu(remote, mtu))
            case PeerAddressChanged(name, address, port):
                entry, now = self._installed.get(name), time.monotonic()
                if entry is not None and now >= entry.quiet_until:
                    entry.quiet_until = now + ADDRESS_LOG_INTERVAL
                    log.info("the peer has a new address", sa=name, address=str(address), port=port)
            case GsoRefused(remote, error):
                if remote not in self._without_gso:
                    self._without_gso.add(remote)
                    text = "the kernel refuses UDP segmentation: packets are sent one by one"
                    log.warning(text, remote=str(remote), error=error)
            case AfAlgLost(reason):
                log.warning("AF_ALG is lost: the library is used instead", reason=reason)
            case SoftExpired(name):
                log.warning("an SA is running out of sequence numbers: give it a new key", sa=name)
            case HardExpired(name):
                log.error("an SA has no sequence number left: give it a new key", sa=name)
            case EngineFailed(reason):
                self._on_failure(reason)

    async def _extend_lease(self, name: str) -> None:
        failed = False
        while (entry := self._installed.get(name)) is not None and entry.lease is not None:
            if entry.lease.end > entry.sa.last_seq:
                log.warning("an SA is using its last sequence numbers: give it a new key", sa=name)
                return
            try:
                lease = await self._ledger.lease(entry.sa)
            except LedgerError as error:
                if not failed:
                    log.error("no new sequence numbers", sa=name, reason=str(error))
                failed = True
                await asyncio.sleep(LEASE_RETRY)
                continue
            # An engine need not know the lower last_seq of an SA that another program began.
            last = entry.sa.last_seq
            if entry.sa.used_seq and lease.first <= last - last // 8 < lease.end:
                self._on_event(SoftExpired(name))
            # The SA may have been replaced or removed while the ledger wrote.
            if self._installed.get(name) is entry:
                self.engine.extend_lease(name, lease)
                joined = lease.first == entry.lease.end
                entry.lease = Lease(entry.lease.first, lease.end) if joined else lease
            if failed:
                log.info("sequence numbers are available again", sa=name)
            return

    async def _follow_path_mtu(self, remote: IPAddress, mtu: int) -> None:
        log.info("the path MTU changed", remote=str(remote), mtu=mtu)
        await self.apply(self._desired)
        await asyncio.sleep(PATH_MTU_LIFETIME)
        if self._learned_mtus.get(remote) == mtu:
            del self._learned_mtus[remote]
            await self.apply(self._desired)

    async def _keep_floors(self) -> None:
        """Write advancing replay floors periodically; an idle gateway writes nothing."""
        floors: dict[KeyMaterial, int] = {}
        failed = False
        while True:
            await asyncio.sleep(FLOOR_INTERVAL)
            for name, seq in self.engine.advanced_replay_floors().items():
                floors[self._installed[name].sa.keymat] = seq
            if not floors:
                continue
            try:
                await self._ledger.end([], list(floors.items()))
            except LedgerError as error:
                if not failed:
                    log.error("can't write the replay floors", reason=str(error))
                failed = True
                continue
            floors.clear()
            if failed:
                log.info("the replay floors are written again")
            failed = False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", reason=str(error))


def _step(change: Change) -> Step | None:
    """Return the step of a change, or None for the network, whose changes are one batch."""
    return None if isinstance(change, NetworkChange) else change.step


def _names(changes: Sequence[Change]) -> list[str]:
    return [change.name for change in changes if isinstance(change, InstallSa | RemoveSa)]
