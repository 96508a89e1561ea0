"""The anti-replay window at its edges, with expected numbers written out by hand."""

from __future__ import annotations

import pytest

from esp_gw.engine.python.replay import ReplayWindow
from esp_gw.model import DropReason

OLD = DropReason.REPLAY_OLD
DUPLICATE = DropReason.REPLAY_DUPLICATE


def test_the_first_packet_is_number_one_and_moves_the_right_edge() -> None:
    window = ReplayWindow(64)
    assert window.check(1) is None
    assert window.commit(1) is True
    assert window.highest == 1
    assert window.check(1) is DUPLICATE


@pytest.mark.parametrize("highest", [0, 1, 63, 64, 65, 2**32])
def test_number_zero_is_never_valid(highest: int) -> None:
    assert ReplayWindow(64, highest).check(0) is OLD


def test_a_late_packet_is_accepted_once_and_does_not_move_the_right_edge() -> None:
    window = ReplayWindow(64)
    window.commit(10)
    assert window.check(9) is None
    assert window.commit(9) is False
    assert window.highest == 10
    assert window.check(9) is DUPLICATE
    assert window.check(8) is None


def test_the_oldest_acceptable_number_is_size_minus_one_below_the_highest() -> None:
    window = ReplayWindow(64)
    window.commit(1000)
    assert window.check(1000 - 63) is None
    assert window.check(1000 - 64) is OLD


def test_a_jump_over_the_whole_window_forgets_nothing_and_invents_nothing() -> None:
    window = ReplayWindow(64)
    for seq in range(1, 65):
        window.commit(seq)
    window.commit(10_000)
    assert window.check(64) is OLD
    assert [seq for seq in range(10_000 - 63, 10_001) if window.check(seq)] == [10_000]


@pytest.mark.parametrize("highest", [1, 63, 64, 65, 5000, 2**32 - 1, 2**32 + 5, 2**63])
def test_every_number_up_to_the_initial_highest_counts_as_seen(highest: int) -> None:
    window = ReplayWindow(64, highest)
    assert window.highest == highest
    for seq in range(max(highest - 200, 0), highest + 1):
        assert window.check(seq) in (OLD, DUPLICATE)
    assert window.check(highest + 1) is None
    # ... and they still do when the window has moved on by less than its size.
    window.commit(highest + 20)
    for seq in range(max(highest - 200, 0), highest + 1):
        assert window.check(seq) in (OLD, DUPLICATE)
    assert window.check(highest + 1) is None


def test_the_last_number_of_all_is_accepted_once() -> None:
    last = 2**64 - 1
    window = ReplayWindow(1024, last - 1)
    assert window.infer(0xFFFFFFFF) == last
    assert window.check(last) is None
    assert window.commit(last) is True
    assert window.check(last) is DUPLICATE


@pytest.mark.parametrize(
    ("highest", "seq_lo", "expected"),
    [
        # Case A: the window lies in one subspace of 2**32 numbers.
        (1000, 1001, 1001),
        (1000, 1000 - 63, 1000 - 63),
        (1000, 1000 - 64, 2**32 + 1000 - 64),
        (1000, 0, 2**32),
        (2**32 - 1, 0, 2**32),
        (2**32 - 1, 2**32 - 64, 2**32 - 64),
        (5 * 2**32 + 63, 0, 5 * 2**32),
        (5 * 2**32 + 64, 0, 6 * 2**32),
        # Case B: it reaches back into the one before.
        (2**32, 0xFFFFFFFF, 2**32 - 1),
        (2**32 + 62, 0xFFFFFFFF, 2**32 - 1),
        (2**32 + 62, 0xFFFFFFFE, 2 * 2**32 - 2),
        (2**32 + 5, 6, 2**32 + 6),
        (2**32 + 5, 2**32 - 58, 2**32 - 58),
        (2**32 + 5, 2**32 - 59, 2 * 2**32 - 59),
        # Case B in the first subspace: there is none before.
        (0, 1, 1),
        (0, 2**32 - 64, 2**32 - 64),
        (5, 6, 6),
    ],
)
def test_the_high_half_follows_from_the_window(highest: int, seq_lo: int, expected: int) -> None:
    assert ReplayWindow(64, highest).infer(seq_lo) == expected


@pytest.mark.parametrize(
    ("highest", "seq_lo"),
    [
        pytest.param(0, 0, id="number zero"),
        pytest.param(0, 2**32 - 63, id="left edge below zero"),
        pytest.param(0, 2**32 - 1, id="minus one"),
        pytest.param(62, 2**32 - 1, id="minus one, some received"),
        pytest.param(2**64 - 1, 0, id="2**64"),
        pytest.param(2**64 - 1, 2**32 - 65, id="far above 2**64"),
    ],
)
def test_a_number_outside_the_64_bits_ends_as_old(highest: int, seq_lo: int) -> None:
    window = ReplayWindow(64, highest)
    assert window.check(window.infer(seq_lo)) is OLD
