"""A look at a ledger while another process uses it: whole, also during writes, and harmless."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.ledger import look as look_module
from esp_gw.ledger.ledger import Ledger
from tests.support.ledgers import ESN, MACHINE, key, reopened

LOOK = """
import sys
from pathlib import Path
from esp_gw.errors import LedgerError
from esp_gw.ledger.look import look
for _ in range(int(sys.argv[2])):
    try:
        print(*(f"{entry.role} {entry.seq}" for entry in look(Path(sys.argv[1]))), sep=", ")
    except LedgerError as error:
        print(f"{type(error).__name__}: {error.what}")
"""


def looks(path: Path, count: int = 1) -> list[str]:
    """Look in a process of its own, as the command does."""
    command = [sys.executable, "-c", LOOK, str(path), str(count)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_command_shows_a_ledger_in_use(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 100, ESN)
    ledger.replay_floor(key(2))
    command = [sys.executable, "-m", "esp_gw.cli.main", "ledger", "show", "--json"]
    command += ["--state-dir", str(path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {entry["role"]: entry["seq"] for entry in json.loads(done.stdout)["keys"]}
    assert found == {"outbound": 101, "inbound": 0}


def test_a_look_leaves_the_ledger_to_its_process(ledger: Ledger, path: Path) -> None:
    before = {file.name for file in path.parent.iterdir()}
    assert looks(path) == [""]
    assert {file.name for file in path.parent.iterdir()} == before
    first = ledger.lease(key(1), 100, ESN).end
    assert looks(path) == ["outbound 101"]
    again = reopened(ledger, path)
    assert again.lease(key(1), 100, ESN).first == first
    again.close()


def test_looks_during_writes_see_a_whole_ledger(ledger: Ledger, path: Path) -> None:
    for number in range(40):
        ledger.lease(key(number), 1, ESN)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            ledger.lease(key(1), 1, ESN)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = looks(path, 50)
    finally:
        done.set()
        writer.join()
    assert [len(line.split(", ")) for line in found] == [40] * 50
    newest = [max(int(entry.split()[1]) for entry in line.split(", ")) for line in found]
    assert newest == sorted(newest)
    assert newest[0] < newest[-1]


def test_a_copy_that_a_write_has_torn_is_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two writes a copy has the pages of one here, and the seal of the other."""
    with closing(Ledger.open(path, MACHINE)) as ledger:
        ledger.lease(key(1), 100, ESN)
        former = path.read_bytes()
        ledger.lease(key(1), 100, ESN)
    whole = path.read_bytes()
    different = next(
        i for i, (a, b) in enumerate(zip(former, whole, strict=True)) if i > 4096 and a != b
    )
    copies = [whole[:different] + former[different : different + 1] + whole[different + 1 :]] * 3
    copies.append(whole)
    monkeypatch.setattr(look_module, "read_bounded", lambda _fd, _limit: copies.pop(0))
    assert [entry.seq for entry in look_module.look(path)] == [201]
    assert copies == []


def test_a_damaged_ledger_is_not_shown(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 100, ESN)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"outbound")
    content[place : place + 8] = b"inbound "
    (path.parent / "copy.db").write_bytes(content)
    (path.parent / "copy.db").chmod(0o600)
    assert looks(path.parent / "copy.db") == [
        "LedgerDamagedError: the ledger is damaged: the row of a key was altered"
    ]
    (path.parent / "copy.db").write_bytes(b"short")
    assert looks(path.parent / "copy.db")[0].startswith("LedgerDamagedError: ")
    (path.parent / "copy.db").chmod(0o644)
    assert "others may read" in looks(path.parent / "copy.db")[0]
    assert looks(path) == ["outbound 101"]
