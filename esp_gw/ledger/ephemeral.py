"""Keys that live until a reboot at most: their sequence numbers, and the records that hold them.

The file stands beside the control socket, in memory: the numbers survive a crash of the gateway,
and neither they nor the keys survive one of the machine. A boot id in the file tells one of a
former boot, which is discarded. As in the durable ledger (ledger.py), numbers are in the file as
used before the first of them is used. A key is retired with its record, and is refused from then
on.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_gw.errors import KeyReuseError
from esp_gw.ledger import file as ledger_file
from esp_gw.ledger.file import Role
from esp_gw.ledger.ledger import MIN_MARGIN, FloorRequest, LeaseRequest
from esp_gw.logs import log
from esp_gw.model import KeyMaterial, Lease, Reception

EPHEMERAL_FOLDER = "ike"
"""Name of the folder beside the control socket."""
EPHEMERAL_NAME = "held.db"
MAX_RETIRED = 1 << 14
"""Retired keys in the file beyond which the oldest are forgotten.

They are those of eight rekeys of a thousand pairs.
"""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BUSY_SECONDS = 0.5
_NOT_OURS = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
"""Error codes of a file without our tables, or that is no database."""
_MAX_SEQ = 2**64 - 1
_SCHEMA = """
CREATE TABLE about (boot TEXT NOT NULL, secret BLOB NOT NULL);
CREATE TABLE keys (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, role TEXT NOT NULL,
 highest BLOB NOT NULL, ceiling BLOB NOT NULL);
CREATE TABLE records (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL,
 content TEXT NOT NULL, UNIQUE (kind, name));
"""


@dataclass(frozen=True, slots=True)
class Records:
    """Changes of the records, each named by its kind and its name, in one step with `retired` keys.

    The content may hold a key.
    """

    put: Mapping[tuple[str, str], str]
    removed: Sequence[tuple[str, str]] = ()
    retired: Sequence[KeyMaterial] = ()


@dataclass(frozen=True, slots=True)
class _Row:
    role: Role
    highest: int = 0
    ceiling: int = 0


class EphemeralLedger:
    """The open file, exclusive to this process; the methods are those of Ledger, and `records`.

    Every one that changes something returns once the change is in the file, all of it or nothing.
    Raises LedgerError.
    """

    def __init__(self, path: Path, lock: int, connection: sqlite3.Connection) -> None:
        self._path = path
        self._lock = lock
        self._connection = connection
        self._mutex = threading.Lock()
        ((self._secret,),) = connection.execute("SELECT secret FROM about").fetchall()
        self._rows: dict[bytes, _Row] = {}
        for name, role, *numbers in connection.execute(
            "SELECT name, role, highest, ceiling FROM keys"
        ):
            highest, ceiling = (int.from_bytes(number, "big") for number in numbers)
            self._rows[name] = _Row(Role(role), highest, ceiling)
        self._retired = sum(row.role is Role.RETIRED for row in self._rows.values())
        # For each key, the first number leased by this process and not released since.
        self._first: dict[bytes, int] = {}

    @classmethod
    def open(cls, path: Path) -> EphemeralLedger:
        """Open the file, or make it, in a folder of mode 0700. Raises LedgerError."""
        with ledger_file.errors(path), contextlib.ExitStack() as undo:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.parent.chmod(0o700)
            lock = ledger_file.acquire_lock(path)
            undo.callback(os.close, lock)
            if not _is_of_this_boot(path):
                _discard(path)
            connection = _created(path)
            undo.callback(connection.close)
            ledger = cls(path, lock, connection)
            undo.pop_all()
            return ledger

    def close(self) -> None:
        """Close the file and release its lock; nothing is lost without a close."""
        with self._mutex:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            os.close(self._lock)

    def begin(
        self, outbound: Sequence[LeaseRequest], inbound: Sequence[FloorRequest]
    ) -> tuple[list[Lease], list[Reception]]:
        """Lease numbers for all outbound keys and return those of all inbound ones, as Ledger does.

        Raises KeyReuseError, LedgerError; no number is used then.
        """
        with self._mutex:
            changes: dict[bytes, _Row] = {}
            firsts: dict[bytes, int] = {}
            leases = []
            for wanted in outbound:
                name, row = self._find(wanted.keymat, Role.OUTBOUND, wanted.sa, changes)
                first = max(row.highest, wanted.used) + 1
                end = min(first + wanted.count, wanted.last + 1)
                if first >= end:
                    raise KeyReuseError(
                        "the sequence numbers of this key are used up", where=_where(wanted.sa)
                    )
                changes[name] = _Row(Role.OUTBOUND, end - 1)
                firsts.setdefault(name, first)
                leases.append(Lease(first, end))
            numbers = []
            for asked in inbound:
                name, row = self._find(asked.keymat, Role.INBOUND, asked.sa, changes)
                floor = max(row.highest, asked.used)
                fence = max(row.ceiling, floor)
                ceiling = min(max(fence, floor + MIN_MARGIN), _MAX_SEQ)
                changes[name] = _Row(Role.INBOUND, floor, ceiling)
                numbers.append(Reception(floor, fence, ceiling))
            self._write(changes)
            self._first = firsts | self._first
            return leases, numbers

    def end(
        self,
        leases: Sequence[tuple[KeyMaterial, Lease, int]],
        floors: Sequence[tuple[KeyMaterial, int]],
        ceilings: Sequence[tuple[KeyMaterial, int]] = (),
    ) -> None:
        """Release the unused rest of leases, and store floors and ceilings, as Ledger does.

        A retired key has neither. Raises LedgerError.
        """
        with self._mutex:
            changes: dict[bytes, _Row] = {}
            released = set()
            for keymat, lease, next_seq in leases:
                name = self._name(keymat)
                row = self._rows.get(name)
                known = self._first.get(name, _MAX_SEQ + 1)
                if row is None or not known <= lease.first <= next_seq <= lease.end:
                    continue
                if row.role is Role.OUTBOUND and row.highest + 1 == lease.end:
                    released.add(name)
                    changes[name] = _Row(Role.OUTBOUND, next_seq - 1)
            for keymat, highest in floors:
                if (row := self._inbound(keymat, changes)) is not None:
                    floor = max(highest, row.highest)
                    name = self._name(keymat)
                    changes[name] = _Row(Role.INBOUND, floor, max(floor, row.ceiling))
            for keymat, ceiling in ceilings:
                if (row := self._inbound(keymat, changes)) is not None:
                    above = min(max(ceiling, row.highest), _MAX_SEQ)
                    changes[self._name(keymat)] = _Row(Role.INBOUND, row.highest, above)
            self._write(changes)
            for name in released:
                del self._first[name]

    def is_used_up(self, keymat: KeyMaterial, last: int, used: int = 0) -> bool:
        """Return True for an outbound key without a number left up to `last`."""
        with self._mutex:
            row = self._rows.get(self._name(keymat))
        return row is not None and row.role is Role.OUTBOUND and max(row.highest, used) >= last

    def knows(self, keymat: KeyMaterial) -> bool:
        """Return True for a key that has numbers here, or had some and is retired."""
        with self._mutex:
            return self._name(keymat) in self._rows

    def records(self, kind: str) -> list[tuple[str, str]]:
        """Return name and content of the records of a kind, in the order of their first writing."""
        with self._mutex, ledger_file.errors(self._path):
            return self._connection.execute(
                "SELECT name, content FROM records WHERE kind = ? ORDER BY number", (kind,)
            ).fetchall()

    def write(self, records: Records) -> None:
        """Change records and retire keys, all or nothing. Raises LedgerError."""
        with self._mutex:
            retired = {self._name(keymat): _Row(Role.RETIRED) for keymat in records.retired}
            self._write(retired, records)
            for name in retired:
                self._first.pop(name, None)

    def _inbound(self, keymat: KeyMaterial, changes: Mapping[bytes, _Row]) -> _Row | None:
        name = self._name(keymat)
        row = changes.get(name) or self._rows.get(name)
        return None if row is None or row.role is not Role.INBOUND else row

    def _find(
        self, keymat: KeyMaterial, role: Role, sa: str | None, changes: Mapping[bytes, _Row]
    ) -> tuple[bytes, _Row]:
        name = self._name(keymat)
        row = changes.get(name) or self._rows.get(name) or _Row(role)
        if row.role is not role:
            was = "removed before" if row.role is Role.RETIRED else f"used for {row.role} traffic"
            raise KeyReuseError(f"this key and salt was {was}", where=_where(sa), hint="rekey")
        return name, row

    def _name(self, keymat: KeyMaterial) -> bytes:
        return hmac.digest(self._secret, keymat.to_bytes(), hashlib.sha256)

    def _write(self, rows: Mapping[bytes, _Row], records: Records | None = None) -> None:
        """Write rows and records; those in memory change only after the write is certain."""
        changed = {name: row for name, row in rows.items() if self._rows.get(name) != row}
        if not changed and records is None:
            return
        retired = [name for name, row in changed.items() if row.role is Role.RETIRED]
        there = self._retired + len(retired)
        connection = self._connection
        with ledger_file.errors(self._path):
            try:
                connection.execute("BEGIN IMMEDIATE")
                # Behind all others: the oldest are those that were retired first.
                connection.executemany(
                    "DELETE FROM keys WHERE name = ?", [(name,) for name in retired]
                )
                connection.executemany(
                    "INSERT INTO keys (name, role, highest, ceiling) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (name) DO UPDATE SET role = excluded.role,"
                    " highest = excluded.highest, ceiling = excluded.ceiling",
                    [
                        (name, row.role.value, _blob(row.highest), _blob(row.ceiling))
                        for name, row in changed.items()
                    ],
                )
                forgotten = self._put(records, there) if records is not None else []
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.rollback()
                raise
        self._rows |= changed
        for name in forgotten:
            self._rows.pop(name, None)
        self._retired = there - len(forgotten)

    def _put(self, records: Records, retired: int) -> list[bytes]:
        """Change the records, and return the keys that are forgotten.

        Those are the oldest of so many `retired` ones beyond the bound.
        """
        connection = self._connection
        connection.executemany("DELETE FROM records WHERE kind = ? AND name = ?", records.removed)
        connection.executemany(
            "INSERT INTO records (kind, name, content) VALUES (?, ?, ?) ON CONFLICT (kind, name)"
            " DO UPDATE SET content = excluded.content",
            [(*key, content) for key, content in records.put.items()],
        )
        if retired <= MAX_RETIRED:
            return []
        oldest = connection.execute(
            "SELECT name FROM keys WHERE role = ? ORDER BY number LIMIT ?",
            (Role.RETIRED.value, retired - MAX_RETIRED),
        ).fetchall()
        connection.executemany("DELETE FROM keys WHERE name = ?", oldest)
        return [name for (name,) in oldest]


def read_records(path: Path, kind: str) -> list[str]:
    """Return the contents of the records of a kind, whether a gateway has the file open or not.

    There are none without a file of this boot. Raises LedgerError.
    """
    with ledger_file.errors(path):
        if not _is_of_this_boot(path):
            return []
        with contextlib.closing(_connect(path)) as connection:
            rows: Iterable[tuple[str]] = connection.execute(
                "SELECT content FROM records WHERE kind = ? ORDER BY number", (kind,)
            ).fetchall()
        return [content for (content,) in rows]


def is_usable(path: Path) -> bool:
    """Return True for a whole file of this boot. Raises LedgerError if that can't be known."""
    with ledger_file.errors(path):
        return _is_of_this_boot(path)


def _connect(path: Path) -> sqlite3.Connection:
    """Open an existing file. Raises sqlite3.Error."""
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        for pragma in (
            # Truncated, not kept: a journal has the pages as they were, keys among them.
            "journal_mode = TRUNCATE",
            "synchronous = FULL",
            # Removed rows are overwritten.
            "secure_delete = ON",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _created(path: Path) -> sqlite3.Connection:
    """Open the file, and make it with its tables if it is new. Raises OSError, sqlite3.Error."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    connection = _connect(path)
    try:
        if not connection.execute("SELECT name FROM sqlite_master").fetchall():
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA}")
            connection.execute(
                "INSERT INTO about VALUES (?, ?)", (_boot_id(), secrets.token_bytes(32))
            )
            connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


def _is_of_this_boot(path: Path) -> bool:
    """Return False for a file of a former boot, and for one that is no whole file of ours.

    Raises OSError, sqlite3.Error if that can't be known.
    """
    if not path.exists() or path.stat().st_size == 0:
        return False
    try:
        with contextlib.closing(_connect(path)) as connection:
            if connection.execute("SELECT boot FROM about").fetchall() != [(_boot_id(),)]:
                return False
            is_whole = connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
    except sqlite3.DatabaseError as error:
        # The lowest byte is the code, the others tell more of it.
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _NOT_OURS:
            raise
        is_whole = False
    if not is_whole:
        log.error("the file of IKE's keys and policies is damaged, and not used", file=str(path))
    return is_whole


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()


def _discard(path: Path) -> None:
    for suffix in ("", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _blob(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _where(sa: str | None) -> str | None:
    return None if sa is None else f"SA {sa}"
