"""Lanes of a tunnel with several SAs: lane 0 for sparse flows, the others for bulk.

A flow begins on lane 0. It moves to a bulk lane once it sends much in an interval, or is heard by a
bulk lane, and back once little has gone by that lane either way for a while; it moves at most once
in HOLD. The native engine has the same rules and constants (crates/esp-core/src/policy/lanes.rs).
Times are in ms of one clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Protocol, TypeVar

INTERVAL = 100
"""Length of the interval in which a flow's bytes are counted, in ms."""
BULK = 32768
"""Bytes in an interval that make a sparse flow bulk."""
STAY = 8192
"""Bytes in an interval that keep a bulk flow bulk, sent and heard by a bulk lane together."""
QUIET = 2000
"""Time without STAY bytes in any interval after which a bulk flow is sparse again, and without any
packet after which a flow is as new, in ms."""
HOLD = 1000
"""Least time between two moves of a flow, in ms."""
LANE_FLOWS = 8192
"""Bound on the flows whose state is kept."""
RECENT = 10_000
"""Time since its last packet for which a flow counts as carried, in ms."""

FlowKey = tuple[int, bytes]
"""Protocol, and addresses with ports, as of wire.flow_key."""
_NEVER = -(2**63)


class Lane(Protocol):
    """An outbound SA as seen by the choice of a lane."""

    @property
    def is_exhausted(self) -> bool:
        """True if no sequence number is left."""


L = TypeVar("L", bound=Lane)


def fold(key: FlowKey) -> FlowKey:
    """Return the key that both directions of a flow share."""
    protocol, data = key
    size = 4 if len(data) < 32 else 16
    one = data[:size] + data[2 * size : 2 * size + 2]
    other = data[size : 2 * size] + data[2 * size + 2 :]
    return protocol, one + other if one <= other else other + one


def bulk_lane(spread: int, count: int) -> int:
    """Return the lane of a bulk flow, of `count` lanes, two or more: the same at both ends."""
    return 1 + spread % (count - 1)


def choose(lanes: Sequence[L | None], wanted: int) -> L | None:
    """Return the SA of the wanted lane, or of the next one that works; None stands for no SA.

    A bulk flow tries the bulk lanes from its own on, cyclically, and lane 0 at last; a sparse flow
    all in order. Where no lane works, an exhausted one is returned if there is one.
    """
    lane = lanes[wanted]
    if lane is not None and not lane.is_exhausted:
        return lane
    bulk = len(lanes) - 1
    others = [1 + (wanted - 1 + i) % bulk for i in range(bulk)] if wanted else range(1, bulk + 1)
    there = [each for each in (lane, *(lanes[i] for i in others), lanes[0]) if each is not None]
    working = (each for each in there if not each.is_exhausted)
    return next(working, there[0] if there else None)


class Flow:
    """State of one flow; `carrier` is the name of the SA that carried its last packet, at `sent`.

    `start` and `bytes` are the current interval's, `busy` the last time at which much of the flow
    went by or a sparse one was heard by a bulk lane, `moved` that of its last move, `seen` that of
    its last packet.
    """

    __slots__ = ("busy", "bytes", "carrier", "is_bulk", "moved", "seen", "sent", "start")

    def __init__(self, now: int) -> None:
        self.sent = _NEVER
        self.carrier = ""
        self._begin(now)

    def _begin(self, now: int) -> None:
        self.start = self.seen = now
        self.bytes = 0
        self.busy = self.moved = _NEVER
        self.is_bulk = False

    def see(self, now: int) -> None:
        """Note a packet; a flow that was silent begins anew: none of its packets is on the way."""
        if now - self.seen >= QUIET:
            self._begin(now)
        self.seen = now

    def count(self, size: int, now: int) -> None:
        """Add a packet to the bytes of its interval."""
        self.see(now)
        if now - self.start >= INTERVAL:
            self.start, self.bytes = now, 0
        self.bytes += size

    def note_busy(self, now: int) -> None:
        """Move to a bulk lane, unless the flow is there or moved less than HOLD ago."""
        self.busy = now
        if not self.is_bulk and now - self.moved >= HOLD:
            self.is_bulk, self.moved = True, now


class LaneFlows:
    """States of at most LANE_FLOWS flows, by their folded keys; flows not seen for long go first.

    Two generations of half the size: the older one goes as a whole when the younger is full.
    """

    def __init__(self) -> None:
        self._young: dict[FlowKey, Flow] = {}
        self._old: dict[FlowKey, Flow] = {}

    def __len__(self) -> int:
        """The number of flows whose state is kept."""
        return len(self._young) + len(self._old)

    def sent(self, key: FlowKey, size: int, now: int) -> Flow:
        """Count a packet of `size` bytes that a flow is about to send; return the flow's state."""
        flow = self._young.get(key) or self._find(key, now)
        flow.count(size, now)
        flow.sent = now
        if flow.bytes >= (STAY if flow.is_bulk else BULK):
            flow.note_busy(now)
        elif flow.is_bulk and now - flow.busy >= QUIET:
            # The move to the bulk lane is longer ago than HOLD.
            flow.is_bulk, flow.moved = False, now
        return flow

    def heard(self, key: FlowKey, size: int, now: int) -> None:
        """Count an authentic packet of `size` bytes of a flow that came in by a bulk lane."""
        flow = self._young.get(key) or self._find(key, now)
        flow.count(size, now)
        # Two ends that answer each other with little would keep each other on the bulk lane.
        if not flow.is_bulk or flow.bytes >= STAY:
            flow.note_busy(now)

    def carried(self, now: int) -> Counter[str]:
        """Return how many flows each SA carried in the last RECENT ms, by its name."""
        flows = (*self._young.values(), *self._old.values())
        return Counter(flow.carrier for flow in flows if now - flow.sent < RECENT)

    def _find(self, key: FlowKey, now: int) -> Flow:
        flow = self._old.pop(key, None) or Flow(now)
        if len(self._young) >= LANE_FLOWS // 2:
            self._old, self._young = self._young, {}
        self._young[key] = flow
        return flow
