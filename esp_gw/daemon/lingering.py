"""Outer sockets that stay open for a grace time after their SAs have left them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from esp_gw.daemon.reconcile import GRACE, sockets_left
from esp_gw.desired import Desired
from esp_gw.engine.base import OuterSocket
from esp_gw.model import Sa


class Lingering:
    """The sockets that SAs have left which keep their keys, each with the end of its grace time.

    Times are in seconds of the loop's clock.
    """

    def __init__(self) -> None:
        self._ends: dict[OuterSocket, float] = {}

    def leave(self, desired: Desired, there: Mapping[str, Sa], now: float) -> None:
        """Begin the grace time of the sockets that the SAs `there` leave for `desired`."""
        self._ends |= dict.fromkeys(sockets_left(desired, there), now + GRACE)

    def at(self, now: float) -> frozenset[OuterSocket]:
        """Return the sockets that stay open at `now`, and forget the others."""
        self._ends = {each: end for each, end in self._ends.items() if now < end}
        return frozenset(self._ends)

    @property
    def ends(self) -> Collection[float]:
        """The ends of the grace times."""
        return self._ends.values()
