"""The ledger's promises, one by one: roles, leases, releases, floors, and refusals that say why."""

from __future__ import annotations

import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from esp_gw.errors import (
    KeyReuseError,
    LedgerDamagedError,
    LedgerError,
    LedgerForeignError,
    LedgerMissingError,
)
from esp_gw.ledger import LEASE_ESN, LEASE_NO_ESN, Ledger, Role
from esp_gw.machine import machine_identity
from esp_gw.model import KeyMaterial, Lease

MACHINE = "a" * 64
ESN = 2**64 - 1
NO_ESN = 2**32 - 1


def key(number: int) -> KeyMaterial:
    return KeyMaterial(bytes([0xFF - number]) * 32, bytes([0x80 + number]) * 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    return path


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger.open(path, MACHINE)) as ledger:
        yield ledger


def reopened(ledger: Ledger, path: Path) -> Ledger:
    ledger.close()
    return Ledger.open(path, MACHINE)


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


def test_turning_esn_off_does_not_wrap_and_turning_it_on_goes_on(ledger: Ledger) -> None:
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


def test_a_lease_of_an_earlier_process_can_not_be_released(ledger: Ledger, path: Path) -> None:
    lease = ledger.lease(key(1), 10, ESN)
    with closing(reopened(ledger, path)) as again:
        again.release(key(1), lease, 5)
        assert again.lease(key(1), 1, ESN).first == 11


# Roles and replay floors


def test_replay_floors_survive_and_never_go_down(ledger: Ledger, path: Path) -> None:
    assert ledger.replay_floor(key(1)) == 0
    ledger.store_replay_floors([(key(1), 70), (key(2), 2**64 - 1), (key(1), 60)])
    ledger.store_replay_floors([(key(1), 50), (key(2), 1), (key(3), 0)])
    with closing(reopened(ledger, path)) as again:
        assert [again.replay_floor(key(n)) for n in (1, 2, 3)] == [70, 2**64 - 1, 0]
        assert len(again.entries()) == 3


def test_a_key_known_in_one_direction_is_refused_in_the_other(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.replay_floor(key(2))
    with closing(reopened(ledger, path)) as again:
        with pytest.raises(KeyReuseError, match=r"SA in: .* used for outbound traffic"):
            again.replay_floor(key(1), sa="in")
        with pytest.raises(KeyReuseError, match="used for inbound traffic"):
            again.lease(key(2), 10, ESN)
        with pytest.raises(KeyReuseError, match="used for outbound traffic"):
            again.store_replay_floors([(key(2), 99), (key(1), 99)])
        assert again.replay_floor(key(2)) == 0
        assert again.lease(key(1), 1, ESN).first == 11


def test_entries_tell_role_next_and_highest_but_no_key(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.store_replay_floors([(key(2), 7)])
    entries = {entry.role: entry for entry in ledger.entries()}
    assert (entries[Role.OUTBOUND].seq, entries[Role.INBOUND].seq) == (11, 7)
    assert all(len(bytes.fromhex(entry.fingerprint)) == 4 for entry in ledger.entries())
    assert all(entry.first_use.utcoffset() is not None for entry in ledger.entries())
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for secret in (key(1).key[:8], key(1).salt, key(2).key[:8], key(2).salt):
        assert secret not in stored


def test_no_error_nor_repr_shows_a_key_or_the_secret(ledger: Ledger, path: Path) -> None:
    ledger.replay_floor(key(1))
    with pytest.raises(KeyReuseError) as refused:
        ledger.lease(key(1), 1, ESN, sa="office")
    shown = str(refused.value) + repr(refused.value) + repr(ledger._contents)
    assert key(1).key.hex() not in shown
    assert repr(key(1).key)[2:-1] not in shown
    assert repr(ledger._contents.secret) not in shown


# Creating, opening


def test_files_are_for_the_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Ledger.create(tmp_path / "ledger.db", MACHINE)
        with closing(Ledger.open(tmp_path / "ledger.db", MACHINE)) as ledger:
            ledger.lease(key(1), 1, ESN)
            modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}


def test_create_keeps_a_ledger_that_is_there(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"exists already; .*--replace"):
        Ledger.create(path, MACHINE)
    assert path.read_bytes() == before


def replace_by_none(path: Path, machine: str) -> int:
    return Ledger.replace(path, machine, ())


def test_a_missing_directory_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="make the directory"):
        Ledger.create(tmp_path / "none" / "ledger.db", MACHINE)


@pytest.mark.parametrize("name", ["none.db", "none/ledger.db"])
def test_a_missing_ledger_says_when_it_may_be_created(tmp_path: Path, name: str) -> None:
    with pytest.raises(LedgerMissingError, match=r"if no key .* 'esp-gw ledger create'; otherwise"):
        Ledger.open(tmp_path / name, MACHINE)
    with pytest.raises(LedgerError):
        Ledger.replace(tmp_path / name, MACHINE, ())
    assert not (tmp_path / name).exists()


def test_the_ledger_of_another_machine_is_foreign(path: Path) -> None:
    with pytest.raises(LedgerForeignError, match=r"another machine; .*--replace.*keygen"):
        Ledger.open(path, "b" * 64)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_ledger_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    with pytest.raises(LedgerError, match=f"others may .*chmod 600 {path}"):
        Ledger.open(path, MACHINE)


def test_a_second_open_in_the_same_process_is_refused_and_harmless(
    ledger: Ledger, path: Path
) -> None:
    for attempt in (Ledger.open, Ledger.create, replace_by_none):
        with pytest.raises(LedgerError, match="another esp-gw uses this ledger"):
            attempt(path, MACHINE)
    assert ledger.lease(key(1), 1, ESN).first == 1


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "of-somebody-else"
    (tmp_path / "ledger.db.lock").symlink_to(target)
    with pytest.raises(LedgerError, match=r"symbolic link.*remove it"):
        Ledger.create(tmp_path / "ledger.db", MACHINE)
    assert not target.exists()


def test_another_process_is_refused_until_the_ledger_is_closed(ledger: Ledger, path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from esp_gw.ledger import Ledger\n"
        "try: Ledger.open(Path(sys.argv[1]), sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "else: print('opened')"
    )
    command = [sys.executable, "-c", script, str(path), MACHINE]
    refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert refused.startswith("LedgerError") and "another esp-gw uses this ledger" in refused
    ledger.close()
    opened = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert opened == "opened\n"


def test_another_program_in_the_file_is_not_taken_for_damage(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for attempt in (Ledger.open, replace_by_none):
            with pytest.raises(LedgerError, match="another program") as refused:
                attempt(path, MACHINE)
            assert not isinstance(refused.value, LedgerDamagedError)
    Ledger.open(path, MACHINE).close()


def test_a_closed_ledger_leases_nothing_and_closes_again(ledger: Ledger) -> None:
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        ledger.lease(key(1), 1, ESN)


# Damage


def make_garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_other_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("CREATE TABLE notes (text)")
    path.chmod(0o600)


def make_rollback_journal(path: Path) -> None:
    with closing(sqlite3.connect(path)) as raw:
        raw.execute("PRAGMA journal_mode = DELETE")


@pytest.mark.parametrize(
    "spoil", [make_garbage, make_empty, make_directory, make_other_database, make_rollback_journal]
)
def test_what_is_no_ledger_is_damage_is_left_alone_and_can_be_replaced(
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
        "PRAGMA user_version = 2",
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
    assert refused.value.__traceback__ is not None  # alive till here, and yet it keeps no file open


def test_a_row_as_it_was_before_is_damage_not_a_lower_number(ledger: Ledger, path: Path) -> None:
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
    with pytest.raises(LedgerDamagedError, match="not those that were written last"):
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


# Replacing


def test_replacing_a_foreign_ledger_retires_every_key_for_both_directions(
    ledger: Ledger, path: Path
) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.replay_floor(key(2))
    ledger.close()
    assert Ledger.replace(path, "b" * 64, ()) == 2
    assert Ledger.replace(path, "c" * 64, ()) == 2
    assert {"ledger.db.old-1", "ledger.db.old-2"} < {file.name for file in path.parent.iterdir()}
    with closing(Ledger.open(path, "c" * 64)) as again:
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


def test_replacing_a_damaged_ledger_retires_what_can_be_read(ledger: Ledger, path: Path) -> None:
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
def test_the_keys_of_an_unreadable_ledger_are_refused_where_somebody_else_knows_them(
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


def test_a_key_that_old_ledger_and_configuration_know_keeps_its_numbers(
    ledger: Ledger, path: Path
) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.close()
    assert Ledger.replace(path, "b" * 64, [key(1), key(2)]) == 2
    with closing(Ledger.open(path, "b" * 64)) as again:
        assert sorted(entry.seq for entry in again.entries()) == [0, 10]


def test_replacing_keeps_files_that_sqlite_did_not_take(path: Path) -> None:
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


def test_a_changed_row_is_retired_too_when_its_fingerprint_is_whole(
    ledger: Ledger, path: Path
) -> None:
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


# A disk that refuses


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


def test_a_read_only_disk_is_an_error_that_says_so(ledger: Ledger) -> None:
    ledger._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(LedgerError, match="must be writable"):
        ledger.lease(key(1), 10, ESN)
    ledger._connection.execute("PRAGMA query_only = OFF")
    assert ledger.lease(key(1), 10, ESN) == Lease(1, 11)


def test_an_error_within_a_transaction_leaves_none_open(ledger: Ledger) -> None:
    ledger.lease(key(1), 10, ESN)
    deny = {sqlite3.SQLITE_INSERT: sqlite3.SQLITE_DENY}
    ledger._connection.set_authorizer(lambda action, *_: deny.get(action, sqlite3.SQLITE_OK))
    with pytest.raises(LedgerError, match="not authorized"):
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


# The machine


def test_the_machine_is_its_id_and_its_board(tmp_path: Path) -> None:
    machine_id, serial = tmp_path / "machine-id", tmp_path / "serial-number"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    without = machine_identity(machine_id, serial)
    serial.write_bytes(b"10000000abcdef01\0")
    board = machine_identity(machine_id, serial)
    serial.write_bytes(b"10000000abcdef02\0")
    clone = machine_identity(machine_id, serial)
    assert len({without, board, clone}) == 3
    assert machine_identity(machine_id, serial) == clone
    assert all(len(bytes.fromhex(name)) == 32 for name in (without, board, clone))
    assert "0123456789abcdef" not in without + board
    machine_id.write_text("1123456789abcdef0123456789abcdef\n")
    assert machine_identity(machine_id, serial) != clone


@pytest.mark.parametrize("text", ["", "\n", "uninitialized\n", "0" * 32, "0123", None])
def test_a_machine_without_an_id_is_told_how_to_get_one(tmp_path: Path, text: str | None) -> None:
    machine_id = tmp_path / "machine-id"
    if text is not None:
        machine_id.write_text(text)
    with pytest.raises(LedgerError, match="systemd-machine-id-setup"):
        machine_identity(machine_id, tmp_path / "none")


def test_an_unreadable_identity_is_an_error_not_another_machine(tmp_path: Path) -> None:
    machine_id, serial = tmp_path / "machine-id", tmp_path / "serial-number"
    machine_id.write_text("0123456789abcdef0123456789abcdef\n")
    serial.mkdir()
    with pytest.raises(LedgerError, match="serial number"):
        machine_identity(machine_id, serial)
    with pytest.raises(LedgerError, match="can't read the machine id"):
        machine_identity(serial, machine_id)
