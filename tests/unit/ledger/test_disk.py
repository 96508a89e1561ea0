"""Disk errors: no number is leased during one, and none is lost after it."""

from __future__ import annotations

import resource
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from esp_gw.errors import LedgerDamagedError, LedgerError
from esp_gw.ledger.identity import MachineIdentity
from esp_gw.ledger.ledger import Ledger
from esp_gw.model import Lease
from tests.support.ledgers import ESN, MACHINE, key, make_schema_1, reopened


def test_every_commit_waits_for_the_disk(ledger: Ledger) -> None:
    assert ledger._connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    assert ledger._connection.execute("PRAGMA synchronous").fetchall() == [(2,)]


@contextmanager
def files_no_longer_than(size: int) -> Iterator[None]:
    """Make writes past `size` bytes of any file fail, as a full disk does (setrlimit(2), EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 40, 4100, 6000, 12000])
def test_no_lease_without_the_disk_and_the_next_try_succeeds(
    ledger: Ledger, path: Path, size: int
) -> None:
    taken = ledger.lease(key(1), 10, ESN)
    with files_no_longer_than(size):
        for _ in range(3):
            with pytest.raises(LedgerError) as refused:
                ledger.lease(key(1), 1000, ESN)
            assert not isinstance(refused.value, LedgerDamagedError)
        copy = path.with_name("copy")
    shutil.copy(path, copy)
    with closing(Ledger.open(copy, MACHINE)) as crashed:
        assert crashed.lease(key(1), 1, ESN).first >= taken.end
    assert ledger.lease(key(1), 10, ESN) == Lease(11, 21)
    with closing(reopened(ledger, path)) as again:
        assert again.lease(key(1), 10, ESN).first == 21


@pytest.mark.parametrize("size", [0, 40, 4100, 6000, 12000])
def test_a_failed_binding_to_the_machine_closes_the_ledger_and_the_next_start_goes_on(
    ledger: Ledger, path: Path, size: int
) -> None:
    for number in range(60):
        ledger.lease(key(number), 10, ESN)
    ledger.close()
    make_schema_1(path, MACHINE.joint)
    failing = Ledger.open(path, MACHINE)
    with files_no_longer_than(size), pytest.raises(LedgerError) as refused:
        failing.bind()
    assert not isinstance(refused.value, LedgerDamagedError)
    with pytest.raises(LedgerError, match="closed"):
        failing.lease(key(1), 10, ESN)
    with closing(Ledger.open(path, MACHINE)) as again:
        again.bind()
        assert again.lease(key(1), 10, ESN) == Lease(11, 21)
    Ledger.open(path, MachineIdentity(MACHINE.machine_id, joint="other")).close()


def test_a_failed_release_gives_nothing_back_twice(ledger: Ledger) -> None:
    lease = ledger.lease(key(1), 10, ESN)
    with files_no_longer_than(0), pytest.raises(LedgerError):
        ledger.release(key(1), lease, 5)
    ledger.lease(key(1), 10, ESN)
    ledger.release(key(1), lease, 5)
    assert ledger.lease(key(1), 10, ESN).first == 21


def test_a_full_database_registers_no_more_keys_and_recovers(ledger: Ledger) -> None:
    ledger._connection.execute("PRAGMA max_page_count = 3")
    with pytest.raises(LedgerError, match="free some space"):
        for number in range(60):
            ledger.replay_floor(key(number))
    known = len(ledger.entries())
    assert 0 < known < 60
    ledger._connection.execute("PRAGMA max_page_count = 1000")
    assert ledger.replay_floor(key(known)) == 0
    assert len(ledger.entries()) == known + 1


def test_a_read_only_disk_is_reported(ledger: Ledger) -> None:
    ledger._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerError, match="must be writable"):
        ledger.lease(key(1), 10, ESN)
    ledger._connection.execute("PRAGMA query_only = OFF")
    assert ledger.lease(key(1), 10, ESN) == Lease(1, 11)


def test_an_error_within_a_transaction_leaves_none_open(ledger: Ledger) -> None:
    ledger.lease(key(1), 10, ESN)
    deny = {sqlite3.SQLITE_INSERT: sqlite3.SQLITE_DENY}
    ledger._connection.set_authorizer(lambda action, *_: deny.get(action, sqlite3.SQLITE_OK))
    with pytest.raises(LedgerError):
        ledger.lease(key(1), 10, ESN)
    ledger._connection.set_authorizer(None)
    assert ledger.lease(key(1), 10, ESN) == Lease(11, 21)


def test_a_ledger_moved_away_while_in_use_leases_nothing(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 10, ESN)
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(LedgerError, match="moved or deleted"):
        ledger.lease(key(1), 10, ESN)
    shutil.copy(path.with_name("elsewhere"), path)
    with pytest.raises(LedgerError, match="moved or deleted"):
        ledger.lease(key(1), 10, ESN)
