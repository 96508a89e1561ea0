"""The time of the python engine by stage: its steps are wrapped while a profile runs.

A step's time is its own, without that of the steps that it calls. Nothing is wrapped, and nothing
costs anything, while no profile runs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from esp_gw.engine.stages import Stage, StageTimes

OUTBOUND = {
    "drain": Stage.TUN_READ,
    "_forward": Stage.LOOK_UP,
    "_protect": Stage.SEAL,
}
INBOUND = {
    "drain": Stage.RECEIVE,
    "_receive": Stage.OPEN,
    "_write": Stage.TUN_WRITE,
}
OUTER = {"send": Stage.SEND}
"""The methods whose time is a stage's, of the outbound path, the inbound path and a socket."""
_PROBES, _TRIES = 64, 8

Step = Callable[..., Any]


class StageClock:
    """The sums of the stages, and the steps that are wrapped."""

    def __init__(self) -> None:
        self._ns: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._clock_reads = 0
        # The stages that have begun, the innermost last, and when its time was last taken.
        self._open: list[Stage] = []
        self._last = 0
        self._wrapped: list[tuple[object, str]] = []

    def begin(self, outbound: object, inbound: object, outers: Iterable[object]) -> None:
        """Measure from the next turn on. Sockets that are opened later count for their caller."""
        self._wrap(outbound, OUTBOUND)
        self._wrap(inbound, INBOUND)
        for outer in outers:
            self._wrap(outer, OUTER)

    def end(self) -> None:
        """Make every step as it was."""
        for owner, name in self._wrapped:
            vars(owner).pop(name, None)
        self._wrapped.clear()

    def times(self) -> StageTimes:
        """Return the sums of the profiles so far."""
        return StageTimes(
            thread=self._thread,
            ns={stage: self._ns[stage] for stage in Stage if stage is not Stage.MERGE},
            packets_out=self._calls["_forward"],
            packets_in=self._calls["_receive"],
            clock_reads=self._clock_reads,
        )

    @cached_property
    def _thread(self) -> str:
        return Path("/proc/self/comm").read_text().strip()

    def _wrap(self, owner: object, steps: dict[str, Stage]) -> None:
        for name, stage in steps.items():
            # In front of the method of the class, of this object alone.
            vars(owner)[name] = self._timed(getattr(owner, name), name, stage)
            self._wrapped.append((owner, name))

    def _timed(self, step: Step, name: str, stage: Stage) -> Step:
        ns, calls, begun = self._ns, self._calls, self._open
        clock = time.perf_counter_ns

        def timed(*arguments: object) -> object:
            now = clock()
            if begun:
                ns[begun[-1]] += now - self._last
            self._last = now
            begun.append(stage)
            try:
                return step(*arguments)
            finally:
                now = clock()
                ns[stage] += now - self._last
                self._last = now
                begun.pop()
                calls[name] += 1
                self._clock_reads += 2

        return timed


def clock_cost() -> float:
    """Nanoseconds of one read of the clock: the least of several, the others were interrupted."""
    clock = time.perf_counter_ns

    def probe() -> float:
        began = clock()
        for _ in range(_PROBES):
            clock()
        return (clock() - began) / _PROBES

    return min(probe() for _ in range(_TRIES))
