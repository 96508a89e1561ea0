"""The replay window against a model that remembers every number, and RFC 4303 A2.2."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.engine.python.replay import ReplayWindow
from esp_gw.model import DropReason

SUBSPACE = 2**32
LAST = 2**64 - 1

sizes = st.sampled_from([64, 65, 100, 128, 1000, 1024, 4096, 8191, 8192]) | st.integers(64, 8192)
near_an_edge = st.builds(
    lambda subspace, offset: min(max(subspace * SUBSPACE + offset, 0), LAST),
    st.sampled_from([0, 1, 2, 3, 2**31, 2**32 - 1, 2**32]),
    st.integers(-20_000, 20_000),
)
highests = near_an_edge | st.integers(0, LAST)


class Model:
    """RFC 4303 3.4.3, with a set of all numbers seen."""

    def __init__(self, size: int, initial: int) -> None:
        self.size = size
        self.initial = self.highest = initial
        self.seen: set[int] = set()

    def accepts(self, seq: int) -> bool:
        return self.is_in_window(seq) and seq > self.initial and seq not in self.seen

    def is_in_window(self, seq: int) -> bool:
        return seq > 0 and seq > self.highest - self.size

    def accept(self, seq: int) -> bool:
        self.seen.add(seq)
        newest = seq > self.highest
        self.highest = max(seq, self.highest)
        return newest


steps = st.lists(
    st.one_of(
        st.integers(1, 3),  # in order or nearly so
        st.integers(-70, 70),
        st.integers(-9000, 9000),
        st.sampled_from([0, -63, -64, -65, -1023, -1024, -8191, -8192]),
        st.sampled_from([SUBSPACE - 1, SUBSPACE, SUBSPACE + 1]),
    ),
    max_size=150,
)


@given(size=sizes, initial=highests, steps=steps)
@settings(max_examples=250)
def test_the_window_agrees_with_a_set_of_every_number(
    size: int, initial: int, steps: list[int]
) -> None:
    window, model = ReplayWindow(size, initial), Model(size, initial)
    for step in steps:
        seq = min(max(model.highest + step, 0), LAST)
        verdict = window.check(seq)
        if model.accepts(seq):
            assert verdict is None
            assert window.commit(seq) is model.accept(seq)
        elif model.is_in_window(seq):
            assert verdict is DropReason.REPLAY_DUPLICATE
        else:
            assert verdict is DropReason.REPLAY_OLD
        assert window.highest == model.highest


@given(size=sizes, start=highests, steps=st.permutations(range(1, 90)))
@settings(max_examples=50)
def test_packets_reordered_within_the_window_all_arrive_once(
    size: int, start: int, steps: list[int]
) -> None:
    start = min(start, LAST - 100)
    window = ReplayWindow(size, start)
    order = sorted(steps, key=lambda step: (step // 60, steps.index(step)))
    for step in order:
        seq = window.infer((start + step) % SUBSPACE)
        assert seq == start + step
        assert window.check(seq) is None
        window.commit(seq)
    assert all(window.check(start + step) is not None for step in steps)


def seq_hi_of_the_rfc(highest: int, size: int, seq_lo: int) -> int:
    """RFC 4303 A2.2, verbatim: Th and Tl are the halves of the highest number, W is the size."""
    th, tl = divmod(highest, SUBSPACE)
    if tl >= size - 1:  # case A
        return th if seq_lo >= tl - size + 1 else th + 1
    bl = (tl - size + 1) % SUBSPACE  # case B
    return th - 1 if seq_lo >= bl else th


def candidates_in_reach(highest: int, size: int, seq_lo: int) -> list[int]:
    """Numbers with this low half that are not too old, nor 2**32 ahead of one that is not."""
    subspaces = range(highest // SUBSPACE - 2, highest // SUBSPACE + 3)
    left_edge = highest - size + 1
    return [
        seq
        for seq in (hi * SUBSPACE + seq_lo for hi in subspaces)
        if left_edge <= seq and seq - SUBSPACE < left_edge
    ]


low_halves = st.integers(0, SUBSPACE - 1) | st.builds(
    lambda offset: offset % SUBSPACE, st.integers(-20_000, 20_000)
)


@given(size=sizes, highest=highests, low=low_halves, relative=st.booleans())
@settings(max_examples=800)
def test_inference_agrees_with_the_rfc_and_with_trying_every_high_half(
    size: int, highest: int, low: int, relative: bool
) -> None:
    seq_lo = (highest + low) % SUBSPACE if relative else low
    by_rfc = seq_hi_of_the_rfc(highest, size, seq_lo) * SUBSPACE + seq_lo
    assert candidates_in_reach(highest, size, seq_lo) == [by_rfc]
    window = ReplayWindow(size, highest)
    if 0 < by_rfc <= LAST:
        assert window.infer(seq_lo) == by_rfc
    else:
        assert window.check(window.infer(seq_lo)) is DropReason.REPLAY_OLD


@given(
    sizes=st.lists(sizes, min_size=2, max_size=4),
    initial=highests,
    rounds=st.lists(steps, min_size=3, max_size=3),
)
@settings(max_examples=100)
def test_a_window_of_another_size_has_seen_what_the_former_one_has(
    sizes: list[int], initial: int, rounds: list[list[int]]
) -> None:
    window, model = ReplayWindow(sizes[0], initial), Model(sizes[0], initial)
    for size, numbers in zip(sizes[1:], rounds, strict=False):
        for step in numbers:
            seq = min(max(model.highest + step, 0), LAST)
            if window.check(seq) is None:
                window.commit(seq)
                model.accept(seq)
        window = window.resized(size)
        # Left of the former window nobody knows what was seen.
        model.initial = max(model.initial, model.highest - model.size)
        model.size = size
        assert window.highest == model.highest
        for seq in range(max(model.highest - size - 40, 0), min(model.highest + 20, LAST)):
            verdict = window.check(seq)
            if model.accepts(seq):
                assert verdict is None
            elif model.is_in_window(seq):
                assert verdict is DropReason.REPLAY_DUPLICATE
            else:
                assert verdict is DropReason.REPLAY_OLD


@given(size=sizes, highest=highests, behind=st.integers(0, 2**31))
def test_the_number_of_a_packet_that_the_window_has_passed_is_found(
    size: int, highest: int, behind: int
) -> None:
    window, seq = ReplayWindow(size, highest), highest - size - behind
    if seq > 0:
        inferred = window.infer(seq % SUBSPACE)
        # Above the last number there is none to be inferred, and `check` refuses at once.
        assert inferred == 0 or window.passed(inferred) == (seq if behind + size < 2**31 else None)
    for ahead in (1, size, 2**31):
        assert window.passed(highest + ahead) is None
