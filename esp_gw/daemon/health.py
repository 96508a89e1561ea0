"""Looks at the tunnels once a second: samples and counters in, states, causes and log lines out.

`esp_gw/health/` judges; this module gathers the input.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from esp_gw.daemon.gateway import Gateway
from esp_gw.errors import EspGwError
from esp_gw.health.causes import Cause, Kind
from esp_gw.health.news import Event, Line, News, Standing
from esp_gw.health.roster import Look, Roster, Watched
from esp_gw.logs import log
from esp_gw.model import TunnelState
from esp_gw.network.forward import Chain, dropping_chain
from esp_gw.network.icmp import Unreachable
from esp_gw.network.nft import list_ruleset

INTERVAL = 1.0
"""Seconds between two looks, at least."""
REST_FACTOR = 50
"""A look is followed by a pause of this many times its duration: thousands of SAs take longer."""
OPENING_INTERVAL = 10.0
"""Seconds between two looks at known flows for requests without an answer."""
CHAIN_INTERVAL = 30.0
"""Seconds between two looks at the packet filters, while an answer is missing."""
_MAX_WARNINGS = 10
_GUESSES = (Kind.FORWARDING, Kind.NO_WAY_BACK)
"""Causes that other warnings may explain better."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Condition of a tunnel: its state and likely causes, the likeliest first.

    The ages are those of the last authentic packet in and of the last packet out, in seconds.
    """

    state: TunnelState
    last_in_s: float | None
    last_out_s: float | None
    causes: tuple[str, ...]


class Health:
    """The tunnels' health; `step` is to be repeated.

    `drain_errors` returns the ICMP errors since its last call.
    """

    def __init__(self, gateway: Gateway, drain_errors: Callable[[], Sequence[Unreachable]]) -> None:
        self._gateway = gateway
        self._roster = Roster()
        self._news = News()
        self._drain_errors = drain_errors
        self._chains: dict[int, str | None] = {}
        self._told = 0
        self.on_event: Callable[[Event], None] = lambda _event: None
        """Called with each change of a tunnel; it must not block."""
        self._next_chains = self._next_openings = 0.0

    async def step(self) -> None:
        """Look at every tunnel once, log what changed, and pause."""
        began = _now()
        await self._look_at_filters(began)
        spent = _now() - began
        # The SAs of a change that runs are neither those before it nor those after it.
        await self._gateway.settled()
        began = _now()
        await self.look(began)
        await asyncio.sleep(max(INTERVAL, REST_FACTOR * (spent + _now() - began)))

    async def look(self, now: float) -> None:
        """Bring the states to `now`, in seconds of the loop's clock."""
        gateway = self._gateway
        counters = gateway.counters().sas
        gateway.new_lanes.answer(counters, now)
        self._roster.follow(gateway.placed, now)
        totals = gateway.totals(counters)
        look = Look(
            now,
            counters,
            {name: (each.packets, each.drops) for name, each in totals.items()},
            gateway.samples.take(),
            gateway.engine.openings(),
            self._drain_errors(),
            gateway.host_addresses,
        )
        for _ in self._roster.look(look, self._chains):
            await asyncio.sleep(0)
        named = [
            ((each.peer_name, each.ends.remote.version), each.state)
            for each in self._tunnels()
            if each.peer_name
        ]
        gateway.names.ask_again(peer[0] for peer, state in named if state is not TunnelState.UP)
        # The address at which another tunnel hears the peer is its address.
        up = {peer for peer, state in named if state is TunnelState.UP}
        down = {peer for peer, state in named if state is TunnelState.DOWN}
        gateway.names.try_others(down - up)
        one_way = any(each.tracker.is_one_way(now) for each in self._tunnels())
        if one_way and now >= self._next_openings:
            # Requests of a flow that was answered before count again.
            self._next_openings = now + OPENING_INTERVAL
            gateway.engine.forget_flows()
        standings = [_standing(each) for each in self._roster.tunnels.values()]
        line = self._news.look(standings, now, time.time())
        if line is not None:
            _tell(line)
        for event in [each for each in self._news.events if each.number > self._told]:
            self._told = event.number
            self.on_event(event)

    @property
    def events(self) -> Iterable[Event]:
        """The last changes, the oldest first."""
        return self._news.events

    def counts(self) -> dict[str, int]:
        """Return the number of tunnels in each state."""
        states = [each.state for each in self._tunnels()]
        return {str(state): states.count(state) for state in TunnelState}

    def of_sa(self, name: str) -> Condition:
        """Return the condition of an SA's tunnel."""
        self._tunnels()
        return _condition(self._roster.of_sa(name), _now())

    def samples(self, tunnel: str | None) -> Mapping[str, str]:
        """Return the last sample of each reason of a tunnel, for None those that no SA counts."""
        if tunnel is None:
            return self._roster.strays
        watched = self._roster.tunnels.get(tunnel)
        return {} if watched is None else watched.refused

    def warnings(self) -> list[str]:
        """Return a line for the likeliest cause in each tunnel, failing tunnels first.

        Guesses are left out.
        """
        return self._worded(guesses=False)

    def guesses(self) -> list[str]:
        """Return the lines of the causes that are guesses."""
        return self._worded(guesses=True)

    def _tunnels(self) -> Collection[Watched]:
        """Return the tunnels of this moment: they may have changed since the last look."""
        self._roster.follow(self._gateway.placed, _now())
        return self._roster.tunnels.values()

    def _worded(self, *, guesses: bool) -> list[str]:
        lines = [
            f"{watched.title} is {watched.state}: {cause.text}"
            for watched in sorted(self._tunnels(), key=_rank)
            for cause in _chosen(watched.causes, guesses=guesses)
        ]
        if len(lines) > _MAX_WARNINGS:
            more = len(lines) - _MAX_WARNINGS
            lines[_MAX_WARNINGS:] = [f"{more} more of the kind: see 'esp-gw tunnel list'"]
        return lines

    async def _look_at_filters(self, now: float) -> None:
        """Find the forward chains that drop, if an answer is missing that they may have dropped."""
        missing = any(each.tracker.is_unanswered(now) for each in self._roster.tunnels.values())
        if not missing or now < self._next_chains:
            return
        self._next_chains = now + CHAIN_INTERVAL
        try:
            ruleset = await asyncio.to_thread(list_ruleset)
        except EspGwError:
            self._chains = {}
            return
        interface = self._gateway.placed.settings.interface
        found = {version: dropping_chain(ruleset, version, interface) for version in (4, 6)}
        self._chains = {
            version: None if chain is None else _in_words(chain, interface)
            for version, chain in found.items()
        }


def _in_words(chain: Chain, interface: str) -> str:
    return f"{chain} drops what it has no rule for: run {chain.commands(interface)}"


def _chosen(causes: tuple[Cause, ...], *, guesses: bool) -> list[Cause]:
    """Return the likeliest cause if it is a guess, or if it is none, as asked for."""
    return [cause for cause in causes[:1] if (cause.kind in _GUESSES) == guesses]


def _rank(watched: Watched) -> tuple[bool, bool]:
    return watched.state is not TunnelState.FAILING, watched.state is not TunnelState.DOWN


def _standing(watched: Watched) -> Standing:
    tracker = watched.tracker
    counts = {
        reason: count
        for streak in (tracker.refused_in, tracker.rejected_in, tracker.refused_out)
        for reason, count in streak.counts.items()
    }
    drops = ", ".join(f"{reason} {count}" for reason, count in counts.items())
    cause = watched.causes[0] if watched.causes else None
    return Standing(watched.name, watched.state, cause, drops)


def _condition(watched: Watched | None, now: float) -> Condition:
    if watched is None:
        return Condition(TunnelState.QUIET, None, None, ())
    tracker = watched.tracker
    return Condition(
        watched.state,
        None if tracker.last_in is None else round(now - tracker.last_in, 1),
        None if tracker.last_out is None else round(now - tracker.last_out, 1),
        tuple(cause.text for cause in watched.causes),
    )


def _tell(line: Line) -> None:
    fields: dict[str, object] = {"tunnel": line.tunnels}
    if line.drops:
        fields["drops"] = line.drops
    if line.cause is not None:
        fields["cause"] = line.cause
    if line.changes > 1:
        fields["changes"] = line.changes
    say = (
        log.warning
        if line.cause or line.state in (TunnelState.DOWN, TunnelState.FAILING)
        else log.info
    )
    say(f"a tunnel is {line.state}", **fields)


def _now() -> float:
    return asyncio.get_running_loop().time()
