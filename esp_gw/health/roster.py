"""Roster of the watched tunnels: it assigns each sample and observation to one of them.

A tunnel here is one of the configuration, or an SA without one with the SA that is its pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from esp_gw.desired import Desired
from esp_gw.engine.base import Opening, Refused, SaCounters
from esp_gw.health.causes import Cause, DeadLane, Ends, Observations, likely_causes
from esp_gw.health.tracker import MIN_FAILING, Seen, Sums, Tracker
from esp_gw.health.unreachable import quotes, words
from esp_gw.model import (
    MAX_SAS,
    Direction,
    DropReason,
    IPAddress,
    IPNetwork,
    Sa,
    Tunnel,
    TunnelState,
    named_pairs,
)
from esp_gw.network.icmp import Unreachable

MEMORY = 30.0
"""Seconds for which an observation from outside explains a loss."""
MAX_SPIS = 8
STEP = 32
"""Tunnels that are judged in one step."""
_NO_DROPS: Mapping[str, int] = MappingProxyType({})
"""One for all of the thousands that lose nothing."""


@dataclass(frozen=True, slots=True)
class Look:
    """State of the data plane and the host at one moment; `now` is in seconds of one clock.

    `carried` has the packets and drops of each SA's name, those under replaced keys included.
    """

    now: float
    counters: Mapping[str, SaCounters]
    carried: Mapping[str, tuple[int, Mapping[str, int]]]
    refused: Sequence[Refused] = ()
    openings: Sequence[Opening] = ()
    unreachable: Sequence[Unreachable] = ()
    host: frozenset[IPAddress] = frozenset()


@dataclass(slots=True)
class Watched:
    """One tunnel: its SAs and ends, its tracker, and what was seen of it lately."""

    name: str
    is_tunnel: bool
    outbound: tuple[str, ...]
    inbound: tuple[str, ...]
    remote_ts: tuple[IPNetwork, ...]
    ends: Ends
    tracker: Tracker
    peer_name: str | None = None
    spis: dict[int, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unreachable: tuple[str, float, float] | None = None
    """An ICMP error in words, and when it came first and last."""
    parts: dict[str, Tracker] = field(default_factory=dict)
    lanes: tuple[tuple[str, int], ...] = ()
    """Its outbound SAs in order, where there are several, each with the last number that it may
    send: 0 for one that is left out because it has used it."""
    identity: tuple[int, ...] = ()
    asked: IPAddress | None = None
    causes: tuple[Cause, ...] = ()
    state: TunnelState = TunnelState.QUIET

    @property
    def title(self) -> str:
        """The name behind its kind, as at the start of a sentence."""
        return f"tunnel {self.name}" if self.is_tunnel else f"SA {self.name}"


class Roster:
    """The watched tunnels, by name."""

    def __init__(self) -> None:
        self.tunnels: dict[str, Watched] = {}
        self._by_sa: dict[str, Watched] = {}
        self._desired: Desired | None = None
        self._peers: dict[IPAddress, list[Watched]] = {}
        self.strays: dict[str, str] = {}
        """The last refused packet of each reason that no SA counts."""

    def of_sa(self, name: str) -> Watched | None:
        """Return the tunnel of an SA."""
        return self._by_sa.get(name)

    def follow(self, desired: Desired, now: float) -> None:
        """Watch the tunnels of `desired`; one whose SAs have other names or keys begins anew."""
        if desired is self._desired:
            return
        self._desired = desired
        before, self.tunnels, self._by_sa = self.tunnels, {}, {}
        for new in _watched(desired, now):
            watched, known = new, before.get(new.name)
            if known is not None and _is_same(known, new):
                known.tracker.liveness = new.tracker.liveness
                watched = replace(known, ends=new.ends, remote_ts=new.remote_ts, lanes=new.lanes)
            self.tunnels[watched.name] = watched
            for name in (*watched.outbound, *watched.inbound):
                self._by_sa[name] = watched

    def look(self, look: Look, chains: Mapping[int, str | None]) -> Iterator[None]:
        """Judge every tunnel at this look; `chains` are forward chains that drop, by IP version.

        A few tunnels in each step: thousands would hold up an event loop that carries packets.
        """
        self._peers = {}
        for watched in self.tunnels.values():
            _move(watched, look.counters)
            self._peers.setdefault(watched.ends.remote, []).append(watched)
        seen = self._seen(look)
        for number, (name, watched) in enumerate(list(self.tunnels.items()), 1):
            sums = _sums(watched, look)
            watched.tracker.look(sums, seen.get(name, Seen()), look.now)
            for sa, part in watched.parts.items():
                delivered, drops = look.carried.get(sa, (0, {}))
                part.look(Sums(delivered=delivered, drops_in=drops), Seen(), look.now)
            self._judge(watched, look, chains)
            if number % STEP == 0:
                yield

    def _judge(self, watched: Watched, look: Look, chains: Mapping[int, str | None]) -> None:
        now, ends = look.now, watched.ends
        watched.spis = {spi: at for spi, at in watched.spis.items() if now - at < MEMORY}
        error = watched.unreachable
        if error is not None and now - error[2] >= MEMORY:
            error = watched.unreachable = None
        asked = watched.asked
        observed = Observations(
            foreign_spis=tuple(watched.spis),
            refused=watched.refused,
            # A single one may come before the peer has found its way through a NAT.
            unreachable=error[0] if error and error[2] - error[1] >= MIN_FAILING else None,
            local_is_gone=bool(look.host)
            and ends.local not in look.host
            and not ends.local.is_unspecified,
            forward_chain=None if asked is None else chains.get(asked.version),
            asked=asked,
            asked_is_here=asked in look.host,
            parts=watched.parts,
            peer_is_heard=any(
                each.tracker.last_in is not None
                and now - each.tracker.last_in < each.tracker.liveness_time
                for each in self._peers.get(ends.remote, ())
                if each is not watched
            ),
            dead_lanes=_dead_lanes(watched.lanes, look.counters),
        )
        watched.state = watched.tracker.state(now)
        watched.causes = likely_causes(watched.tracker, ends, observed, now)

    def _seen(self, look: Look) -> dict[str, Seen]:
        seen: dict[str, Seen] = {}
        for sample in look.refused:
            for watched, change in self._of_refused(sample, look.now):
                was = seen.get(watched.name, Seen())
                seen[watched.name] = Seen(
                    was.foreign + change.foreign, was.unmatched + change.unmatched, was.asked
                )
        for opening in look.openings:
            asking = self._by_sa.get(opening.sa)
            if asking is not None:
                asking.asked = opening.destination
                seen[asking.name] = replace(seen.get(asking.name, Seen()), asked=True)
        for error in look.unreachable:
            for watched in self.tunnels.values():
                if quotes(error, watched.ends):
                    known = watched.unreachable
                    first = look.now if known is None else known[1]
                    watched.unreachable = (words(error, watched.ends), first, look.now)
        return seen

    def _of_refused(self, sample: Refused, now: float) -> Iterator[tuple[Watched, Seen]]:
        if sample.spi is not None:
            if sample.reason == DropReason.UNKNOWN_SPI:
                for watched in self._peers_at(sample.source, sample.spi, now):
                    if len(watched.spis) < MAX_SPIS or sample.spi in watched.spis:
                        watched.spis[sample.spi] = now
                    # The peer announces lanes, and loses nothing by them.
                    is_announced = watched.tracker.heard and _is_next(watched, sample.spi)
                    yield watched, Seen(foreign=not is_announced)
            self._keep(sample, _of_outer(sample))
            return
        inner = f"{sample.source} to {sample.destination}"
        self._keep(sample, inner)
        if sample.reason == DropReason.NO_POLICY:
            for watched in self.tunnels.values():
                if any(_contains(prefix, sample.destination) for prefix in watched.remote_ts):
                    watched.refused[sample.reason] = inner
                    yield watched, Seen(unmatched=1)
                    return

    def _keep(self, sample: Refused, words: str) -> None:
        known = self._by_sa.get(sample.sa or "")
        (self.strays if known is None else known.refused)[sample.reason] = words

    def _peers_at(self, address: IPAddress, spi: int, now: float) -> list[Watched]:
        """Return the tunnels that a packet from this address was probably meant for.

        If several have this peer: those from which nothing authentic ever came, else those that are
        not up, else the one that has the SPI before this one.
        """
        there = self._peers.get(address, [])
        if len(there) < 2:
            return there
        unheard = [each for each in there if not each.tracker.heard]
        silent = [each for each in there if each.tracker.state(now) is not TunnelState.UP]
        return unheard or silent or [each for each in there if spi - 1 in each.ends.inbound]


def _of_outer(sample: Refused) -> str:
    port = f" port {sample.source_port}" if sample.source_port else ""
    return f"from {sample.source}{port}, SPI 0x{sample.spi or 0:08x}"


def _watched(desired: Desired, now: float) -> Iterator[Watched]:
    sas = {sa.name: sa for sa in desired.sas}
    for tunnel in desired.tunnels:
        mine = [sas[name] for name in tunnel.sas if name in sas]
        if mine:
            watched = _watch(tunnel.name, mine, now, is_tunnel=True)
            watched.lanes = _lanes(tunnel, sas)
            yield watched
    for name, both in named_pairs(desired.sas, desired.policies):
        yield _watch(name, both, now, is_tunnel=name != both[0].name)


def _watch(name: str, sas: Sequence[Sa], now: float, *, is_tunnel: bool) -> Watched:
    first = sas[0]
    outbound = [sa for sa in sas if sa.direction is Direction.OUTBOUND]
    inbound = [sa for sa in sas if sa.direction is Direction.INBOUND]
    # An outbound SA alone hears nobody.
    liveness = max((sa.liveness for sa in outbound), default=0) if inbound else 0
    return Watched(
        name=name,
        is_tunnel=is_tunnel,
        outbound=tuple(sa.name for sa in outbound),
        inbound=tuple(sa.name for sa in inbound),
        remote_ts=tuple(dict.fromkeys(each.remote for sa in sas for each in sa.selectors)),
        ends=Ends(
            first.local,
            first.remote,
            first.remote_port,
            first.encapsulation,
            tuple(sa.spi for sa in outbound),
            tuple(sa.spi for sa in inbound),
        ),
        parts={sa.name: Tracker(0, now) for sa in inbound} if len(inbound) > 1 else {},
        identity=tuple(sorted(hash((sa.name, sa.spi, sa.keymat)) for sa in sas)),
        peer_name=first.remote_name,
        tracker=Tracker(liveness, now),
    )


def _is_same(known: Watched, watched: Watched) -> bool:
    return known.identity == watched.identity


def _is_next(watched: Watched, spi: int) -> bool:
    """Return True for the SPI of an SA that the tunnel would have with a larger `sas`."""
    return 0 < spi - max(watched.ends.inbound, default=spi) < MAX_SAS


def _move(watched: Watched, counters: Mapping[str, SaCounters]) -> None:
    """Follow a peer that moved."""
    there = next((counters[name] for name in watched.outbound if name in counters), None)
    if there is not None:
        watched.ends = replace(watched.ends, remote=there.remote, remote_port=there.remote_port)


def _lanes(tunnel: Tunnel, sas: Mapping[str, Sa]) -> tuple[tuple[str, int], ...]:
    # The SAs of a tunnel alternate: outbound, inbound.
    outbound = tunnel.sas[::2]
    if len(outbound) == 1:
        return ()
    return tuple((name, sas[name].last_seq if name in sas else 0) for name in outbound)


def _dead_lanes(
    lanes: Sequence[tuple[str, int]], counters: Mapping[str, SaCounters]
) -> tuple[DeadLane, ...]:
    """Return the lanes that carry nothing, if there is another one that does."""
    dead = []
    for number, (name, last_seq) in enumerate(lanes):
        there = counters.get(name)
        if there is None or there.seq > last_seq:
            dead.append(DeadLane(number, name, there is not None or not last_seq))
    return tuple(dead) if len(dead) < len(lanes) else ()


def _sums(watched: Watched, look: Look) -> Sums:
    sent, drops_out = _added(watched.outbound, look.carried)
    delivered, drops_in = _added(watched.inbound, look.carried)
    numbers = sum(look.counters[name].seq for name in watched.outbound if name in look.counters)
    _, of_others = _added(watched.inbound[1:], look.carried)
    announced = of_others.get(DropReason.DUMMY, 0)
    return Sums(sent, numbers, drops_out, delivered, drops_in, announced)


def _added(
    names: Iterable[str], carried: Mapping[str, tuple[int, Mapping[str, int]]]
) -> tuple[int, Mapping[str, int]]:
    packets, drops = 0, _NO_DROPS
    for name in names:
        count, dropped = carried.get(name, (0, _NO_DROPS))
        packets += count
        if dropped:
            drops = Counter(drops)
            drops.update(dropped)
    return packets, drops


def _contains(prefix: IPNetwork, address: IPAddress | None) -> bool:
    return address is not None and prefix.version == address.version and address in prefix
