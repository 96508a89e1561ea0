"""Lanes added to a running tunnel: announced by dummy packets, used once the peer is heard by them.

A reload adds lanes at one end first. What is sent by a lane that the peer does not know yet is
lost, so bulk flows keep the lanes they have. Both ends send dummy packets (RFC 4303 2.6) by each
new lane; an end that hears the peer by all new lanes of a tunnel begins to use them. One that uses
them already answers announcements by some of its own: the peer waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from esp_gw.daemon.reconcile import RETIRED_MARK
from esp_gw.desired import Desired
from esp_gw.engine.base import Counters, Engine, SaCounters
from esp_gw.logs import log
from esp_gw.model import Direction, DropReason, KeyMaterial, Sa

INTERVAL = 1.0
"""Seconds between two announcements."""
AFTERWARDS = 5
"""Announcements of a lane that is in use: the peer may have got it a moment ago."""
REST = 30.0
"""Seconds after announcements in which those of the peer have no answer.

Two ends would answer each other for good.
"""
PATIENCE = 600.0
"""Seconds for which new lanes wait for a peer that announces none.

Another implementation sends no dummy packets, and may send by one of its SAs alone. A peer that
sends some to keep a tunnel alive would announce lanes if it had them.
"""


@dataclass(slots=True)
class _NewLane:
    """An outbound SA of a new lane; `sister` is the inbound one, None if there is none.

    `first` are the sister's counters at the first look, and None before it.
    """

    sa: Sa
    sister: Sa | None
    until: float
    first: SaCounters | None = None
    is_heard: bool = False
    announces: bool = False
    is_used: bool = False
    left: int = AFTERWARDS

    def follow(self, sa: Sa, sister: Sa | None) -> None:
        """Follow the SAs of the lane; under another key the peer is yet to be heard."""
        if sister is None or self.sister is None or sister.keymat != self.sister.keymat:
            self.first, self.is_heard = None, False
        self.sa, self.sister = sa, sister

    def can_send(self, counters: Mapping[str, SaCounters]) -> bool:
        """Return False for a lane that is not installed, or has no sequence number left."""
        there = counters.get(self.sa.name)
        return there is not None and there.seq <= self.sa.last_seq

    def look(self, counters: Mapping[str, SaCounters]) -> None:
        """Compare the sister's counters with the first ones."""
        now = None if self.sister is None else counters.get(self.sister.name)
        if now is None:
            return
        if self.first is None:
            self.first = now
        if now.seq > self.first.seq:
            self.is_heard = True
            self.announces |= _dummies(now) > _dummies(self.first)


class NewLanes:
    """The new lanes of running tunnels; `wake` is called when some are to be used from now on."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lanes: dict[KeyMaterial, _NewLane] = {}
        self._unwanted: dict[KeyMaterial, _NewLane] = {}
        self._pairs: dict[str | None, list[tuple[Sa, Sa]]] = {}
        self._firsts: dict[str | None, str] = {}
        self._dummies: dict[str | None, int] = {}
        self._rests: dict[str | None, float] = {}
        self._there = asyncio.Event()

    @property
    def warnings(self) -> list[str]:
        """A line for each tunnel with lanes that are not used yet."""
        return [
            f"the peer of {tunnel} was not heard by {_words(unheard)} yet, so nothing goes by"
            f" {_words(waiting)}: has its configuration as many SAs, and was it reloaded?"
            for tunnel, lanes in self._tunnels().items()
            if (waiting := [each for each in lanes if not each.is_used])
            and (unheard := [each for each in waiting if not each.is_heard])
        ]

    def hold(self, desired: Desired, installed: Mapping[str, Sa], now: float) -> Desired:
        """Return the desired state whose policies lack new lanes that are not used yet.

        `installed` are the engine's SAs, by name; `now` is in seconds of the loop's clock.
        """
        lanes = {sa.keymat: sa for sa in desired.sas if sa.lane and _is_outbound(sa)}
        if not (lanes or self._lanes or self._unwanted):
            self._pairs, self._firsts = {}, {}
            return desired
        there = {_key(sa) for name, sa in installed.items() if RETIRED_MARK not in name}
        # A request that fails may have been without them: they still wait after it.
        known = {
            key: each
            for key, each in (self._unwanted | self._lanes).items()
            if (Direction.OUTBOUND, key) in there
        }
        self._unwanted = {key: each for key, each in known.items() if key not in lanes}
        self._lanes = {key: each for key, each in known.items() if key in lanes}
        waiting = {each.sa.name for each in known.values() if not each.is_used}
        running = {sa.tunnel for sa in installed.values() if _is_outbound(sa)}
        # A tunnel may have got another name.
        running |= {sa.tunnel for sa in desired.sas if _is_outbound(sa) and _key(sa) in there}
        inbound = [sa for sa in desired.sas if not _is_outbound(sa)]
        self._firsts = {sa.tunnel: sa.name for sa in inbound if sa.lane == 0}
        sisters = {(sa.tunnel, sa.lane): sa for sa in inbound}
        self._pairs = {}
        for key, sa in lanes.items():
            sister = sisters.get((sa.tunnel, sa.lane))
            both = [sa]
            if sister is not None:
                both.append(sister)
                self._pairs.setdefault(sa.tunnel, []).append((sa, sister))
            if (lane := self._lanes.get(key)) is not None:
                lane.follow(sa, sister)
            elif sa.tunnel in running and any(_key(each) not in there for each in both):
                # One under another key goes on: its predecessor is accepted for a grace time.
                is_used = sa.name in installed and sa.name not in waiting
                self._lanes[key] = _NewLane(sa, sister, now + PATIENCE, is_used=is_used)
        if not self._lanes:
            return desired
        self._there.set()
        held = {each.sa.name for each in self._lanes.values() if not each.is_used}
        policies = (
            replace(policy, sas=tuple(name for name in policy.sas if name not in held))
            for policy in desired.policies
        )
        return replace(desired, policies=tuple(policies))

    def answer(self, counters: Mapping[str, SaCounters], now: float) -> None:
        """Announce the lanes in use of tunnels whose peer announces some: it waits for them.

        `counters` are those of all SAs; `now` is in seconds of the loop's clock.
        """
        before, self._dummies = self._dummies, {}
        announced = self._tunnels()
        for tunnel, pairs in self._pairs.items():
            heard = sum(_dummies(counters[s.name]) for _, s in pairs if s.name in counters)
            self._dummies[tunnel] = heard
            if heard <= before.get(tunnel, heard) or tunnel in announced:
                continue
            if now >= self._rests.get(tunnel, now):
                for sa, sister in pairs:
                    self._lanes[sa.keymat] = _NewLane(sa, sister, now, is_used=True)
                self._there.set()

    async def step(self, engine: Engine) -> None:
        """Wait until there are new lanes, and announce them once."""
        await self._there.wait()
        await asyncio.sleep(INTERVAL)
        counters = engine.counters()
        if self.look(counters, asyncio.get_running_loop().time()):
            self._wake()
        for each in self._lanes.values():
            if each.left and each.can_send(counters.sas):
                engine.send_dummy(each.sa.name)
        if not self._lanes:
            self._there.clear()

    def look(self, counters: Counters, now: float) -> bool:
        """Look who was heard; return True if lanes are to be used from now on."""
        for each in self._lanes.values():
            each.look(counters.sas)
            each.left -= each.is_used and each.left > 0
        begun = False
        for tunnel, lanes in self._tunnels().items():
            if not any(each.left for each in lanes):
                for each in lanes:
                    del self._lanes[each.sa.keymat]
                self._rests[tunnel] = now + REST
                continue
            first = counters.sas.get(self._firsts.get(tunnel, ""))
            keeps_alive = first is not None and _dummies(first) > 0
            ready = _ready(lanes, now, announces=keeps_alive or any(x.announces for x in lanes))
            for each in ready:
                each.is_used = True
            begun |= bool(ready)
            if ready and not any(each.is_heard for each in ready):
                log.warning(
                    "new lanes are used though the peer was not heard by them",
                    tunnel=tunnel,
                    seconds=PATIENCE,
                )
        return begun

    def _tunnels(self) -> dict[str | None, list[_NewLane]]:
        tunnels: dict[str | None, list[_NewLane]] = {}
        for each in self._lanes.values():
            tunnels.setdefault(each.sa.tunnel, []).append(each)
        return tunnels


def _ready(lanes: Sequence[_NewLane], now: float, *, announces: bool) -> list[_NewLane]:
    """Return the lanes that can be used, of a tunnel's new lanes those that wait.

    A peer that announces lanes has no others, even after PATIENCE.
    """
    waiting = [each for each in lanes if not each.is_used]
    heard = [each for each in waiting if each.is_heard]
    if len(heard) == len(waiting):
        return waiting
    if any(now < each.until for each in waiting):
        return []
    return heard if announces else waiting


def _key(sa: Sa) -> tuple[Direction, KeyMaterial]:
    return sa.direction, sa.keymat


def _is_outbound(sa: Sa) -> bool:
    return sa.direction is Direction.OUTBOUND


def _dummies(counters: SaCounters) -> int:
    return counters.drops.get(DropReason.DUMMY, 0)


def _words(lanes: Iterable[_NewLane]) -> str:
    numbers = sorted(each.sa.lane or 0 for each in lanes)
    return f"lane{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
