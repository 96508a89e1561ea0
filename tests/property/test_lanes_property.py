"""Flows on lanes against a plain model, which keeps what happened instead of a state."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from esp_gw.engine.python.lanes import LANE_FLOWS, LaneFlows, bulk_lane, choose

KEYS = [(6, number.to_bytes(12)) for number in range(2)]
SIZES = st.sampled_from([40, 1500, 8191, 8192, 16384, 32767, 32768, 65535])
PAUSES = st.one_of(
    st.tuples(st.just("now"), st.integers(0, 3000)),
    st.tuples(st.sampled_from(["now", "interval", "busy", "moved", "seen"]), st.integers(-1, 1)),
)


@dataclass
class History:
    """All that a flow did: the beginnings of its intervals, what went in each, its moves."""

    intervals: list[tuple[int, list[int]]] = field(default_factory=list)
    busy_at: list[int] = field(default_factory=list)
    moved_at: list[int] = field(default_factory=list)
    seen_at: list[int] = field(default_factory=list)

    @property
    def is_bulk(self) -> bool:
        """It begins sparse, and each move goes to the other kind."""
        return len(self.moved_at) % 2 == 1

    def may_move(self, now: int) -> bool:
        return all(now - moved >= 1000 for moved in self.moved_at)

    def see(self, now: int) -> None:
        """Forget everything after two seconds of silence."""
        if all(now - at >= 2000 for at in self.seen_at):
            self.intervals.clear()
            self.busy_at.clear()
            self.moved_at.clear()
        self.seen_at.append(now)
        if not self.intervals:
            self.intervals.append((now, []))

    def count(self, size: int, now: int) -> int:
        """Return the bytes of the interval."""
        self.see(now)
        if now >= self.intervals[-1][0] + 100:
            self.intervals.append((now, []))
        self.intervals[-1][1].append(size)
        return sum(self.intervals[-1][1])

    def send(self, size: int, now: int) -> None:
        if self.count(size, now) >= (8192 if self.is_bulk else 32768):
            self.note_busy(now)
        elif self.is_bulk and self.may_move(now) and all(now - at >= 2000 for at in self.busy_at):
            self.moved_at.append(now)

    def hear(self, size: int, now: int) -> None:
        if self.count(size, now) >= 8192 or not self.is_bulk:
            self.note_busy(now)

    def note_busy(self, now: int) -> None:
        self.busy_at.append(now)
        if not self.is_bulk and self.may_move(now):
            self.moved_at.append(now)


class Lanes(RuleBasedStateMachine):
    """Flows that send and are heard, on a clock that goes forward."""

    def __init__(self) -> None:
        super().__init__()
        self.flows = LaneFlows()
        self.histories = {key: History() for key in KEYS}
        self.now = 50_000

    def wait(self, history: History, pause: tuple[str, int]) -> None:
        """Wait for some ms, or until about the time at which something changes for a flow."""
        what, time = pause
        since, period = {
            "now": ([self.now], 0),
            "interval": ([begin for begin, _ in history.intervals], 100),
            "busy": (history.busy_at, 2000),
            "moved": (history.moved_at, 1000),
            "seen": (history.seen_at, 2000),
        }[what]
        if since:
            self.now = max(self.now, since[-1] + period + time)

    @rule(key=st.sampled_from(KEYS), pause=PAUSES, size=SIZES, times=st.integers(1, 3))
    def send(self, key: tuple[int, bytes], pause: tuple[str, int], size: int, times: int) -> None:
        history = self.histories[key]
        self.wait(history, pause)
        for _ in range(times):
            flow = self.flows.sent(key, size, self.now)
            history.send(size, self.now)
            assert flow.is_bulk == history.is_bulk

    @rule(key=st.sampled_from(KEYS), pause=PAUSES, size=SIZES)
    def hear(self, key: tuple[int, bytes], pause: tuple[str, int], size: int) -> None:
        history = self.histories[key]
        self.wait(history, pause)
        self.flows.heard(key, size, self.now)
        history.hear(size, self.now)

    @invariant()
    def moves_are_a_second_apart(self) -> None:
        for history in self.histories.values():
            moves = history.moved_at
            assert all(b - a >= 1000 for a, b in pairwise(moves))


TestLanes = Lanes.TestCase
TestLanes.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)


@given(
    st.lists(st.sampled_from([None, False, True]), min_size=2, max_size=8),
    st.integers(0, 2**64 - 1),
)
def test_the_lane_taken_is_the_first_that_works_in_the_flows_order(
    states: list[bool | None], spread: int
) -> None:
    class Lane:
        def __init__(self, number: int, is_exhausted: bool) -> None:
            self.number, self.is_exhausted = number, is_exhausted

    lanes = [None if dead is None else Lane(n, dead) for n, dead in enumerate(states)]
    working = [number for number, dead in enumerate(states) if dead is False]
    own = bulk_lane(spread, len(states))
    bulk = [number for number in working if number]
    for wanted, best in (
        (0, working[:1]),
        (own, ([n for n in bulk if n >= own] + [n for n in bulk if n < own] + working)[:1]),
    ):
        taken = choose(lanes, wanted)
        if best:
            assert taken is not None
            assert taken.number == best[0]
        else:
            assert (taken is None) == all(state is None for state in states)


@given(st.lists(st.integers(0, 40_000), max_size=300), st.integers(0, 2**31))
def test_the_table_is_bounded(steps: list[int], seed: int) -> None:
    flows = LaneFlows()
    for number, step in enumerate(steps):
        for each in range(step % 97):
            flows.heard((6, (seed + 1000 * number + each).to_bytes(12)), each, number)
        flows.sent((6, step.to_bytes(12)), step, number)
    assert len(flows) <= LANE_FLOWS
