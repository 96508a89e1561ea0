"""Keys, and ways to reopen or damage a ledger, for the tests of the ledger."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from esp_gw.ledger.ledger import Ledger
from esp_gw.model import KeyMaterial

MACHINE = "a" * 64
ESN = 2**64 - 1
NO_ESN = 2**32 - 1


def key(number: int) -> KeyMaterial:
    return KeyMaterial(bytes([0xFF - number]) * 32, bytes([0x80 + number]) * 4)


def reopened(ledger: Ledger, path: Path) -> Ledger:
    ledger.close()
    return Ledger.open(path, MACHINE)


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
