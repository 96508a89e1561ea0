"""Processor time over a stretch: each daemon's, and the whole machine's."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_UNUSED = (3, 4, 7)
"""Columns of /proc/stat in which a core does no work of ours: idle, iowait, steal (proc(5))."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds that passed, and processor seconds of each daemon and of the whole machine."""

    elapsed: float
    daemons: tuple[float, ...]
    machine: float

    def percent(self, seconds: float | None = None) -> tuple[float, ...]:
        """Percent of a core for each daemon, over `seconds` in place of `elapsed` if given."""
        return tuple(100 * used / (seconds or self.elapsed) for used in self.daemons)

    @property
    def receiver(self) -> float:
        """Processor seconds of the receiving side's daemons, the second half of them."""
        return sum(self.daemons[len(self.daemons) // 2 :])


class Meter:
    """Processor time since its start, for the daemons `pids`."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._daemons = [scheduled_s(pid) for pid in pids]
        self._unused = _machine()[1]
        self._began = time.monotonic()

    def spent(self) -> Spent:
        """The stretch from the start until now."""
        elapsed = time.monotonic() - self._began
        cores, unused = _machine()
        daemons = tuple(
            scheduled_s(pid) - before for pid, before in zip(self._pids, self._daemons, strict=True)
        )
        return Spent(elapsed, daemons, max(0.0, cores * elapsed - (unused - self._unused)))


@contextlib.contextmanager
def metered(pids: Sequence[int]) -> Iterator[list[Spent]]:
    """Yield a list that holds the block's processor time once the block has ended."""
    found: list[Spent] = []
    meter = Meter(pids)
    yield found
    found.append(meter.spent())


def scheduled_s(pid: int) -> float:
    """Seconds of run time of all threads of a process, to the nanosecond (proc(5), schedstat)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def parse_unused(stat: str) -> tuple[int, float]:
    """The number of cores, and the seconds in which they did nothing, from /proc/stat.

    Work is the rest. The columns of work are sampled by the tick in most kernels, and miss what a
    timer starts right after it; idle time is measured.
    """
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    values = [int(value) for value in lines[0][1:]]
    return len(lines) - 1, sum(values[column] for column in _UNUSED) / _TICKS


def _machine() -> tuple[int, float]:
    return parse_unused(Path("/proc/stat").read_text())
