"""Places of the control socket: a quota for each user, a reserve for root, and eviction.

Without a free place the longest idle connection of the user with the most connections ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from esp_gw.errors import ControlError

MAX_CONNECTIONS = 64
MAX_OF_A_USER = 16
"""Connections of one user other than root."""
ROOT_PLACES = 16
"""Connections that are kept for root."""

_ROOT = 0


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """The place of one connection of the user `uid`."""

    uid: int


class Places:
    """The places in use. Those that wait for their client may be taken away."""

    def __init__(self) -> None:
        self._taken: set[Place] = set()
        # In the order in which they began to wait.
        self._waiting: dict[Place, None] = {}

    def take(self, uid: int) -> tuple[Place, Place | None]:
        """Return a place for a connection that waits, and the place that was taken away for it.

        Raises ControlError (Refused) if there is none.
        """
        rivals = self._rivals(uid)
        former = None
        if rivals is not None:
            former = self._longest_waiting(rivals)
            if former is None:
                raise ControlError("Refused", "too many connections", hint="try again later")
            self.free(former)
        place = Place(uid)
        self._taken.add(place)
        self._waiting[place] = None
        return place, former

    def begin(self, place: Place) -> None:
        """Keep a place while a request of its connection is carried out."""
        self._waiting.pop(place, None)

    def wait(self, place: Place) -> None:
        """Let a place be taken away: its connection waits for the client."""
        self._waiting[place] = None

    def free(self, place: Place) -> None:
        """Give a place back; one that was taken away is free already."""
        self._taken.discard(place)
        self._waiting.pop(place, None)

    def take_longest(self) -> Place | None:
        """Take away the place that would be the next to go, or return None if there is none."""
        former = self._longest_waiting(lambda _uid: True)
        if former is not None:
            self.free(former)
        return former

    def _rivals(self, uid: int) -> Callable[[int], bool] | None:
        """Return whose places count against one more for a user, or None if there is room."""
        if uid != _ROOT:
            if self._count(lambda other: other == uid) >= MAX_OF_A_USER:
                return lambda other: other == uid
            if self._count(_is_not_root) >= MAX_CONNECTIONS - ROOT_PLACES:
                return _is_not_root
        return None if len(self._taken) < MAX_CONNECTIONS else lambda _uid: True

    def _count(self, counts: Callable[[int], bool]) -> int:
        return sum(counts(place.uid) for place in self._taken)

    def _longest_waiting(self, counts: Callable[[int], bool]) -> Place | None:
        waiting = [place for place in self._waiting if counts(place.uid)]
        have = Counter(place.uid for place in self._taken)
        return max(waiting, key=lambda place: have[place.uid], default=None)


def _is_not_root(uid: int) -> bool:
    return uid != _ROOT
