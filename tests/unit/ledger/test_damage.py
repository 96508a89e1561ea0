"""A ledger altered by anything but esp-gw counts as damaged, not as fresh."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.errors import LedgerDamagedError
from esp_gw.ledger.ledger import Ledger
from tests.support.ledgers import (
    ESN,
    MACHINE,
    key,
    make_directory,
    make_empty,
    make_garbage,
    make_other_database,
    make_rollback_journal,
)


@pytest.mark.parametrize(
    "spoil", [make_garbage, make_empty, make_directory, make_other_database, make_rollback_journal]
)
def test_a_file_that_is_no_ledger_is_damage_is_left_alone_and_can_be_replaced(
    path: Path, spoil: object
) -> None:
    assert callable(spoil)
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(LedgerDamagedError, match=r"damaged: .*--replace.*keygen"):
        Ledger.open(path, MACHINE)
    assert before is None or path.read_bytes() == before
    Ledger.replace(path, MACHINE, ())
    Ledger.open(path, MACHINE).close()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM keys WHERE role = 'outbound'",
        "DELETE FROM keys",
        "DELETE FROM keys WHERE role = 'seal'",
        "UPDATE keys SET role = 'inbound' WHERE role = 'outbound'",
        "UPDATE keys SET role = 'retired' WHERE role = 'outbound'",
        "UPDATE keys SET highest = x'0000000000000000' WHERE role = 'outbound'",
        "UPDATE keys SET highest = 0 WHERE role = 'outbound'",
        "UPDATE keys SET highest = x'00' WHERE role = 'outbound'",
        "UPDATE keys SET first_use = first_use + 1 WHERE role = 'outbound'",
        "UPDATE keys SET first_use = -1 WHERE role = 'outbound'",
        "UPDATE keys SET first_use = 'then' WHERE role = 'outbound'",
        "UPDATE keys SET role = 'other' WHERE role = 'outbound'",
        "UPDATE keys SET role = CAST(x'ff' AS TEXT) WHERE role = 'outbound'",
        "UPDATE keys SET fingerprint = randomblob(32) WHERE role = 'outbound'",
        "UPDATE keys SET fingerprint = x'01' WHERE role = 'outbound'",
        "UPDATE keys SET mac = randomblob(32) WHERE role = 'outbound'",
        "UPDATE keys SET highest = x'0000000000000001' WHERE role = 'seal'",
        "UPDATE settings SET secret = randomblob(32)",
        "UPDATE settings SET secret = x''",
        "UPDATE settings SET machine = 'b'",
        "UPDATE settings SET machine = 5",
        "INSERT INTO settings SELECT * FROM settings",
        "DELETE FROM settings",
        "DROP TABLE settings",
        "DROP TABLE keys",
        "CREATE TRIGGER back AFTER INSERT ON keys BEGIN DELETE FROM keys; END",
        "CREATE INDEX role ON keys (role)",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = 4",
    ],
)
def test_an_edited_ledger_is_damaged(ledger: Ledger, path: Path, statement: str) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.replay_floor(key(2))
    ledger.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute(statement)
    with pytest.raises(LedgerDamagedError) as refused:
        Ledger.open(path, MACHINE)
    Ledger.replace(path, MACHINE, ())
    Ledger.open(path, MACHINE).close()
    # The traceback is still alive here, but keeps no file open.
    assert refused.value.__traceback__ is not None


def test_a_restored_old_row_is_damage_not_a_lower_number(ledger: Ledger, path: Path) -> None:
    read = "SELECT fingerprint, role, highest, first_use, mac FROM keys WHERE role = 'outbound'"
    ledger.lease(key(1), 10, ESN)
    ledger.close()
    with closing(sqlite3.connect(path)) as raw:
        old = raw.execute(read).fetchone()
    ledger = Ledger.open(path, MACHINE)
    ledger.lease(key(1), 10, ESN)
    ledger.close()
    with closing(sqlite3.connect(path)) as raw, raw:
        raw.execute("REPLACE INTO keys VALUES (?, ?, ?, ?, ?)", old)
    with pytest.raises(LedgerDamagedError, match="not those last written"):
        Ledger.open(path, MACHINE)


def test_every_truncated_ledger_is_damaged(ledger: Ledger, path: Path) -> None:
    for number in range(60):
        ledger.lease(key(number), 10, ESN)
    ledger.close()
    whole = path.read_bytes()
    for size in [*range(1, len(whole), 509), *range(4096, len(whole), 4096)]:
        path.write_bytes(whole[:size])
        with pytest.raises(LedgerDamagedError):
            Ledger.open(path, MACHINE)


def test_a_flipped_bit_is_damage_or_changes_nothing(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 1000, ESN)
    ledger.replay_floor(key(2))
    entries = ledger.entries()
    ledger.close()
    whole = path.read_bytes()
    offsets = [at for at, byte in enumerate(whole) if byte or at < 128 or at % 197 == 0]
    outcomes = {"damaged": 0, "unchanged": 0}
    for at in offsets:
        for bit in range(8) if at < 128 else {at % 8, (at * 5 + 4) % 8}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            try:
                flipped = Ledger.open(path, MACHINE)
            except LedgerDamagedError:
                outcomes["damaged"] += 1
                continue
            with closing(flipped):
                assert flipped.entries() == entries, f"byte {at}, bit {bit}"
                assert flipped._contents.fingerprint(key(1)) in flipped._contents.rows
            outcomes["unchanged"] += 1
    assert outcomes["damaged"] > 500
    assert outcomes["unchanged"] > 10
