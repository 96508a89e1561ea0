"""The file of the ledger: SQLite in WAL mode, fully authenticated, created and replaced atomically.

Every row has a MAC, and one row, the seal, has a MAC over all of them: a flipped bit, a missing row
or a page older than its neighbours is damage, not a fresh key. The one change that goes undetected
is a whole file restored from a backup of the same machine.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import hashlib
import hmac
import os
import secrets
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esp_gw import files
from esp_gw.errors import LedgerBusyError, LedgerDamagedError, LedgerError, LedgerMissingError
from esp_gw.ledger.identity import RECORD_FORMS
from esp_gw.model import KeyMaterial

SECRET_LEN = 32

_SCHEMA_VERSION = 3
_WITHOUT_CEILINGS = 2
"""The schema before: all of its rows are good ones of the present schema."""
_SCHEMA = {
    "settings": "CREATE TABLE settings (machine TEXT NOT NULL, secret BLOB NOT NULL)",
    "keys": (
        "CREATE TABLE keys (fingerprint BLOB NOT NULL PRIMARY KEY, role TEXT NOT NULL,"
        " highest BLOB NOT NULL, first_use INTEGER NOT NULL, mac BLOB NOT NULL) WITHOUT ROWID"
    ),
}
_SELECT_SETTINGS = "SELECT machine, secret FROM settings"
_SELECT_KEYS = "SELECT fingerprint, role, highest, first_use, mac FROM keys ORDER BY fingerprint"
_REPLACE_KEY = "REPLACE INTO keys VALUES (?, ?, ?, ?, ?)"
# The seal is a row of `keys`: in a small ledger it shares the one page that a lease writes, so a
# crash can't leave one without the other.
_SEAL = b""
_FINGERPRINT_LEN = 32
_LATEST = 253402300799  # the last second of the year 9999
_COMPANIONS = ("-wal", "-shm", "-journal")
_BUSY_SECONDS = 0.5

NEW_KEYS = "make new keys with 'esp-gw keygen' on both ends"
REPLACE = f"run 'esp-gw ledger create --replace', then {NEW_KEYS}"
_AS_OWNER = "run this as root or as the user that owns the directory"
_BUSY = "another program has the ledger open: stop it, then try again"
_DISK_HINTS = {
    sqlite3.SQLITE_BUSY: _BUSY,
    sqlite3.SQLITE_LOCKED: _BUSY,
    sqlite3.SQLITE_FULL: "free some space on its file system",
    sqlite3.SQLITE_IOERR: "check the kernel log for disk errors, and the free space of the disk",
    sqlite3.SQLITE_READONLY: "its file system must be writable",
    sqlite3.SQLITE_CANTOPEN: _AS_OWNER,
    sqlite3.SQLITE_PERM: _AS_OWNER,
}
_OS_HINTS = {
    errno.EACCES: _AS_OWNER,
    errno.EPERM: _AS_OWNER,
    errno.ENOENT: "make the directory first",
    errno.ELOOP: "its .lock file is a symbolic link that esp-gw did not make: remove it",
    errno.EROFS: "its file system must be writable",
    errno.ENOSPC: "free some space on its file system",
}


class Role(enum.StrEnum):
    """Use of a key; a retired key was known to a ledger that has been replaced."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Row:
    """Record of a key: role, highest number used or seen, first use in seconds since 1970.

    No number above `ceiling` was received under an inbound key, beside those up to `highest`.
    """

    role: Role
    highest: int
    first_use: int
    ceiling: int = 0

    def numbers(self) -> bytes:
        """The numbers as the file has them: 8 bytes, or 16 with a ceiling ahead of the highest."""
        ahead = _blob(self.ceiling) if self.ceiling > self.highest else b""
        return _blob(self.highest) + ahead


@dataclass(frozen=True, slots=True)
class Contents:
    """The complete contents of a ledger; `rows` is keyed by fingerprint, 32 bytes.

    `machine` is the record of the machine's identity.
    """

    machine: str
    secret: bytes = field(repr=False)
    rows: Mapping[bytes, Row]
    _row_key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Derived once: a seal covers thousands of rows.
        object.__setattr__(self, "_row_key", self._key(b"row"))

    def fingerprint(self, keymat: KeyMaterial) -> bytes:
        """The identifier of a key in the ledger: HMAC-SHA256 of key and salt, 32 bytes."""
        return hmac.digest(self.secret, keymat.to_bytes(), hashlib.sha256)

    def row_mac(self, name: bytes, row: Row) -> bytes:
        """The MAC of one row, 32 bytes."""
        numbers = row.numbers() + _blob(row.first_use)
        return hmac.digest(self._row_key, name + numbers + row.role.encode(), hashlib.sha256)

    def seal(self) -> bytes:
        """The MAC of all rows and the machine, 32 bytes."""
        macs = b"".join(self.row_mac(name, self.rows[name]) for name in sorted(self.rows))
        message = hashlib.sha256(self.machine.encode()).digest() + macs
        return hmac.digest(self._key(b"seal"), message, hashlib.sha256)

    def _key(self, label: bytes) -> bytes:
        return hmac.digest(self.secret, b"esp-gw ledger " + label, hashlib.sha256)


def missing(path: Path) -> LedgerMissingError:
    """The error for a ledger that does not exist."""
    return LedgerMissingError(
        "there is no ledger",
        where=str(path),
        hint=(
            "if no key of this configuration was ever used, run 'esp-gw ledger create';"
            " otherwise make new keys with 'esp-gw keygen' on both ends first"
        ),
    )


def damaged(path: Path, what: str) -> LedgerDamagedError:
    """The error for a ledger that can't be trusted."""
    return LedgerDamagedError(f"the ledger is damaged: {what}", where=str(path), hint=REPLACE)


def _primary_code(error: sqlite3.Error) -> int:
    # The low byte: https://www.sqlite.org/rescode.html. Errors of the module itself have no code.
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _open_as_sqlite(path: Path) -> None:
    """Raise LedgerError if the system has a reason not to open the file: SQLite gives none."""
    with errors(path):
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
    """Convert errors of the system and of SQLite to ledger errors, with a hint at the remedy.

    Raises LedgerError if the disk can't be read or written now, otherwise LedgerDamagedError.
    """
    try:
        yield
    except sqlite3.Error as error:
        if _primary_code(error) == sqlite3.SQLITE_CANTOPEN:
            _open_as_sqlite(path)
        hint = _DISK_HINTS.get(_primary_code(error))
        if hint is None:
            raise damaged(path, str(error)) from error
        raise LedgerError(str(error), where=str(path), hint=hint) from error
    except UnicodeDecodeError as error:  # SQLite's message quotes the content of the file
        raise damaged(path, "its tables can't be read") from error
    except OSError as error:
        hint = _OS_HINTS.get(error.errno or 0)
        what = error.strerror or "I/O error"
        raise LedgerError(what, where=str(path), hint=hint) from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _refuse_link(path: Path) -> None:
    """Raise an error for a link: in another user's directory it may lead root anywhere."""
    if path.is_symlink():
        raise LedgerDamagedError(
            "the ledger is a symbolic link", where=str(path), hint="put the file itself there"
        )


def check_file(path: Path) -> None:
    """Check the type and the mode of the file before SQLite opens it.

    Raises LedgerMissingError, and LedgerDamagedError, also for a link or a file that others may
    read.
    """
    _refuse_link(path)
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path) from None
    if not stat.S_ISREG(status.st_mode):
        raise damaged(path, "not a file")
    if status.st_mode & 0o077:
        raise LedgerDamagedError(
            "others may read or write the ledger", where=str(path), hint=f"run 'chmod 600 {path}'"
        )
    if status.st_size == 0:
        raise damaged(path, "the file is empty")


def acquire_lock(path: Path) -> int:
    """Lock the ledger against other processes until the returned descriptor is closed.

    Raises LedgerBusyError if another process holds the lock, LedgerError, OSError.
    """
    # Not on the ledger file itself: closing a second descriptor of it would drop SQLite's locks.
    # Not through a link: root would give the target away to the daemon's user.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    lock = os.open(_beside(path, ".lock"), flags, 0o600)
    try:
        _give_to_owner_of_directory(lock, path)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise LedgerBusyError(
            "another esp-gw uses this ledger", where=str(path), hint="stop it first"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock for the duration of a with statement. Raises as acquire_lock does."""
    lock = acquire_lock(path)
    try:
        yield
    finally:
        os.close(lock)


def _give_to_owner_of_directory(descriptor: int, path: Path) -> None:
    """Give a file created by root to the daemon's user, who owns the state directory.

    Raises LedgerError for a file with a second hard link, which may be another user's file.
    """
    try:
        files.give_to_owner_of_folder(descriptor, path)
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise
        raise LedgerError(
            "a file of the ledger has a second hard link",
            where=str(_beside(path, ".lock")),
            hint="remove this one: esp-gw creates a new one",
        ) from None


def connect(path: Path) -> sqlite3.Connection:
    """Open an existing file. Raises sqlite3.Error, and LedgerError for a link."""
    _refuse_link(path)
    connection = sqlite3.connect(
        path.absolute().as_uri() + "?mode=rw",
        uri=True,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        # Exclusive before the first access: SQLite then needs no shared memory file.
        for pragma in (
            "locking_mode = EXCLUSIVE",
            "synchronous = FULL",
            "trusted_schema = OFF",
            "cell_size_check = ON",
            # KiB: rows are read once, at the start; each later write is a page or two.
            "cache_size = -256",
        ):
            connection.execute(f"PRAGMA {pragma}").close()
    except BaseException:
        connection.close()
        raise
    return connection


def _all(connection: sqlite3.Connection, statement: str) -> list[tuple[Any, ...]]:
    # An open cursor would keep the file and its locks open after the connection is closed.
    with contextlib.closing(connection.cursor()) as cursor:
        return cursor.execute(statement).fetchall()


def store(connection: sqlite3.Connection, contents: Contents, changes: Mapping[bytes, Row]) -> None:
    """Write `changes`, and the seal over `contents`, to the main file.

    Raises sqlite3.Error, LedgerError.
    """
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(
        _REPLACE_KEY,
        [
            (name, row.role.value, row.numbers(), row.first_use, contents.row_mac(name, row))
            for name, row in changes.items()
        ],
    )
    _commit(connection, contents)


def store_machine(connection: sqlite3.Connection, contents: Contents) -> None:
    """Write the machine's record, by the present schema, and the seal. Raises as `store`."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    connection.execute("UPDATE settings SET machine = ?", (contents.machine,))
    _commit(connection, contents)


def _commit(connection: sqlite3.Connection, contents: Contents) -> None:
    """Write the seal, and put all into the main file.

    The checkpoint makes the loss of a -wal file harmless: it is empty when a lease is granted.
    """
    if _all(connection, "PRAGMA user_version") == [(_WITHOUT_CEILINGS,)]:
        connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    connection.execute(_REPLACE_KEY, (_SEAL, *_seal_values(contents)))
    connection.execute("COMMIT")
    ((busy, _, _),) = _all(connection, "PRAGMA wal_checkpoint(TRUNCATE)")
    if busy:
        raise LedgerError("the ledger can't be written", hint=_BUSY)


def _blob(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _seal_values(contents: Contents) -> tuple[str, bytes, int, bytes]:
    return "seal", _blob(len(contents.rows)), 0, contents.seal()


def read(path: Path, connection: sqlite3.Connection) -> Contents:
    """Read and verify the whole file. Raises LedgerDamagedError, sqlite3.Error."""
    if _all(connection, "PRAGMA journal_mode") != [("wal",)]:
        raise damaged(path, "not made by esp-gw")
    return verify(path, connection)


def verify(path: Path, connection: sqlite3.Connection) -> Contents:
    """Read and verify a ledger's tables, wherever they are. Raises as `read` does."""
    check = _all(connection, "PRAGMA quick_check")
    if check != [("ok",)]:
        raise damaged(path, str(check[0][0]))
    version = _all(connection, "PRAGMA user_version")[0][0]
    tables = dict(_all(connection, "SELECT name, sql FROM sqlite_master"))
    if version not in RECORD_FORMS or tables != _SCHEMA:
        raise damaged(path, f"schema {version} is not the schema {_SCHEMA_VERSION} of this esp-gw")
    settings = _all(connection, _SELECT_SETTINGS)
    if (
        len(settings) != 1
        or not _is_settings(*settings[0])
        or not RECORD_FORMS[version].fullmatch(settings[0][0])
    ):
        raise damaged(path, "the settings were altered")
    rows: dict[bytes, Row] = {}
    contents = Contents(settings[0][0], settings[0][1], rows)
    seal = None
    for name, *values, mac in _all(connection, _SELECT_KEYS):
        if name == _SEAL:
            seal = (*values, mac)
            continue
        row = _parse(name, *values)
        if row is None or name in rows or contents.row_mac(name, row) != mac:
            raise damaged(path, "the row of a key was altered")
        rows[name] = row
    if seal != _seal_values(contents):
        raise damaged(path, "the rows are not those last written")
    return contents


def _is_settings(machine: object, secret: object) -> bool:
    return isinstance(machine, str) and isinstance(secret, bytes) and len(secret) == SECRET_LEN


def _parse(name: object, role: object, highest: object, first_use: object) -> Row | None:
    """The row of a key from its columns, or None if they can't be one."""
    if not (isinstance(name, bytes) and len(name) == _FINGERPRINT_LEN and role in tuple(Role)):
        return None
    if not (isinstance(highest, bytes) and len(highest) in (8, 16)):
        return None
    if not (isinstance(first_use, int) and 0 <= first_use <= _LATEST):
        return None
    known, ahead = int.from_bytes(highest[:8], "big"), int.from_bytes(highest[8:], "big")
    return Row(Role(str(role)), known, first_use, max(known, ahead))


def salvage(path: Path) -> Contents:
    """Recover the secret and all readable keys of a ledger that can't be opened.

    Raises sqlite3.Error if the cause may be temporary, LedgerError for a link.
    """
    _refuse_link(path)
    nothing = Contents("", secrets.token_bytes(SECRET_LEN), {})
    if not path.is_file():
        return nothing
    rows: dict[bytes, Row] = {}
    genuine = False
    try:
        with contextlib.closing(connect(path)) as connection:
            settings = _all(connection, _SELECT_SETTINGS)
            if not settings or not _is_settings(*settings[0]):
                return nothing
            old = Contents(settings[0][0], settings[0][1], rows)
            for order in ("ASC", "DESC"):  # from both ends, up to an unreadable page
                with (
                    contextlib.suppress(sqlite3.Error),
                    contextlib.closing(connection.cursor()) as found,
                ):
                    for name, *values, mac in found.execute(f"{_SELECT_KEYS} {order}"):
                        row = _parse(name, *values)
                        genuine = genuine or (row is not None and old.row_mac(name, row) == mac)
                        if isinstance(name, bytes) and len(name) == _FINGERPRINT_LEN:
                            rows[name] = row or Row(Role.RETIRED, 0, 0)
    except sqlite3.Error as error:
        # A temporary failure is no reason to forget the keys.
        if _primary_code(error) in _DISK_HINTS:
            raise
        return nothing
    except UnicodeDecodeError:
        return nothing
    # Without one valid MAC the secret itself may be altered, and no key could be recognised.
    return old if genuine else nothing


def build(path: Path, contents: Contents) -> Path:
    """Write a complete new ledger next to `path` and return its path; it is on disk on return.

    Raises OSError, sqlite3.Error.
    """
    fresh = _beside(path, ".new")
    _remove(fresh)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        _give_to_owner_of_directory(descriptor, path)
    finally:
        os.close(descriptor)
    try:
        with contextlib.closing(connect(fresh)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            for statement in _SCHEMA.values():
                connection.execute(statement)
            settings = (contents.machine, contents.secret)
            connection.execute("INSERT INTO settings VALUES (?, ?)", settings)
            store(connection, contents, contents.rows)
    except BaseException:
        _remove(fresh)
        raise
    return fresh


def put_in_place(fresh: Path, path: Path) -> None:
    """Rename a newly built ledger to its final name. Raises OSError."""
    # SQLite would replay a -wal file left by an earlier ledger into the new one.
    _remove(path)
    fresh.rename(path)
    _sync_directory(path)


def move_aside(path: Path) -> None:
    """Rename a ledger and its companion files to NAME.old-N. Raises OSError."""
    number = 1
    while os.path.lexists(aside := _beside(path, f".old-{number}")):
        number += 1
    # The -wal file first: left behind, it would be replayed into the new ledger.
    for suffix in (*_COMPANIONS, ""):
        with contextlib.suppress(FileNotFoundError):
            _beside(path, suffix).rename(_beside(aside, suffix))


def _remove(path: Path) -> None:
    for suffix in (*_COMPANIONS, ""):
        _beside(path, suffix).unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
