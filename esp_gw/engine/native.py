"""Adapter to the native engine: Rust worker threads carry the packets, Python configures them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import assert_never

import esp_gw_core as core

from esp_gw.crypto import probe
from esp_gw.crypto.measure import Sealer
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import (
    NEVER,
    AfAlgLost,
    CeilingNear,
    Counters,
    EngineFailed,
    EngineStatus,
    Event,
    GsoRefused,
    HardExpired,
    LatencyStatus,
    LeaseLow,
    MergeRefused,
    OffloadStatus,
    Opening,
    OuterSocket,
    PathMtuChanged,
    PeerAddressChanged,
    Refused,
    SaCounters,
    SoftExpired,
)
from esp_gw.engine.keepalives import Rhythm, rhythm_of
from esp_gw.engine.native_values import (
    DIRECTIONS,
    ENCAPSULATIONS,
    core_policy,
    core_sa,
    core_settings,
    direction_of,
    lane_status,
    sa_counters,
)
from esp_gw.engine.refusals import (
    TUN_DEVICE,
    latency_refused,
    socket_refused,
    tun_not_created,
    tun_not_opened,
)
from esp_gw.engine.stages import StageTimes
from esp_gw.errors import EngineError
from esp_gw.model import (
    AF_ALG_ON,
    Direction,
    DropReason,
    IPAddress,
    Lease,
    Policy,
    Sa,
)
from esp_gw.per_object import PerObject

_Wanted = core.OutboundSa | core.InboundSa | core.ReplacedSa


class NativeEngine:
    """An engine (see engine/base.py) whose packets never touch Python."""

    name = "native"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._keepalives: dict[Rhythm, dict[str, int]] = {}
        self._timers: dict[Rhythm, asyncio.TimerHandle] = {}
        self._removed: dict[Direction, Counter[str]] = {way: Counter() for way in Direction}
        self._removed_drops: Counter[str] = Counter()
        self._policies = PerObject(core_policy)
        self._waiting: list[tuple[str, Sa, _Wanted]] | None = None

    def open(self, settings: EngineSettings, on_event: Callable[[Event], None]) -> None:
        """Create the TUN device with one queue. Raises EngineError."""
        self._on_event = on_event
        sealer = Sealer(native=True, provider=settings.provider)
        self._af_alg = probe.choose(settings.af_alg, sealer)
        self._af_alg_required = settings.af_alg == AF_ALG_ON
        with _tun_refused(settings.interface):
            self._core = core.NativeEngine(core_settings(settings, self._af_alg))
        self._settings = settings
        self._outers: list[OuterSocket] = []
        self._event_fd = self._core.event_fd()
        self._loop.add_reader(self._event_fd, self._take_events)

    @property
    def queues(self) -> int:
        """The number of open queues of the TUN device."""
        return self._core.queues()

    def start(self) -> None:
        """Open a queue for each worker and start the workers. Raises EngineError."""
        with _tun_refused(self._settings.interface):
            self._core.start()

    def close(self) -> None:
        """Stop the workers, which removes the TUN device."""
        for timer in self._timers.values():
            timer.cancel()
        self._loop.remove_reader(self._event_fd)
        del self._core

    def set_outer_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        """Open the sockets that are missing, then close those not wanted. Raises EngineError."""
        for outer in [outer for outer in wanted if outer not in self._outers]:
            try:
                self._set_sockets([*self._outers, outer])
            except OSError as error:
                raise socket_refused(outer, self._settings.port, error) from None
        self._set_sockets(wanted)

    def _set_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        self._core.set_sockets(
            [
                core.OuterSocket(outer.address, ENCAPSULATIONS[outer.encapsulation])
                for outer in wanted
            ]
        )
        self._outers = list(wanted)

    def install_outbound(self, sa: Sa, lease: Lease) -> None:
        """Add an outbound SA that begins at the lease's first sequence number."""
        with _blamed_on(sa):
            wanted = core.OutboundSa(core_sa(sa), core.Lease(lease.first, lease.end))
        self._install(sa, wanted)

    def install_inbound(
        self, sa: Sa, highest_seq: int, fence: int = 0, notice_at: int = NEVER
    ) -> None:
        """Add an inbound SA whose window treats every number up to `highest_seq` as seen."""
        with _blamed_on(sa):
            wanted = core.InboundSa(core_sa(sa), highest_seq, fence, notice_at)
        self._install(sa, wanted)

    def watch_numbers(self, notices: Mapping[str, int]) -> None:
        """Report CeilingNear with the next number of each of these inbound SAs above its one."""
        self._core.watch_numbers(notices)

    def place_peer(self, name: str, address: IPAddress, port: int) -> None:
        """Send to this address until the peer of an SA is heard, unless its address is known."""
        self._core.place_peer(name, address, port)

    def replace_sa(self, name: str, sa: Sa) -> None:
        """Make the SA `name` into `sa`, which has the same key and direction."""
        with _blamed_on(sa):
            wanted = core.ReplacedSa(name, DIRECTIONS[sa.direction], core_sa(sa))
        self._collect(name, sa, wanted)

    def _install(self, sa: Sa, wanted: _Wanted) -> None:
        status = self._af_alg[sa.suite.name]
        if self._af_alg_required and not status.in_use:
            raise probe.unavailable(status.why)
        self._collect(sa.name, sa, wanted)

    def _collect(self, name: str, sa: Sa, wanted: _Wanted) -> None:
        if self._waiting is not None:
            self._waiting.append((name, sa, wanted))
        else:
            with self.at_once():
                self._collect(name, sa, wanted)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Collect the SAs installed and replaced inside; workers get new tables at the end."""
        waiting: list[tuple[str, Sa, _Wanted]] = []
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        all_wanted = [wanted for _, _, wanted in waiting]
        try:
            self._core.change_sas(
                [wanted for wanted in all_wanted if isinstance(wanted, core.OutboundSa)],
                [wanted for wanted in all_wanted if isinstance(wanted, core.InboundSa)],
                [wanted for wanted in all_wanted if isinstance(wanted, core.ReplacedSa)],
            )
        except core.SaRefusedError as error:
            name, reason = error.args
            raise EngineError(reason, where=name) from None
        self._keep_alive(waiting)

    def _keep_alive(self, changed: Sequence[tuple[str, Sa, _Wanted]]) -> None:
        """Send keepalives for SAs installed, or replaced by those of other names or intervals."""
        replaced = {name for name, _, wanted in changed if isinstance(wanted, core.ReplacedSa)}
        seen = {
            name: sas.pop(name)
            for sas in self._keepalives.values()
            for name in replaced
            if name in sas
        }
        for name, sa, wanted in changed:
            if rhythm := rhythm_of(sa):
                before = seen.get(name, 0) if isinstance(wanted, core.ReplacedSa) else 0
                self._keepalives.setdefault(rhythm, {})[sa.name] = before
                if rhythm not in self._timers:
                    self._arm_keepalives(rhythm)

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        """Remove SAs and their keys; return their final counters, in the order of `names`."""
        try:
            found = self._core.remove(list(names))
        except ValueError as error:
            raise EngineError(str(error)) from None
        for sas in self._keepalives.values():
            for name in names:
                sas.pop(name, None)
        return [self._fold(sa) for sa in found]

    def _fold(self, found: core.SaCounters) -> SaCounters:
        """Add the final counters of a removed SA to the totals."""
        final = sa_counters(found)
        totals = self._removed[direction_of(found)]
        totals["packets"] += final.packets
        totals["bytes"] += final.bytes
        self._removed_drops.update(final.drops)
        return final

    def send_dummy(self, name: str) -> None:
        """Send a dummy packet by an outbound SA."""
        self._core.dummy(name)

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Replace the SPD in one step; `policies` are in order of precedence."""
        self._core.replace_policies(self._policies.of(policies))

    def extend_lease(self, name: str, lease: Lease) -> None:
        """Give an outbound SA more sequence numbers, used after those it has."""
        try:
            self._core.extend_lease(name, core.Lease(lease.first, lease.end))
        except ValueError as error:
            raise EngineError(str(error), where=name) from None

    def counters(self) -> Counters:
        """Return a snapshot of every counter."""
        sas: dict[str, SaCounters] = {}
        totals = {way: Counter(counts) for way, counts in self._removed.items()}
        drops = Counter(self._removed_drops)
        for found in self._core.sas():
            sa = sas[found.name] = sa_counters(found)
            direction = direction_of(found)
            totals[direction]["packets"] += sa.packets
            totals[direction]["bytes"] += sa.bytes
            drops.update(sa.drops)
        rest_out = self._core.rest(core.Direction.OUTBOUND)
        rest_in = self._core.rest(core.Direction.INBOUND)
        drops.update(rest_out.drops)
        drops.update(rest_in.drops)
        outbound, inbound = totals[Direction.OUTBOUND], totals[Direction.INBOUND]
        return Counters(
            packets_out=outbound["packets"],
            bytes_out=outbound["bytes"],
            packets_in=inbound["packets"],
            bytes_in=inbound["bytes"],
            keepalives_out=rest_out.packets,
            keepalives_in=rest_in.packets,
            drops=dict(drops),
            sas=sas,
            bulk_on_lane0=self._core.bulk_on_lane0(),
            ike_passed=self._core.ike_passed(),
        )

    def counters_of(self, names: Collection[str]) -> dict[str, SaCounters]:
        """Return the counters of these SAs, by name, without those that are not there."""
        found = [each for each in self._core.sas() if each.name in names]
        return {each.name: sa_counters(each) for each in found}

    def advanced_replay_floors(self) -> dict[str, int]:
        """Return the highest sequence number of inbound SAs that advanced since the last call."""
        return self._core.advanced_replay_floors()

    def refused(self) -> list[Refused]:
        """Return samples of the packets dropped since the last call."""
        return [
            Refused(
                DropReason(found.reason),
                found.sa,
                found.source,
                found.source_port,
                found.destination,
                found.destination_port,
                found.protocol,
                found.spi,
            )
            for found in self._core.refused()
        ]

    def openings(self) -> list[Opening]:
        """Return the first inner packets since the last call that ask for an answer."""
        return [
            Opening(
                found.sa, found.source, found.destination, found.protocol, found.destination_port
            )
            for found in self._core.openings()
        ]

    def lane_flows(self) -> dict[str, int]:
        """Return the flows that each outbound SA with a lane carried in the last 10 s, by name."""
        return self._core.lane_flows()

    def relay_ike(self, fd: int | None) -> None:
        """Pass IKE datagrams of the outer UDP sockets to a copy of a socket. Raises EngineError."""
        try:
            self._core.relay_ike(fd)
        except (OSError, ValueError) as error:
            raise EngineError(f"IKE datagrams can't be passed on: {error}") from None

    def send_ike(
        self, source: IPAddress, destination: IPAddress, port: int, message: bytes
    ) -> None:
        """Send an IKE message from the UDP socket of an outer address. Raises EngineError."""
        try:
            self._core.send_ike(source, destination, port, message)
        except (OSError, ValueError) as error:
            raise EngineError(f"an IKE message can't be sent: {error}", where=str(source)) from None

    def forget_flows(self) -> None:
        """Treat every inbound flow as new: its next packet may be an opening."""
        self._core.forget_flows()

    def start_profile(self) -> None:
        """Measure the stages of every turn that begins from now on."""
        self._core.start_profile()

    def stop_profile(self) -> None:
        """Measure no further turn."""
        self._core.stop_profile()

    def stage_times(self) -> list[StageTimes]:
        """Return what each worker has spent on the stages, in all profiles so far."""
        return [
            StageTimes(
                f"esp-worker-{number}",
                times.ns,
                times.packets_out,
                times.packets_in,
                times.clock_reads,
            )
            for number, times in enumerate(self._core.stage_times())
        ]

    def stage_clock_ns(self) -> float:
        """Return the nanoseconds that one read of the stages' clock takes."""
        return core.stage_clock_ns()

    def status(self) -> EngineStatus:
        """Return the resources and offloads in use, with the reason for each one that is not."""
        providers = self._core.providers()
        return EngineStatus(
            workers=self._core.workers(),
            pinned=self._settings.pin_workers,
            latency=self._latency(),
            provider=providers,
            aes=core.aes_path,
            offload={
                name: OffloadStatus(status.in_use, status.why)
                for name, status in self._core.offloads().items()
            },
            af_alg={suite: self._af_alg[suite] for suite in providers},
            lanes=lane_status(self._core.lane_status()),
        )

    def _latency(self) -> LatencyStatus:
        status = self._core.latency()
        why = "" if status.refused is None else latency_refused(status.refused)
        return LatencyStatus(self._settings.latency, status.held, why=why)

    def _take_events(self) -> None:
        for event in self._core.take_events():
            match event:
                case core.LeaseLow(sa):
                    self._on_event(LeaseLow(sa))
                case core.SoftExpired(sa):
                    self._on_event(SoftExpired(sa))
                case core.HardExpired(sa):
                    self._on_event(HardExpired(sa))
                case core.PeerAddressChanged(sa, address, port):
                    self._on_event(PeerAddressChanged(sa, address, port))
                case core.CeilingNear(sa, highest):
                    self._on_event(CeilingNear(sa, highest))
                case core.PathMtuChanged(remote, mtu):
                    self._on_event(PathMtuChanged(remote, mtu))
                case core.GsoRefused(remote, error):
                    self._on_event(GsoRefused(remote, error))
                case core.MergeRefused(kind):
                    self._on_event(MergeRefused(kind))
                case core.AfAlgLost(reason):
                    self._af_alg = probe.without(self._af_alg, reason)
                    self._af_alg_required = False
                    self._on_event(AfAlgLost(reason))
                case core.EngineFailed(reason):
                    self._on_event(EngineFailed(reason))
                case _:
                    assert_never(event)

    def _arm_keepalives(self, rhythm: Rhythm) -> None:
        self._timers[rhythm] = self._loop.call_later(
            rhythm.interval / 2, self._send_keepalives, rhythm
        )

    def _send_keepalives(self, rhythm: Rhythm) -> None:
        # As in the python engine: after half an interval without other traffic. One timer serves
        # all SAs of a rhythm; there may be thousands.
        sas = self._keepalives[rhythm]
        # First, so that a failure ends this round alone.
        self._arm_keepalives(rhythm)
        for name, seen in sas.items():
            sent = self._core.sent(name)
            if sent == seen:
                if rhythm.authentic:
                    self._core.dummy(name)
                else:
                    self._core.keepalive(name)
                    sent = -1
            sas[name] = sent


@contextmanager
def _tun_refused(interface: str) -> Iterator[None]:
    """Turn the kernel's refusal of the TUN device into an EngineError with what to do."""
    try:
        yield
    except OSError as error:
        refused = tun_not_opened if error.filename == TUN_DEVICE else tun_not_created
        raise refused(interface, error) from None
    except ValueError as error:
        raise EngineError(f"the native engine: {error}") from None


@contextmanager
def _blamed_on(sa: Sa) -> Iterator[None]:
    """Turn the extension's ValueError into an EngineError that names the SA."""
    try:
        yield
    except ValueError as error:
        raise EngineError(str(error), where=sa.name) from None
