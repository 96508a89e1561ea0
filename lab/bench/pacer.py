"""Rate control of the generator, without a clock of its own."""

from __future__ import annotations

import math

BURST_S = 200e-6
"""Seconds whose packets go out together: a timer is not more exact on a busy machine."""
MAX_BURST = 64
LATE_S = 0.005
"""Seconds of packets that a delayed sender makes up for; what it owes beyond is never sent."""


class Pacer:
    """Packets due at a rate a second from a time on; a rate of 0 is full speed."""

    def __init__(self, rate: float, began: float) -> None:
        self._rate = rate
        self._origin = began
        self._taken = 0
        self.burst = max(1, min(MAX_BURST, round(rate * BURST_S))) if rate else MAX_BURST

    def take(self, now: float) -> int:
        """The packets to send now: a whole burst, or none as long as less than one is due."""
        if self._rate:
            behind = self._due(now) - LATE_S
            if behind > 0:
                self._origin += behind
            if self._due(now) < 0:
                return 0
        self._taken += self.burst
        return self.burst

    def wait(self, now: float) -> float:
        """Seconds until the next burst is due, 0 if it is."""
        return max(0.0, -self._due(now)) if self._rate else 0.0

    def _due(self, now: float) -> float:
        """Seconds that have passed since the next burst was due; negative before."""
        return now - self._origin - (self._taken + self.burst) / self._rate


def common_length(flows: int, at_least: int) -> int:
    """The smallest multiple of `flows` that is `at_least` so long."""
    return flows * math.ceil(at_least / flows)
