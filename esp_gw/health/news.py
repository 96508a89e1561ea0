"""Changes of the tunnels' states, as events and as at most one log line a look.

A tunnel that changes often is held back, and its next line has the number of changes since.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from esp_gw.health.causes import Cause
from esp_gw.model import TunnelState

MAX_EVENTS = 256
"""Events that are kept for `esp-gw log`."""
BURST = 3
"""Log lines that a tunnel may have in a row."""
CALM = 60.0
"""Seconds after which a tunnel that changes often may have one line more."""
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Event:
    """A change of a tunnel's state or likely cause; `time` is in seconds since the epoch."""

    number: int
    time: float
    tunnel: str
    state: TunnelState
    before: TunnelState
    cause: str | None
    drops: str


@dataclass(frozen=True, slots=True)
class Line:
    """A log line on tunnels that came to one state for one cause."""

    state: TunnelState
    tunnels: str
    cause: str | None
    drops: str
    changes: int


_Key = tuple[TunnelState, str]
"""State, and the kind of the likeliest cause or an empty text."""
_FIRST: _Key = (TunnelState.QUIET, "")


class _Told:
    """A tunnel: its current key, the one that was logged last, and the changes since.

    `credit` is a token bucket of log lines, filled up to `at`.
    """

    __slots__ = ("at", "changes", "credit", "current", "told")

    def __init__(self) -> None:
        self.current = self.told = _FIRST
        self.changes = 0
        self.credit = float(BURST)
        self.at = 0.0

    def may_tell(self, now: float) -> bool:
        """Return True if the tunnel may have a log line now."""
        self.credit = min(self.credit + (now - self.at) / CALM, BURST)
        self.at = now
        return self.credit >= 1


@dataclass(frozen=True, slots=True)
class Standing:
    """A tunnel at one look: its state, its likeliest cause, and the drops that show it."""

    tunnel: str
    state: TunnelState
    cause: Cause | None
    drops: str = ""


class News:
    """Turns looks into events and log lines; `events` has the last ones."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._tunnels: dict[str, _Told] = {}
        self._number = 0

    def look(self, standings: Sequence[Standing], now: float, clock: float) -> Line | None:
        """Take the tunnels of this look; return the line to log, if there is one.

        `now` is in seconds of the clock that measures intervals, `clock` since the epoch. One line
        has the tunnels of one state and cause; others have their turn in the next looks.
        """
        for gone in self._tunnels.keys() - {each.tunnel for each in standings}:
            del self._tunnels[gone]
        due: dict[_Key, list[tuple[Standing, _Told]]] = {}
        for standing in standings:
            tunnel = self._tunnels.setdefault(standing.tunnel, _Told())
            key = standing.state, "" if standing.cause is None else str(standing.cause.kind)
            if key != tunnel.current:
                self._event(standing, tunnel.current[0], clock)
                tunnel.current = key
                tunnel.changes += 1
            if key != tunnel.told and tunnel.may_tell(now):
                due.setdefault(key, []).append((standing, tunnel))
        if not due:
            return None
        # The worst state first.
        key = max(due, key=lambda each: (_RANK[each[0]], each[1]))
        return self._line(key, due[key], now)

    def _event(self, standing: Standing, before: TunnelState, clock: float) -> None:
        self._number += 1
        cause = None if standing.cause is None else standing.cause.text
        self.events.append(
            Event(
                self._number,
                clock,
                standing.tunnel,
                standing.state,
                before,
                cause,
                standing.drops,
            )
        )

    @staticmethod
    def _line(key: _Key, group: Sequence[tuple[Standing, _Told]], now: float) -> Line:
        changes = max(tunnel.changes for _, tunnel in group)
        for _, tunnel in group:
            tunnel.told, tunnel.changes = key, 0
            tunnel.credit -= 1
        first = group[0][0]
        names = ", ".join(standing.tunnel for standing, _ in group[:_NAMED])
        if len(group) > _NAMED:
            names += f" and {len(group) - _NAMED} more"
        cause = None if first.cause is None else first.cause.text
        return Line(key[0], names, cause, first.drops, changes)


_RANK = {TunnelState.QUIET: 0, TunnelState.UP: 1, TunnelState.DOWN: 2, TunnelState.FAILING: 3}
