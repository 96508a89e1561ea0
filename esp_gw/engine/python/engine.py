"""The reference engine: one asyncio process, one packet per system call.

The packet path is in outbound.py and inbound.py; this file manages the SAs, policies and sockets
that they use.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields

from esp_gw.crypto import probe
from esp_gw.crypto.aead import Aead
from esp_gw.crypto.factory import AeadFactory
from esp_gw.crypto.measure import Sealer
from esp_gw.crypto.processor import aes_path
from esp_gw.desired import EngineSettings, Offloads
from esp_gw.engine.base import (
    NEVER,
    AfAlgLost,
    Counters,
    EngineFailed,
    EngineStatus,
    Event,
    LaneStatus,
    LatencyStatus,
    LeaseLow,
    OffloadStatus,
    Opening,
    OuterSocket,
    Refused,
    SaCounters,
)
from esp_gw.engine.keepalives import Rhythm, rhythm_of
from esp_gw.engine.python.changes import SadChange
from esp_gw.engine.python.ike_relay import MARKER
from esp_gw.engine.python.inbound import InboundPath
from esp_gw.engine.python.lanes import LaneFlows
from esp_gw.engine.python.latency import LowLatency
from esp_gw.engine.python.outbound import OutboundPath
from esp_gw.engine.python.outer import Outer
from esp_gw.engine.python.peers import Peer, Peers
from esp_gw.engine.python.sad import InboundState, OutboundState
from esp_gw.engine.python.samples import Samples
from esp_gw.engine.python.stages import StageClock, clock_cost
from esp_gw.engine.python.tun import open_tun
from esp_gw.engine.stages import StageTimes
from esp_gw.errors import EngineError
from esp_gw.model import (
    AF_ALG_ON,
    AWS_LC,
    LOW,
    Direction,
    DropReason,
    Encapsulation,
    IPAddress,
    Lease,
    Policy,
    Sa,
)


class PythonEngine:
    """An engine (see engine/base.py) on the running event loop."""

    name = "python"
    queues = 1

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outers: dict[OuterSocket, Outer] = {}
        self._keepalives: dict[str, asyncio.TimerHandle] = {}
        self._inbound_spi: dict[str, int] = {}
        self._peers = Peers()
        self._removed = Counters(0, 0, 0, 0, 0, 0, {}, {})
        self._keepalives_out = 0
        self._drops_of_closed = 0
        self._change: SadChange | None = None
        self._latency: LowLatency | None = None
        self._stages = StageClock()

    def open(self, settings: EngineSettings, on_event: Callable[[Event], None]) -> None:
        """Create the TUN device. Raises EngineError."""
        if settings.provider == AWS_LC:
            raise EngineError(
                "crypto.provider aws-lc needs the native engine, which does not run",
                hint="install it, or set 'provider: auto'",
            )
        self._factory = AeadFactory(
            probe.choose(settings.af_alg, Sealer(native=False)),
            settings.af_alg == AF_ALG_ON,
            lambda reason: on_event(AfAlgLost(reason)),
        )
        self._settings = settings
        self._on_event = on_event
        self._tun = open_tun(settings.interface)
        self._samples = Samples()
        self._lane_flows = LaneFlows()
        self._outbound = OutboundPath(
            self._tun,
            settings.min_mtu,
            on_event,
            self._samples,
            self._lane_flows,
            self._loop.time,
        )
        self._inbound = InboundPath(
            self._tun, on_event, self._loop, self._samples, self._lane_flows
        )

    def start(self) -> None:
        """Start reading the TUN device."""
        if self._settings.latency == LOW:
            self._latency = LowLatency(self._loop)
        self._loop.add_reader(self._tun, self._read_tun)

    def close(self) -> None:
        """Stop and close every descriptor, which removes the TUN device."""
        for timer in self._keepalives.values():
            timer.cancel()
        self._keepalives.clear()
        for outer in self._outers.values():
            outer.close()
        self._outers.clear()
        self._inbound.close()
        if self._latency is not None:
            self._latency.close()
        self._loop.remove_reader(self._tun)
        os.close(self._tun)
        self._factory.close()

    def set_outer_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        """Open the sockets that are missing, then close those not wanted. Raises EngineError."""
        for key in wanted:
            if key not in self._outers:
                outer = Outer(key, self._settings.port, self._settings.fwmark, self._loop)
                self._outers[key] = outer
                self._loop.add_reader(outer.sock, self._read_outer, outer)
        for key in [key for key in self._outers if key not in wanted]:
            outer = self._outers.pop(key)
            self._drops_of_closed += outer.dropped()
            outer.close()

    def install_outbound(self, sa: Sa, lease: Lease) -> None:
        """Add an outbound SA that begins at the lease's first sequence number."""
        with self._collected() as change:
            change.outbound.append((sa, lease))

    def install_inbound(
        self, sa: Sa, highest_seq: int, fence: int = 0, notice_at: int = NEVER
    ) -> None:
        """Add an inbound SA whose window treats every number up to `highest_seq` as seen."""
        with self._collected() as change:
            change.inbound.append((sa, (highest_seq, fence, notice_at)))

    def watch_numbers(self, notices: Mapping[str, int]) -> None:
        """Report CeilingNear with the next number of each of these inbound SAs above its one."""
        for name, notice_at in notices.items():
            if (spi := self._inbound_spi.get(name)) is not None:
                self._inbound.sas[spi].notice_at = notice_at

    def place_peer(self, name: str, address: IPAddress, port: int) -> None:
        """Send to this address until the peer of an SA is heard, unless its address is known."""
        spi = self._inbound_spi.get(name, 0)
        found = (self._outbound.sas.get(name), self._inbound.sas.get(spi))
        for state in found:
            if state is not None:
                is_udp = state.sa.encapsulation is Encapsulation.UDP
                state.peer.place(address, port if is_udp else 0)

    def replace_sa(self, name: str, sa: Sa) -> None:
        """Make the SA `name` into `sa`, which has the same key and direction."""
        with self._collected() as change:
            change.replace(name, sa)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Collect the SAs installed and replaced inside; they take effect together, at the end."""
        change = self._change = SadChange()
        try:
            yield
        finally:
            self._change = None
        self._carry_out(change)

    @contextmanager
    def _collected(self) -> Iterator[SadChange]:
        """Yield the change of the current `at_once`, or one of its own that is then made."""
        if self._change is not None:
            yield self._change
        else:
            change = SadChange()
            yield change
            self._carry_out(change)

    def _carry_out(self, change: SadChange) -> None:
        outbound, inbound = self._outbound.sas, self._inbound.sas
        change.check(self._sas())
        peers = self._peers.copy()
        with ExitStack() as undo:
            replaced_out, replaced_in = [], []
            for name, sa in change.replaced.items():
                outer = self._outer_of(sa)
                if sa.direction is Direction.OUTBOUND:
                    out = outbound[name]
                    replaced_out.append((out, sa, outer, peers.move(out.peer, out.sa, sa)))
                else:
                    into = inbound[self._inbound_spi[name]]
                    replaced_in.append((into, sa, peers.move(into.peer, into.sa, sa)))
            new_out, new_in = [], []
            for sa, lease in change.outbound:
                outer, aead = self._outer_of(sa), self._make_aead(sa, undo)
                new_out.append(OutboundState(sa, lease, aead, outer, peers.place(sa)))
            for sa, numbers in change.inbound:
                self._outer_of(sa)
                aead = self._make_aead(sa, undo)
                new_in.append(InboundState(sa, numbers, aead, peers.place(sa)))
            undo.pop_all()
        self._peers = peers
        self._replace_inbound(replaced_in)
        self._replace_outbound(replaced_out)
        for receiver in new_in:
            inbound[receiver.sa.spi] = receiver
            self._inbound_spi[receiver.sa.name] = receiver.sa.spi
        for sender in new_out:
            outbound[sender.sa.name] = sender
            self._start_keepalives(sender)
        self._outbound.forget_flows()
        self._close_unused_sockets()

    def _sas(self) -> dict[str, Sa]:
        outbound = [state.sa for state in self._outbound.sas.values()]
        inbound = [state.sa for state in self._inbound.sas.values()]
        return {sa.name: sa for sa in (*outbound, *inbound)}

    def _make_aead(self, sa: Sa, undo: ExitStack) -> Aead:
        aead = self._factory.make_aead(sa.suite, sa.keymat)
        undo.callback(aead.close)
        return aead

    def _replace_inbound(self, replaced: Sequence[tuple[InboundState, Sa, Peer]]) -> None:
        for state, _, _ in replaced:
            del self._inbound.sas[self._inbound_spi.pop(state.sa.name)]
        for state, sa, peer in replaced:
            state.become(sa, peer)
            self._inbound.sas[sa.spi] = state
            self._inbound_spi[sa.name] = sa.spi

    def _replace_outbound(self, replaced: Sequence[tuple[OutboundState, Sa, Outer, Peer]]) -> None:
        timers = [self._keepalives.pop(state.sa.name, None) for state, *_ in replaced]
        for state, *_ in replaced:
            del self._outbound.sas[state.sa.name]
        for (state, sa, outer, peer), timer in zip(replaced, timers, strict=True):
            before = state.sa
            state.become(sa, outer, peer)
            self._outbound.sas[sa.name] = state
            if timer is not None and rhythm_of(sa) == rhythm_of(before):
                self._keepalives[sa.name] = timer
            else:
                if timer is not None:
                    timer.cancel()
                self._start_keepalives(state)
            if sa.last_seq > before.last_seq:
                # The former SA may have used its last number, after which it asks for no more.
                self._on_event(LeaseLow(sa.name))

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        """Remove SAs and their keys; return their final counters, in the order of `names`."""
        for name in names:
            if name not in self._inbound_spi and name not in self._outbound.sas:
                raise EngineError("no such SA", where=name)
        final = [self._remove(name) for name in names]
        self._close_unused_sockets()
        return final

    def _remove(self, name: str) -> SaCounters:
        spi = self._inbound_spi.pop(name, None)
        if spi is not None:
            inbound = self._inbound.sas.pop(spi)
            self._inbound.discard(inbound)
            inbound.aead.close()
            final = inbound.counters()
            self._fold(Direction.INBOUND, final)
            return final
        outbound = self._outbound.sas.pop(name)
        self._outbound.forget_flows()
        timer = self._keepalives.pop(name, None)
        if timer is not None:
            timer.cancel()
        outbound.outer.discard(outbound)
        outbound.aead.close()
        final = outbound.counters()
        self._fold(Direction.OUTBOUND, final)
        return final

    def send_dummy(self, name: str) -> None:
        """Send a dummy packet by an outbound SA."""
        state = self._outbound.sas.get(name)
        if state is not None and state.peer.is_known:
            self._keepalives_out += self._outbound.send_dummy(state)

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Replace the SPD in one step; `policies` are in order of precedence."""
        self._outbound.replace_policies(policies)

    def extend_lease(self, name: str, lease: Lease) -> None:
        """Give an outbound SA more sequence numbers, to be used after its current ones."""
        state = self._outbound.sas[name]
        state.esp.extend(lease)
        state.watch()

    def counters(self) -> Counters:
        """Return a snapshot of every counter."""
        outbound = {name: state.counters() for name, state in self._outbound.sas.items()}
        inbound = {state.sa.name: state.counters() for state in self._inbound.sas.values()}
        drops = Counter(self._removed.drops) + self._outbound.drops + self._inbound.drops
        for counters in (*outbound.values(), *inbound.values()):
            drops.update(counters.drops)
        at_sockets = sum((o.dropped() for o in self._outers.values()), self._drops_of_closed)
        if at_sockets:
            drops[DropReason.SOCKET_OVERFLOW] = at_sockets
        return Counters(
            packets_out=self._removed.packets_out + sum(c.packets for c in outbound.values()),
            bytes_out=self._removed.bytes_out + sum(c.bytes for c in outbound.values()),
            packets_in=self._removed.packets_in + sum(c.packets for c in inbound.values()),
            bytes_in=self._removed.bytes_in + sum(c.bytes for c in inbound.values()),
            keepalives_out=self._keepalives_out,
            keepalives_in=self._inbound.keepalives,
            ike_passed=self._inbound.ike.passed,
            drops=dict(drops),
            sas=outbound | inbound,
        )

    def counters_of(self, names: Collection[str]) -> dict[str, SaCounters]:
        """Return the counters of these SAs, by name, without those that are not there."""
        outbound = self._outbound.sas
        found = {name: outbound[name].counters() for name in names if name in outbound}
        inbound = [state for state in self._inbound.sas.values() if state.sa.name in names]
        return found | {state.sa.name: state.counters() for state in inbound}

    def advanced_replay_floors(self) -> dict[str, int]:
        """Return the highest sequence number of each inbound SA that advanced since last call."""
        advanced = {}
        for state in self._inbound.sas.values():
            if state.esp.window.highest != state.reported_floor:
                state.reported_floor = advanced[state.sa.name] = state.esp.window.highest
        return advanced

    def refused(self) -> list[Refused]:
        """Return samples of the packets dropped since the last call."""
        return self._samples.take_refused()

    def openings(self) -> list[Opening]:
        """Return the first inner packets since the last call that ask for an answer."""
        return self._samples.take_openings()

    def lane_flows(self) -> dict[str, int]:
        """Return the flows that each outbound SA with a lane carried in the last 10 s, by name."""
        carried = self._lane_flows.carried(int(self._loop.time() * 1000))
        return {
            name: carried[name]
            for name, state in self._outbound.sas.items()
            if state.sa.lane is not None
        }

    def relay_ike(self, fd: int | None) -> None:
        """Pass IKE datagrams of the outer UDP sockets to a copy of a socket. Raises EngineError."""
        self._inbound.ike.replace(fd)

    def send_ike(
        self, source: IPAddress, destination: IPAddress, port: int, message: bytes
    ) -> None:
        """Send an IKE message from the UDP socket of an outer address. Raises EngineError."""
        outer = self._outers.get(OuterSocket(source, Encapsulation.UDP))
        if outer is None or destination.version != source.version:
            text = "an IKE message can't be sent: there is no outer socket of this address"
            raise EngineError(text, where=str(source))
        with suppress(OSError):
            outer.sock.sendto(MARKER + message, (str(destination), port))

    def forget_flows(self) -> None:
        """Treat every inbound flow as new: its next packet may be an opening."""
        for state in self._inbound.sas.values():
            state.flows.clear()

    def start_profile(self) -> None:
        """Measure the stages of every turn that begins from now on."""
        self._stages.begin(self._outbound, self._inbound, self._outers.values())

    def stop_profile(self) -> None:
        """Measure no further turn."""
        self._stages.end()

    def stage_times(self) -> list[StageTimes]:
        """Return what the loop's thread has spent on the stages, in all profiles so far."""
        return [self._stages.times()]

    def stage_clock_ns(self) -> float:
        """Return the nanoseconds that one read of the stages' clock takes."""
        return clock_cost()

    def status(self) -> EngineStatus:
        """Return the resources and offloads in use, with the reason for each one that is not."""
        suites = {state.sa.suite.name for state in self._outbound.sas.values()}
        suites |= {state.sa.suite.name for state in self._inbound.sas.values()}
        single = OffloadStatus(False, "the python engine carries one packet a system call")
        laned = sum(state.sa.lane is not None for state in self._inbound.sas.values())
        return EngineStatus(
            workers=1,
            pinned=False,
            latency=self._latency_status(),
            provider={suite: self._factory.provider(suite) for suite in sorted(suites)},
            aes=aes_path(),
            offload={field.name: single for field in fields(Offloads)},
            af_alg={suite: self._factory.status(suite) for suite in sorted(suites)},
            lanes=LaneStatus(laned=laned),
        )

    def _latency_status(self) -> LatencyStatus:
        if self._latency is None:
            return LatencyStatus(self._settings.latency)
        return LatencyStatus(LOW, self._latency.is_held, why=self._latency.why)

    def _read_outer(self, outer: Outer) -> None:
        self._inbound.drain(outer)
        self._worked()

    def _worked(self) -> None:
        if self._latency is not None:
            self._latency.worked()

    def _read_tun(self) -> None:
        try:
            self._outbound.drain()
        except OSError as error:
            self._loop.remove_reader(self._tun)
            self._on_event(
                EngineFailed(
                    f"{self._settings.interface}: the TUN device is gone: {error.strerror}"
                )
            )
        self._worked()

    def _outer_of(self, sa: Sa) -> Outer:
        outer = self._outers.get(OuterSocket(sa.local, sa.encapsulation))
        if outer is None:
            raise EngineError(f"there is no outer socket on {sa.local}", where=sa.name)
        return outer

    def _close_unused_sockets(self) -> None:
        """Close the sockets of peers that no outbound SA has any more."""
        for outer in self._outers.values():
            states = [state for state in self._outbound.sas.values() if state.outer is outer]
            outer.close_unused({state.peer.address[0] for state in states})

    def _start_keepalives(self, state: OutboundState) -> None:
        if rhythm := rhythm_of(state.sa):
            self._arm_keepalive(state, rhythm, -1)

    def _arm_keepalive(self, state: OutboundState, rhythm: Rhythm, seen: int) -> None:
        # A keepalive is sent after half an interval without other traffic, so that neither a NAT
        # on the path nor the peer sees an idle SA for longer than the interval.
        active = state.packets
        # First, so that a failure ends this round alone.
        self._keepalives[state.sa.name] = self._loop.call_later(
            rhythm.interval / 2, self._arm_keepalive, state, rhythm, active
        )
        if active != seen or not state.peer.is_known:
            return
        if rhythm.authentic:
            self._keepalives_out += self._outbound.send_dummy(state)
        else:
            self._keepalives_out += state.outer.send_keepalive(state.peer.address)

    def _fold(self, direction: Direction, final: SaCounters) -> None:
        """Add the final counters of a removed SA to the totals."""
        before = self._removed
        out = direction is Direction.OUTBOUND
        self._removed = Counters(
            packets_out=before.packets_out + (final.packets if out else 0),
            bytes_out=before.bytes_out + (final.bytes if out else 0),
            packets_in=before.packets_in + (0 if out else final.packets),
            bytes_in=before.bytes_in + (0 if out else final.bytes),
            keepalives_out=0,
            keepalives_in=0,
            drops=dict(Counter(before.drops) + Counter(final.drops)),
            sas={},
        )
