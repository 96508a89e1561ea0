"""After the replacement of a ledger, no key known to the old one is used again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.errors import KeyReuseError, LedgerDamagedError
from esp_gw.ledger.ledger import Ledger, Role
from tests.support.ledgers import (
    ESN,
    MACHINE,
    key,
    machine,
    make_directory,
    make_empty,
    make_garbage,
)


def test_replacing_a_foreign_ledger_retires_every_key_for_both_directions(
    ledger: Ledger, path: Path
) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.replay_floor(key(2))
    ledger.close()
    assert Ledger.replace(path, machine("b"), ()) == 2
    assert Ledger.replace(path, machine("c"), ()) == 2
    assert {"ledger.db.old-1", "ledger.db.old-2"} < {file.name for file in path.parent.iterdir()}
    with closing(Ledger.open(path, machine("c"))) as again:
        assert [entry.role for entry in again.entries()] == [Role.RETIRED] * 2
        for number in (1, 2):
            with pytest.raises(KeyReuseError, match="before the ledger was replaced"):
                again.lease(key(number), 1, ESN)
            with pytest.raises(KeyReuseError, match="before the ledger was replaced"):
                again.replay_floor(key(number))
            with pytest.raises(KeyReuseError, match="before the ledger was replaced"):
                again.store_replay_floors([(key(number), 9)])
        assert again.lease(key(3), 1, ESN).first == 1
    with closing(Ledger.open(path.with_name("ledger.db.old-1"), MACHINE)) as old:
        assert old.lease(key(1), 1, ESN).first == 11


def test_replacing_a_damaged_ledger_retires_every_readable_key(ledger: Ledger, path: Path) -> None:
    for number in range(120):
        ledger.lease(key(number), 10, ESN)
    names = sorted(ledger._contents.rows)
    ledger.close()
    whole = bytearray(path.read_bytes())
    # A page that begins with 10 is a leaf: https://www.sqlite.org/fileformat2.html#b_tree_pages
    pages = [whole.index(name) // 4096 * 4096 for name in (names[0], *names[55:65], names[-1])]
    page = next(page for page in pages[1:-1] if whole[page] == 10)
    assert page not in (pages[0], pages[-1])
    whole[page : page + 4096] = bytes(4096)
    path.write_bytes(whole)
    with pytest.raises(LedgerDamagedError):
        Ledger.open(path, MACHINE)
    count = Ledger.replace(path, MACHINE, ())
    with closing(Ledger.open(path, MACHINE)) as again:
        known = set(again._contents.rows)
    assert count == len(known) < 120
    assert {names[0], names[-1]} <= known


@pytest.mark.parametrize("spoil", [make_garbage, make_empty, make_directory])
def test_the_keys_of_an_unreadable_ledger_are_refused_if_the_caller_lists_them(
    ledger: Ledger, path: Path, spoil: Callable[[Path], None]
) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.replay_floor(key(2))
    ledger.close()
    spoil(path)
    assert Ledger.replace(path, MACHINE, [key(1), key(2), key(1)]) == 2
    with closing(Ledger.open(path, MACHINE)) as again:
        for number in (1, 2):
            with pytest.raises(KeyReuseError, match=r"SA x: .*ledger was replaced; .*keygen"):
                again.lease(key(number), 1, ESN, sa="x")
            with pytest.raises(KeyReuseError, match="ledger was replaced"):
                again.replay_floor(key(number))
        assert again.lease(key(3), 1, ESN).first == 1


def test_a_key_known_to_both_old_ledger_and_configuration_keeps_its_numbers(
    ledger: Ledger, path: Path
) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.close()
    assert Ledger.replace(path, machine("b"), [key(1), key(2)]) == 2
    with closing(Ledger.open(path, machine("b"))) as again:
        assert sorted(entry.seq for entry in again.entries()) == [0, 10]


def test_replacing_keeps_files_that_sqlite_ignored(path: Path) -> None:
    make_directory(path)
    path.with_name("ledger.db-wal").write_bytes(b"old wal")
    Ledger.replace(path, MACHINE, ())
    assert path.with_name("ledger.db.old-1-wal").read_bytes() == b"old wal"
    assert path.with_name("ledger.db.old-1").is_dir()
    assert not path.with_name("ledger.db-wal").exists()


def test_replacing_a_ledger_whose_secret_is_changed_claims_no_key(
    ledger: Ledger, path: Path
) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE settings SET secret = randomblob(32)")
    assert Ledger.replace(path, MACHINE, ()) == 0


def test_an_altered_row_is_retired_if_its_fingerprint_is_intact(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.lease(key(2), 10, ESN)
    name = ledger._contents.fingerprint(key(1))
    ledger.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("UPDATE keys SET first_use = 'then' WHERE fingerprint = ?", (name,))
    assert Ledger.replace(path, MACHINE, ()) == 2
    with (
        closing(Ledger.open(path, MACHINE)) as again,
        pytest.raises(KeyReuseError, match="before the ledger was replaced"),
    ):
        again.lease(key(1), 1, ESN)
