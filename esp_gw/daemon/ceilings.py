"""Ceilings of the numbers that inbound SAs receive: those above one are new, even after a crash.

The replay floor on disk lags behind what was received, so after a crash replays of the packets
between are accepted. They must not say where the peer is. The ceiling on disk is ahead of what is
received: none of them is above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from esp_gw.ledger.ledger import MIN_MARGIN
from esp_gw.model import KeyMaterial, Reception

AHEAD = 20.0
"""Seconds of packets at the present rate that a ceiling is ahead."""
SLOW_AHEAD, SLOW_MARGIN = 1200.0, 2400
"""The same at the rate of keepalives, whose ceiling must outlast two waits of a floor; at most so
many numbers."""
BUSY_MARGIN = 2**14
"""Numbers that a ceiling is ahead after traffic has run into the former one."""
BUSY = 16.0
"""Packets a second of more than keepalives."""
_LEAST_TIME = 1.0
"""Seconds over which a rate is measured, at least: one early packet is no burst."""
EXCESS = 2 * SLOW_MARGIN
"""Numbers beyond which a ceiling is lowered when the traffic has ended.

After a crash, the peer can't be followed before it has used the numbers up to the ceiling.
"""


@dataclass(slots=True)
class Ceiling:
    """The ceiling of one key.

    Numbers up to `fence` may have been received before this process. `value` is the last ceiling
    that was given to the ledger, `margin` how far it was ahead of the highest number `seen`. `rate`
    is the packets a second since the time `at`, when `counted` was the highest number.
    """

    fence: int
    value: int
    seen: int
    counted: int
    at: float
    margin: int = MIN_MARGIN
    rate: float = 0.0
    is_lower: bool = False
    """True if the last choice was a lower one."""

    @classmethod
    def begun(cls, numbers: Reception, now: float) -> Ceiling:
        """Return the ceiling of a key that this process begins to receive."""
        return cls(numbers.fence, numbers.ceiling, numbers.floor, numbers.floor, now)

    @property
    def notice_at(self) -> int:
        """The number above which the next ceiling has to be written."""
        return max(self.value - self.margin // 2, 0)

    def reach(self, highest: int, now: float, since: float) -> None:
        """Take the highest number at `now`; none has come from `at` to `since`."""
        self.seen = max(highest, self.seen)
        elapsed = max(now - max(self.at, since), _LEAST_TIME)
        self.rate = (self.seen - self.counted) / elapsed

    def count(self, highest: int, now: float, since: float) -> None:
        """Take the highest number as `reach` does, and measure the next rate from here."""
        self.reach(highest, now, since)
        self.counted, self.at = self.seen, now

    def choose(self, least: int = 0) -> int:
        """Choose the next ceiling, `least` or more ahead of what was received, and return it."""
        slow = min(math.ceil(self.rate * SLOW_AHEAD), SLOW_MARGIN)
        self.margin = max(MIN_MARGIN, least, slow, math.ceil(self.rate * AHEAD))
        former, self.value = self.value, max(self.fence, self.seen + self.margin)
        self.is_lower = self.value < former
        return self.value

    @property
    def is_excessive(self) -> bool:
        """True if the ceiling is much further ahead than the rate needs."""
        needed = max(4 * math.ceil(self.rate * AHEAD), EXCESS)
        return self.value - max(self.seen, self.fence) > needed


class Ceilings:
    """The ceilings of the keys that SAs receive under; one key may have two SAs."""

    def __init__(self) -> None:
        self._known: dict[KeyMaterial, Ceiling] = {}
        self._moving: set[KeyMaterial] = set()
        self._stopped: set[KeyMaterial] = set()
        self._counted_at = -math.inf

    def begin(self, key: KeyMaterial, numbers: Reception, now: float) -> Ceiling:
        """Return the ceiling of a key, for a new SA; what this process has received is known."""
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Ceiling.begun(numbers, now)
        return known

    def of(self, key: KeyMaterial) -> Ceiling:
        """Return the ceiling of the key of an installed SA."""
        return self._known[key]

    @property
    def is_moving(self) -> bool:
        """True if any key has received numbers before the last count."""
        return bool(self._moving)

    def choose(self, keys: Iterable[KeyMaterial]) -> dict[KeyMaterial, int]:
        """Choose the next ceilings of those keys that have SAs."""
        return {key: self._known[key].choose() for key in keys if key in self._known}

    def lowered(self, keys: Iterable[KeyMaterial]) -> set[KeyMaterial]:
        """Return the keys whose ceilings were last chosen lower than before."""
        return {key for key in keys if self._known[key].is_lower}

    def end(self, keys: Iterable[tuple[KeyMaterial, int]]) -> dict[KeyMaterial, int]:
        """Forget keys, each with its highest number; return their last ceilings: nothing is ahead.

        What a former process may have received is ahead as before.
        """
        last: dict[KeyMaterial, int] = {}
        for key, highest in keys:
            self._moving.discard(key)
            known = self._known.pop(key, None)
            if known is not None:
                last[key] = max(known.fence, known.seen, highest)
        return last

    def count(self, advanced: Mapping[KeyMaterial, int], now: float) -> None:
        """Take the highest numbers of the keys that have received any since the last call."""
        stopped = self._moving - advanced.keys()
        for key, highest in (*advanced.items(), *((key, 0) for key in stopped)):
            if (known := self._known.get(key)) is not None:
                known.count(highest, now, self._counted_at)
        self._moving = set(advanced)
        self._stopped = stopped
        self._counted_at = now

    def excessive(self) -> set[KeyMaterial]:
        """Return the keys whose ceilings are to be lowered, as of the last count."""
        found = self._moving | self._stopped
        return {key for key in found if key in self._known and self._known[key].is_excessive}

    def reach(self, key: KeyMaterial, highest: int, now: float) -> int:
        """Return the next ceiling of a key whose numbers near the present one."""
        known = self._known[key]
        known.reach(highest, now, self._counted_at)
        return known.choose(BUSY_MARGIN if known.rate > BUSY else 0)
