"""Creating and opening a ledger: permissions, locks, and the errors of a refusal."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.errors import (
    FAILED,
    WRONG_STATE,
    LedgerDamagedError,
    LedgerError,
    LedgerForeignError,
    LedgerMissingError,
)
from esp_gw.ledger import file as ledger_file
from esp_gw.ledger.identity import MachineIdentity
from esp_gw.ledger.ledger import Ledger
from tests.support.ledgers import ESN, MACHINE, key, machine


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Ledger.create(tmp_path / "ledger.db", MACHINE)
        with closing(Ledger.open(tmp_path / "ledger.db", MACHINE)) as ledger:
            ledger.lease(key(1), 1, ESN)
            modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {0o600}


def test_create_keeps_an_existing_ledger(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"exists already; .*--replace"):
        Ledger.create(path, MACHINE)
    assert path.read_bytes() == before


def replace_by_none(path: Path, there: MachineIdentity) -> int:
    return Ledger.replace(path, there, ())


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
    with pytest.raises(LedgerForeignError, match=r"another machine \(.*\); .*--replace.*keygen"):
        Ledger.open(path, machine("b"))


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


@pytest.mark.parametrize("attempt", [Ledger.open, Ledger.create, replace_by_none])
def test_a_ledger_that_is_a_link_is_not_followed(
    path: Path, tmp_path: Path, attempt: Callable[[Path, MachineIdentity], object]
) -> None:
    (tmp_path / "mine").mkdir()
    link = tmp_path / "mine" / "ledger.db"
    link.symlink_to(path)
    before = path.read_bytes(), path.stat()
    with pytest.raises(LedgerError):
        attempt(link, MACHINE)
    assert link.readlink() == path
    assert (path.read_bytes(), path.stat()) == before
    for opens in (ledger_file.connect, ledger_file.salvage):
        with pytest.raises(LedgerError, match=r"symbolic link; put the file itself there"):
            opens(link)


def test_root_gives_no_file_away_that_has_a_second_hard_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory belongs to a user who hard-linked a file of root to the name of the lock."""
    secret, given = tmp_path / "secret", []
    secret.write_text("of root")
    secret.chmod(0o600)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "ledger.db.lock").hardlink_to(secret)
    owner = os.stat_result((*folder.stat()[:4], 4242, 4242, *folder.stat()[6:]))
    real = Path.stat
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda *owned: given.append(owned))
    monkeypatch.setattr(
        Path, "stat", lambda self, **how: owner if self == folder else real(self, **how)
    )
    with pytest.raises(LedgerError, match="second hard link; remove this one"):
        Ledger.create(folder / "ledger.db", MACHINE)
    assert given == []
    (folder / "ledger.db.lock").unlink()
    Ledger.create(folder / "ledger.db", MACHINE)
    assert [owned[1:] for owned in given] == [(4242, 4242)] * 2


def test_another_process_is_refused_until_the_ledger_is_closed(ledger: Ledger, path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from esp_gw.ledger.ledger import Ledger\n"
        "from esp_gw.ledger.identity import MachineIdentity\n"
        "try: Ledger.open(Path(sys.argv[1]), MachineIdentity(sys.argv[2]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "else: print('opened')"
    )
    command = [sys.executable, "-c", script, str(path), MACHINE.machine_id]
    refused = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert refused.startswith("LedgerBusyError") and "another esp-gw uses this ledger" in refused
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


def test_a_refusal_that_only_a_person_ends_is_told_from_one_that_passes(
    ledger: Ledger, path: Path, tmp_path: Path
) -> None:
    def status(attempt: Callable[[], object]) -> int:
        with pytest.raises(LedgerError) as refused:
            attempt()
        return refused.value.exit_status

    # A late mount, another gateway that is about to end.
    assert status(lambda: Ledger.open(tmp_path / "none", MACHINE)) == FAILED
    assert status(lambda: Ledger.open(path, MACHINE)) == FAILED
    ledger.lease(key(1), 1, ESN)
    assert status(lambda: ledger.replay_floor(key(1))) == WRONG_STATE
    assert status(lambda: ledger.lease(key(1), 1, 1)) == WRONG_STATE
    ledger.close()
    assert status(lambda: Ledger.open(path, machine("b"))) == WRONG_STATE
    path.chmod(0o640)
    assert status(lambda: Ledger.open(path, MACHINE)) == WRONG_STATE
    path.chmod(0o600)
    path.write_bytes(b"garbage")
    assert status(lambda: Ledger.open(path, MACHINE)) == WRONG_STATE
