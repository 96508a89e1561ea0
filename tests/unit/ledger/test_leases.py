"""Leases and their release: no number twice, and no released number lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.errors import KeyReuseError
from esp_gw.ledger.ledger import LEASE_ESN, LEASE_NO_ESN, Ledger
from esp_gw.model import KeyMaterial, Lease
from tests.support.ledgers import ESN, NO_ESN, key, reopened

# Leases


def test_a_fresh_key_starts_at_one_and_leases_follow_each_other(ledger: Ledger) -> None:
    assert ledger.lease(key(1), 100, ESN) == Lease(1, 101)
    assert ledger.lease(key(1), 1, ESN) == Lease(101, 102)
    assert ledger.lease(key(2), 5, ESN) == Lease(1, 6)
    assert ledger.lease(key(1), LEASE_ESN, ESN) == Lease(102, 102 + LEASE_ESN)


def test_a_lease_that_was_not_released_is_used_up_after_reopening(
    ledger: Ledger, path: Path
) -> None:
    ledger.lease(key(1), 100, ESN)
    with closing(reopened(ledger, path)) as again:
        assert again.lease(key(1), 100, ESN) == Lease(101, 201)


def test_the_same_key_with_another_salt_is_another_key(ledger: Ledger) -> None:
    ledger.lease(key(1), 10, ESN)
    assert ledger.lease(KeyMaterial(key(1).key, b"salt"), 10, ESN).first == 1


@pytest.mark.parametrize("last", [NO_ESN, ESN])
def test_a_lease_ends_at_the_last_sequence_number_and_then_none_is_left(
    ledger: Ledger, path: Path, last: int
) -> None:
    assert ledger.lease(key(1), last - 2, last) == Lease(1, last - 1)
    assert ledger.lease(key(1), LEASE_NO_ESN, last) == Lease(last - 1, last + 1)
    for _ in range(2):
        with pytest.raises(KeyReuseError, match=r"SA office: .* used up; .*keygen"):
            ledger.lease(key(1), 1, last, sa="office")
        ledger = reopened(ledger, path)
    ledger.close()


@pytest.mark.parametrize("last", [NO_ESN, ESN])
def test_a_key_is_used_up_exactly_where_it_gets_no_lease(
    ledger: Ledger, path: Path, last: int
) -> None:
    assert not ledger.is_used_up(key(1), last), "a fresh one"
    ledger.lease(key(1), last - 1, last)
    assert not ledger.is_used_up(key(1), last)
    assert ledger.is_used_up(key(1), last, last), "another program used the rest"
    ledger.lease(key(1), 1, last)
    with closing(reopened(ledger, path)) as again:
        assert again.is_used_up(key(1), last)
        assert again.is_used_up(key(1), ESN) == (last == ESN)
        again.replay_floor(key(2))
        assert not again.is_used_up(key(2), last), "an inbound key is refused for another reason"


def test_turning_esn_off_does_not_wrap_and_turning_it_on_continues(ledger: Ledger) -> None:
    ledger.lease(key(1), NO_ESN, NO_ESN)
    assert ledger.lease(key(1), 10, ESN).first == 2**32
    with pytest.raises(KeyReuseError, match="used up"):
        ledger.lease(key(1), 10, NO_ESN)


@pytest.mark.parametrize(("count", "last"), [(0, ESN), (-1, ESN), (1, 0), (1, 2**64)])
def test_a_lease_of_nothing_or_past_64_bits_is_a_bug_and_changes_nothing(
    ledger: Ledger, count: int, last: int
) -> None:
    with pytest.raises(ValueError, match="count must be positive"):
        ledger.lease(key(1), count, last)
    assert ledger.entries() == []


def test_leases_taken_by_many_threads_are_disjoint(ledger: Ledger) -> None:
    with ThreadPoolExecutor(4) as pool:
        leases = list(pool.map(lambda _: ledger.lease(key(1), 3, ESN), range(60)))
    assert sorted(n for lease in leases for n in range(lease.first, lease.end)) == [*range(1, 181)]


# Releases


@pytest.mark.parametrize("next_seq", [11, 15, 20, 21])
def test_the_unused_end_of_the_newest_lease_is_leased_again(
    ledger: Ledger, path: Path, next_seq: int
) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.release(key(1), ledger.lease(key(1), 10, ESN), next_seq)
    with closing(reopened(ledger, path)) as again:
        assert again.lease(key(1), 10, ESN).first == next_seq


@pytest.mark.parametrize(
    ("lease", "next_seq"),
    [
        (Lease(1, 11), 5),
        (Lease(0, 21), 5),
        (Lease(1, 20), 5),
        (Lease(1, 22), 5),
        (Lease(12, 21), 11),
        (Lease(11, 20), 15),
        (Lease(11, 22), 22),
        (Lease(11, 21), 10),
        (Lease(11, 21), 22),
        (Lease(11, 21), 0),
    ],
)
def test_any_other_release_changes_nothing(ledger: Ledger, lease: Lease, next_seq: int) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.lease(key(1), 10, ESN)
    ledger.release(key(1), lease, next_seq)
    ledger.release(key(2), lease, next_seq)
    assert [entry.seq for entry in ledger.entries()] == [21]
    ledger.release(key(1), Lease(11, 21), 15)
    assert ledger.lease(key(1), 1, ESN).first == 15


@pytest.mark.parametrize("next_seq", [1, 5, 11, 15, 30, 31])
def test_leases_that_follow_each_other_can_be_released_as_one(
    ledger: Ledger, next_seq: int
) -> None:
    for _ in range(3):
        ledger.lease(key(1), 10, ESN)
    ledger.release(key(1), Lease(1, 31), next_seq)
    assert ledger.lease(key(1), 10, ESN).first == next_seq


def test_leases_that_were_released_are_not_part_of_a_later_release(ledger: Ledger) -> None:
    ledger.release(key(1), ledger.lease(key(1), 10, ESN), 6)
    assert ledger.lease(key(1), 10, ESN) == Lease(6, 16)
    ledger.release(key(1), Lease(1, 16), 3)
    ledger.release(key(1), Lease(5, 16), 8)
    assert ledger.lease(key(1), 10, ESN).first == 16


def test_a_lease_is_released_once(ledger: Ledger) -> None:
    lease = ledger.lease(key(1), 10, ESN)
    ledger.release(key(1), lease, 11)
    ledger.release(key(1), lease, 2)
    assert ledger.lease(key(1), 1, ESN).first == 11


def test_an_old_lease_with_the_same_end_does_not_release_the_new_one(ledger: Ledger) -> None:
    old = ledger.lease(key(1), 99, ESN)
    ledger.release(key(1), old, 50)
    assert ledger.lease(key(1), 50, ESN) == Lease(50, old.end)
    ledger.release(key(1), old, 50)
    assert ledger.lease(key(1), 1, ESN).first == old.end


def test_a_lease_of_an_earlier_process_cannot_be_released(ledger: Ledger, path: Path) -> None:
    lease = ledger.lease(key(1), 10, ESN)
    with closing(reopened(ledger, path)) as again:
        again.release(key(1), lease, 5)
        assert again.lease(key(1), 1, ESN).first == 11
