"""The time of an engine's threads by stage of a packet's way, while a profile runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """A stage, in the order of a packet's way: four outbound ones, four inbound ones."""

    TUN_READ = "tun-read"
    LOOK_UP = "look-up"
    SEAL = "seal"
    SEND = "send"
    RECEIVE = "receive"
    OPEN = "open"
    MERGE = "merge"
    TUN_WRITE = "tun-write"


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Time that one thread has spent on the stages, in profiles since its start.

    `thread` is its name for the kernel, `ns` has nanoseconds. `packets_out` were read from the TUN,
    those of super-packets included; `packets_in` are datagrams that were received. `clock_reads`
    are those of the clock that measures.
    """

    thread: str
    ns: Mapping[str, int]
    packets_out: int
    packets_in: int
    clock_reads: int

    def since(self, before: StageTimes) -> StageTimes:
        """Return what was spent after an earlier look."""
        return StageTimes(
            self.thread,
            {stage: ns - before.ns.get(stage, 0) for stage, ns in self.ns.items()},
            self.packets_out - before.packets_out,
            self.packets_in - before.packets_in,
            self.clock_reads - before.clock_reads,
        )
