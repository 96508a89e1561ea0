"""The ceiling of an inbound key: no number above it was received when it was written."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from esp_gw.ledger.ledger import MIN_MARGIN, FloorRequest, Ledger
from esp_gw.model import KeyMaterial, Reception
from tests.support.ledgers import MACHINE, key, reopened

LAST = 2**64 - 1


def begin(ledger: Ledger, keymat: KeyMaterial, used: int = 0) -> Reception:
    _, (numbers,) = ledger.begin([], [FloorRequest(keymat, None, used)])
    return numbers


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as raw:
        return int(raw.execute("PRAGMA user_version").fetchone()[0])


def test_a_crash_leaves_the_ceiling_as_the_fence_and_many_don_t_raise_it(
    ledger: Ledger, path: Path
) -> None:
    assert begin(ledger, key(1)) == Reception(0, 0, MIN_MARGIN)
    for _ in range(5):
        ledger = reopened(ledger, path)
        assert begin(ledger, key(1)) == Reception(0, MIN_MARGIN, MIN_MARGIN)
    ledger.end([], [(key(1), 70)], [(key(1), 5000)])
    with closing(reopened(ledger, path)) as again:
        assert begin(again, key(1)) == Reception(70, 5000, 5000)


def test_a_clean_end_leaves_nothing_ahead_of_the_floor(ledger: Ledger, path: Path) -> None:
    begin(ledger, key(1))
    ledger.end([], [(key(1), 70)], [(key(1), 70)])
    with closing(reopened(ledger, path)) as again:
        assert begin(again, key(1)) == Reception(70, 70, 70 + MIN_MARGIN)


def test_a_ceiling_comes_down_to_the_floor_at_most_and_rises_with_it(
    ledger: Ledger, path: Path
) -> None:
    begin(ledger, key(1))
    ledger.end([], [(key(1), 70)], [(key(1), 20)])
    ledger.end([], [(key(1), 400)])
    ledger.end([], [], [(key(2), 9)])
    with closing(reopened(ledger, path)) as again:
        assert begin(again, key(1)) == Reception(400, 400, 400 + MIN_MARGIN)
        assert begin(again, key(2)) == Reception(0, 9, MIN_MARGIN)


def test_numbers_used_elsewhere_are_below_the_fence(ledger: Ledger) -> None:
    assert begin(ledger, key(1), used=1000) == Reception(1000, 1000, 1000 + MIN_MARGIN)


def test_a_ceiling_ends_with_the_numbers(ledger: Ledger, path: Path) -> None:
    ledger.store_replay_floors([(key(1), LAST)])
    assert begin(ledger, key(1)) == Reception(LAST, LAST, LAST)
    ledger.end([], [], [(key(1), LAST + 5)])
    with closing(reopened(ledger, path)) as again:
        assert begin(again, key(1)) == Reception(LAST, LAST, LAST)


def test_a_ledger_without_ceilings_goes_on_with_its_floors(ledger: Ledger, path: Path) -> None:
    ledger.store_replay_floors([(key(1), 70)])
    ledger.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        assert raw.execute("SELECT max(length(highest)) FROM keys").fetchone() == (8,)
        raw.execute("PRAGMA user_version = 2")
    with closing(Ledger.open(path, MACHINE)) as old:
        assert begin(old, key(1)) == Reception(70, 70, 70 + MIN_MARGIN)
    assert version(path) == 3
    with closing(Ledger.open(path, MACHINE)) as again:
        assert begin(again, key(1)) == Reception(70, 70 + MIN_MARGIN, 70 + MIN_MARGIN)
