"""A look at a ledger that another process uses, without its locks.

SQLite lets nobody else in while a gateway has the file. Every write ends with all of it in the main
file, so a copy of that is whole, but for a write that runs: its seal is wrong then.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from esp_gw.errors import LedgerDamagedError
from esp_gw.files import open_regular, read_bounded
from esp_gw.ledger import file as ledger_file
from esp_gw.ledger.ledger import LedgerEntry, entries_of

MAX_LEN = 64 << 20
"""Largest file looked at, in bytes."""
_ATTEMPTS = 20
_PAUSE = 0.05
_JOURNAL_MODE = slice(18, 20)
"""Bytes of the header, 2 for a write-ahead log (https://www.sqlite.org/fileformat.html, 1.3.3)."""


def look(path: Path) -> list[LedgerEntry]:
    """Return every key of a ledger in use, the oldest first.

    Not for the process that uses it: that one would lose its locks (fcntl(2)). Raises LedgerError.
    """
    with ledger_file.errors(path):
        for _ in range(_ATTEMPTS - 1):
            try:
                return _entries(path)
            except LedgerDamagedError:
                time.sleep(_PAUSE)
        return _entries(path)


def _entries(path: Path) -> list[LedgerEntry]:
    ledger_file.check_file(path)
    with open_regular(path) as (fd, _):
        content = bytearray(read_bounded(fd, MAX_LEN))
    content[_JOURNAL_MODE] = b"\1\1"
    with closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.deserialize(bytes(content))
            return entries_of(ledger_file.verify(path, connection))
        except sqlite3.DatabaseError as error:
            raise ledger_file.damaged(path, str(error)) from error
