"""Lanes added to a running tunnel: announced by dummy packets, used once the peer is heard by them.

A reload adds lanes at one end first. What is sent by a lane that the peer does not know yet is
lost, so bulk flows keep the lanes they have. Both ends send dummy packets (RFC 4303 2.6) by each
new lane; an end that hears the peer by all new lanes of a tunnel begins to use them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from esp_gw.desired import Desired
from esp_gw.engine.base import Counters, Engine, SaCounters
from esp_gw.logs import log
from esp_gw.model import Direction, DropReason, Sa

INTERVAL = 1.0
"""Seconds between two announcements."""
AFTERWARDS = 5
"""Announcements of a lane that is in use: the peer may have got it a moment ago."""
PATIENCE = 600.0
"""Seconds for which new lanes wait for a peer that announces none.

Another implementation sends no dummy packets, and may send by one of its SAs alone.
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
        self._lanes: dict[str, _NewLane] = {}
        self._there = asyncio.Event()

    @property
    def warnings(self) -> list[str]:
        """A line for each tunnel with lanes that are not used yet."""
        return [
            f"{_words(waiting)} of {tunnel} waits for the peer, which was not heard by it yet: has"
            " its configuration as many SAs, and was it reloaded?"
            for tunnel, lanes in self._tunnels().items()
            if (waiting := [each for each in lanes if not each.is_used])
        ]

    def hold(self, desired: Desired, installed: Mapping[str, Sa], now: float) -> Desired:
        """Return the desired state whose policies lack new lanes that are not used yet.

        `installed` are the engine's SAs, by name; `now` is in seconds of the loop's clock.
        """
        lanes = {sa.name: sa for sa in desired.sas if sa.lane and _is_outbound(sa)}
        self._lanes = {
            name: each
            for name, each in self._lanes.items()
            if name in lanes and lanes[name].keymat == each.sa.keymat
        }
        running = {sa.tunnel for sa in installed.values() if _is_outbound(sa)}
        inbound = (sa for sa in desired.sas if not _is_outbound(sa))
        sisters = {(sa.tunnel, sa.lane): sa for sa in inbound}
        for name, sa in lanes.items():
            sister = sisters.get((sa.tunnel, sa.lane))
            both = [sa, *([] if sister is None else [sister])]
            if sa.tunnel in running and name not in self._lanes and _is_new(both, installed):
                # One under another key goes on: its predecessor is accepted for a grace time.
                is_used = name in installed
                self._lanes[name] = _NewLane(sa, sister, now + PATIENCE, is_used=is_used)
        if not self._lanes:
            return desired
        self._there.set()
        held = {name for name, each in self._lanes.items() if not each.is_used}
        policies = (
            replace(policy, sas=tuple(name for name in policy.sas if name not in held))
            for policy in desired.policies
        )
        return replace(desired, policies=tuple(policies))

    async def step(self, engine: Engine) -> None:
        """Wait until there are new lanes, and announce them once."""
        await self._there.wait()
        await asyncio.sleep(INTERVAL)
        if self.look(engine.counters(), asyncio.get_running_loop().time()):
            self._wake()
        for name, each in self._lanes.items():
            if each.left:
                engine.send_dummy(name)
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
                    del self._lanes[each.sa.name]
                continue
            ready = _ready(lanes, now)
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


def _ready(lanes: Sequence[_NewLane], now: float) -> list[_NewLane]:
    """Return the lanes that can be used, of a tunnel's new lanes those that wait.

    A peer that announces lanes has no others, even after PATIENCE.
    """
    waiting = [each for each in lanes if not each.is_used]
    heard = [each for each in waiting if each.is_heard]
    if len(heard) == len(waiting):
        return waiting
    if any(now < each.until for each in waiting):
        return []
    return heard if any(each.announces for each in lanes) else waiting


def _is_new(sas: Sequence[Sa], installed: Mapping[str, Sa]) -> bool:
    there = [installed.get(sa.name) for sa in sas]
    return any(old is None or old.keymat != sa.keymat for old, sa in zip(there, sas, strict=True))


def _is_outbound(sa: Sa) -> bool:
    return sa.direction is Direction.OUTBOUND


def _dummies(counters: SaCounters) -> int:
    return counters.drops.get(DropReason.DUMMY, 0)


def _words(lanes: Iterable[_NewLane]) -> str:
    numbers = sorted(each.sa.lane or 0 for each in lanes)
    return f"lane{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
