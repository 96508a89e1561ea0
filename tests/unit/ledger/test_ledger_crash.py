"""No number twice, wherever the process is killed and whichever of its files are lost."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.errors import LedgerError
from esp_gw.ledger.ledger import FloorRequest, LeaseRequest, Ledger
from esp_gw.model import KeyMaterial, Lease
from tests.support.ledgers import ESN, MACHINE, machine, make_schema_1

KEY = KeyMaterial(b"k" * 32, b"salt")
OTHER = KeyMaterial(b"o" * 32, b"salt")

# Leases in a loop and writes "key number" for every number leased; releases some leases.
CHILD = """
import os, random, sys
from pathlib import Path
from esp_gw.ledger.identity import MachineIdentity
from esp_gw.ledger.ledger import FloorRequest, LeaseRequest, Ledger
from esp_gw.model import KeyMaterial
dice = random.Random(int(sys.argv[2]))
ledger = Ledger.open(Path(sys.argv[1]), MachineIdentity("a" * 64))
print("open", flush=True)
while True:
    name = dice.randrange(3)
    keymat = KeyMaterial(bytes([name]) * 32, b"salt")
    lease = ledger.lease(keymat, dice.randrange(1, 6), 2**64 - 1)
    used = dice.randrange(lease.first, lease.end + 1)
    os.write(1, b"".join(b"%d %d\\n" % (name, number) for number in range(lease.first, used)))
    if dice.random() < 0.3:
        ledger.release(keymat, lease, used)
    if dice.random() < 0.2:
        ledger.store_replay_floors([(KeyMaterial(b"in" * 16, b"salt"), lease.end)])
"""


def files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("", "-wal", "-shm", "-journal")]


def lose_companions(path: Path) -> None:
    for file in files(path)[1:]:
        file.unlink(missing_ok=True)


def test_a_killed_process_never_leads_to_a_number_leased_twice(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    dice = random.Random(1)
    given: set[bytes] = set()
    for life in range(30):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(life)], stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        lines = [child.stdout.readline() for _ in range(dice.randrange(1, 120))]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        assert all(line.endswith(b"\n") for line in lines)
        assert given.isdisjoint(lines) and len(set(lines)) == len(lines)
        given.update(lines)
        if life % 2:
            lose_companions(path)
    assert len(given) > 1000


def crash_points(
    ledger: Ledger, path: Path, action: Callable[[], object], where: Path
) -> list[Path]:
    """Copies of the ledger files as left by a crash before each SQL statement of `action`."""
    copies: list[Path] = []

    def copy(_statement: str) -> None:
        directory = where / f"crash-{len(list(where.glob('crash-*')))}"
        directory.mkdir()
        for file in files(path):
            if file.exists():
                shutil.copy(file, directory / file.name)
        copies.append(directory / path.name)

    ledger._connection.set_trace_callback(copy)
    try:
        action()
    finally:
        ledger._connection.set_trace_callback(None)
    copy("afterwards")
    return copies


@pytest.mark.parametrize("companions", ["kept", "lost"])
def test_a_crash_at_any_statement_of_a_lease_loses_no_lease_given_before(
    tmp_path: Path, companions: str
) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    with closing(Ledger.open(path, MACHINE)) as ledger:
        floor = 0
        for keymat in (KEY, OTHER, KEY):
            copies = crash_points(ledger, path, lambda k=keymat: ledger.lease(k, 10, ESN), tmp_path)
            assert len(copies) >= 5
            for number, copy in enumerate(copies):
                if companions == "lost":
                    lose_companions(copy)
                with closing(Ledger.open(copy, MACHINE)) as crashed:
                    given = floor + 10 if keymat is KEY and number == len(copies) - 1 else floor
                    assert crashed.lease(KEY, 1, ESN).first in {given + 1, floor + 11}
            floor += 10 if keymat is KEY else 0


@pytest.mark.parametrize("companions", ["kept", "lost"])
def test_a_crash_within_a_release_starts_at_its_old_or_its_new_end(
    tmp_path: Path, companions: str
) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    with closing(Ledger.open(path, MACHINE)) as ledger:
        lease = ledger.lease(KEY, 10, ESN)
        copies = crash_points(ledger, path, lambda: ledger.release(KEY, lease, 4), tmp_path)
    firsts = []
    for copy in copies:
        if companions == "lost":
            lose_companions(copy)
        with closing(Ledger.open(copy, MACHINE)) as crashed:
            firsts.append(crashed.lease(KEY, 1, ESN).first)
    assert firsts[0] == 11 and firsts[-1] == 4
    assert set(firsts) == {4, 11}


@pytest.mark.parametrize("companions", ["kept", "lost"])
def test_a_crash_while_the_ledger_is_bound_to_the_machine_leaves_the_old_or_the_new_record(
    tmp_path: Path, companions: str
) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    with closing(Ledger.open(path, MACHINE)) as ledger:
        ledger.lease(KEY, 10, ESN)
    make_schema_1(path, MACHINE.joint)
    with closing(Ledger.open(path, MACHINE)) as ledger:
        copies = crash_points(ledger, path, ledger.bind, tmp_path)
    records = []
    for copy in copies:
        if companions == "lost":
            lose_companions(copy)
        with closing(Ledger.open(copy, MACHINE)) as crashed:
            records.append(crashed._contents.machine)
            crashed.bind()
            assert crashed.lease(KEY, 1, ESN).first == 11
        Ledger.open(copy, MACHINE).close()
    assert records[0] == MACHINE.joint and records[-1] == MACHINE.record()
    assert set(records) == {MACHINE.joint, MACHINE.record()}


def test_a_damaged_wal_never_makes_a_leased_number_available_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    with closing(Ledger.open(path, MACHINE)) as ledger:
        ledger.lease(KEY, 10, ESN)
        copies = crash_points(ledger, path, lambda: ledger.lease(KEY, 10, ESN), tmp_path)
    committed = next(copy for copy in copies if files(copy)[1].stat().st_size)
    whole, wal = committed.read_bytes(), files(committed)[1].read_bytes()
    dice = random.Random(2)
    firsts = set()
    for _ in range(150):
        at = dice.choice((dice.randrange(56), dice.randrange(len(wal))))
        for file in files(committed):
            file.unlink(missing_ok=True)
        committed.write_bytes(whole)
        committed.chmod(0o600)
        files(committed)[1].write_bytes(wal[:at] + bytes([wal[at] ^ 1 << at % 8]) + wal[at + 1 :])
        try:
            crashed = Ledger.open(committed, MACHINE)
        except LedgerError:
            continue
        with closing(crashed):
            firsts.add(crashed.lease(KEY, 1, ESN).first)
    assert firsts <= {11, 21}
    assert 11 in firsts


def test_the_wal_of_a_deleted_ledger_does_not_get_into_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    with closing(Ledger.open(path, MACHINE)) as ledger:
        copies = crash_points(ledger, path, lambda: ledger.lease(KEY, 10, ESN), tmp_path)
    committed = next(copy for copy in copies if files(copy)[1].stat().st_size)
    committed.unlink()
    Ledger.create(committed, machine("b"))
    with closing(Ledger.open(committed, machine("b"))) as fresh:
        assert fresh.entries() == []
        assert fresh.lease(KEY, 10, ESN) == Lease(1, 11)


def test_replacing_takes_the_wal_of_a_crash_along(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    with closing(Ledger.open(path, MACHINE)) as ledger:
        copies = crash_points(ledger, path, lambda: ledger.lease(KEY, 10, ESN), tmp_path)
    committed = next(copy for copy in copies if files(copy)[1].stat().st_size)
    committed.chmod(0o600)
    assert Ledger.replace(committed, machine("b"), ()) == 1
    with (
        closing(Ledger.open(committed, machine("b"))) as fresh,
        pytest.raises(LedgerError, match="before the ledger was replaced"),
    ):
        fresh.lease(KEY, 1, ESN)


def test_a_crash_within_a_batch_gives_all_of_it_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    # More keys than fit into one page of the file.
    keys = [KeyMaterial(bytes([number]) * 32, b"salt") for number in range(1, 61)]
    leases = [LeaseRequest(keymat, 10, ESN, None) for keymat in keys[:30]]
    floors = [FloorRequest(keymat, None) for keymat in keys[30:]]
    with closing(Ledger.open(path, MACHINE)) as ledger:
        copies = crash_points(ledger, path, lambda: ledger.begin(leases, floors), tmp_path)
    seen = set()
    for copy in copies:
        try:
            crashed = Ledger.open(copy, MACHINE)
        except LedgerError:
            continue  # a torn file without its -wal is refused, so no number is used again
        with closing(crashed):
            entries = len(crashed.entries())
            firsts = {lease.first for lease in crashed.begin(leases, [])[0]}
            assert (entries, firsts) in [(0, {1}), (60, {11})]
            seen.add(entries)
    assert seen == {0, 60}
