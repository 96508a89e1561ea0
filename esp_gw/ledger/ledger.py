"""The ledger of sequence numbers: every number is on disk as used before it is used.

The 64-bit sequence number is the IV of an SA (RFC 4106 3.1, RFC 7634 2). An IV used twice with one
key reveals the key stream, and with AES-GCM the authentication key. So numbers are leased: they are
recorded on disk as used before the engine gets them. After a crash the next lease begins where the
last one ended, whether its numbers were used or not.

A key is identified by an HMAC of key and salt, so neither a new name nor a new SPI makes it fresh;
the key itself is never stored.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from esp_gw import files
from esp_gw.errors import KeyReuseError, LedgerError, LedgerForeignError
from esp_gw.ledger import file as ledger_file
from esp_gw.ledger.file import NEW_KEYS, REPLACE, Contents, Role, Row
from esp_gw.ledger.identity import MachineIdentity
from esp_gw.model import KeyMaterial, Lease, Reception

__all__ = [
    "LEASE_ESN",
    "LEASE_NO_ESN",
    "LEDGER_NAME",
    "MIN_MARGIN",
    "FloorRequest",
    "LeaseRequest",
    "Ledger",
    "LedgerEntry",
    "Role",
]

LEDGER_NAME = "ledger.db"
"""Name of the ledger file in the state directory."""

LEASE_ESN = 2**20
"""Numbers in a lease with ESN: 12 s of full packets at 1 Gbit/s.

The next lease is requested when half of this one is left. A crash costs at most two leases, and
2**64 numbers hold 2**43 times that.
"""
LEASE_NO_ESN = 2**16
"""Numbers in a lease without ESN, where a key has 2**32: 7 s of full packets at 100 Mbit/s.

A crash costs at most two leases, a 32768th of the key's life.
"""

MIN_MARGIN = 256
"""Numbers by which a ceiling is ahead of the replay floor, at least."""

_MAX_SEQ = 2**64 - 1


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One key of the ledger; `fingerprint` is 8 hex digits of the key's HMAC, not of the key.

    `seq` is the next number of an outbound key, or the highest known one of an inbound or retired
    key.
    """

    fingerprint: str
    role: Role
    seq: int
    first_use: datetime


def entries_of(contents: Contents) -> list[LedgerEntry]:
    """Every key, the oldest first."""
    rows = sorted(contents.rows.items(), key=lambda item: (item[1].first_use, item))
    return [
        LedgerEntry(
            name.hex()[:8],
            row.role,
            row.highest + (row.role is Role.OUTBOUND),
            datetime.fromtimestamp(row.first_use, UTC),
        )
        for name, row in rows
    ]


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """Request of an outbound SA, see `Ledger.lease`. Numbers up to `used` were used elsewhere."""

    keymat: KeyMaterial
    count: int
    last: int
    sa: str | None
    used: int = 0


@dataclass(frozen=True, slots=True)
class FloorRequest:
    """Request of an inbound SA, see `Ledger.replay_floor`. `used` was accepted elsewhere."""

    keymat: KeyMaterial
    sa: str | None
    used: int = 0


class Ledger:
    """An open ledger, exclusive to this process; its methods may be called from any thread.

    Every method that changes something returns once the change is on disk. This may take long on an
    SD card: call them in a worker thread. All raise LedgerError on a disk error; nothing is leased
    in this case, and the next try may succeed.
    """

    def __init__(
        self,
        path: Path,
        machine: MachineIdentity,
        lock: int,
        connection: sqlite3.Connection,
        contents: Contents,
    ) -> None:
        self._path = path
        self._machine = machine
        self._lock = lock
        self._connection = connection
        self._contents = contents
        self._inode = files.inode(path)
        # For each key, the first number leased by this process and not released since.
        self._first: dict[bytes, int] = {}
        self._mutex = threading.Lock()
        self._closed = False

    @staticmethod
    def create(path: Path, machine: MachineIdentity) -> None:
        """Create an empty ledger of this machine, mode 0600. Raises LedgerError if one exists."""
        with ledger_file.errors(path), ledger_file.locked(path):
            if os.path.lexists(path):
                raise LedgerError(
                    "a ledger exists already",
                    where=str(path),
                    hint="keep it; if it is unusable, see --replace",
                )
            secret = secrets.token_bytes(ledger_file.SECRET_LEN)
            fresh = ledger_file.build(path, Contents(machine.record(), secret, {}))
            ledger_file.put_in_place(fresh, path)

    @staticmethod
    def replace(path: Path, machine: MachineIdentity, retired: Sequence[KeyMaterial]) -> int:
        """Move an unusable ledger to NAME.old-N and create a new one.

        Every key known to the old ledger is retired in the new one, and refused for ever. Some keys
        of a damaged ledger may be unreadable, so `retired` lists every key that may have been used
        with it; these are refused as well. Returns the number of retired keys. Raises LedgerError.
        """
        with ledger_file.errors(path), ledger_file.locked(path):
            if not os.path.lexists(path):
                raise ledger_file.missing(path)
            old = ledger_file.salvage(path)
            unknown = Row(Role.RETIRED, 0, int(time.time()))
            rows = {old.fingerprint(keymat): unknown for keymat in retired}
            rows |= {name: replace(row, role=Role.RETIRED) for name, row in old.rows.items()}
            fresh = ledger_file.build(path, Contents(machine.record(), old.secret, rows))
            ledger_file.move_aside(path)
            ledger_file.put_in_place(fresh, path)
            return len(rows)

    @classmethod
    def open(cls, path: Path, machine: MachineIdentity) -> Ledger:
        """Open the ledger of this machine and verify all of it.

        Raises LedgerMissingError, LedgerDamagedError, LedgerForeignError, and LedgerError if
        another process has the file open, or the machine can't be told. The hint of each names the
        remedy.
        """
        with ledger_file.errors(path), contextlib.ExitStack() as undo:
            ledger_file.check_file(path)
            lock = ledger_file.acquire_lock(path)
            undo.callback(os.close, lock)
            connection = ledger_file.connect(path)
            undo.callback(connection.close)
            contents = ledger_file.read(path, connection)
            mismatch = machine.mismatch(contents.machine)
            if mismatch is not None:
                raise LedgerForeignError(
                    f"this ledger was made on another machine ({mismatch})",
                    where=str(path),
                    hint=REPLACE,
                )
            ledger = cls(path, machine, lock, connection, contents)
            undo.pop_all()
            return ledger

    def bind(self) -> None:
        """Record the components of this machine that the ledger does not hold yet.

        Raises LedgerError, and closes the ledger in this case.
        """
        try:
            with self._mutex:
                contents = replace(self._contents, machine=self._machine.record())
                if contents.machine != self._contents.machine:
                    self._store(contents, ledger_file.store_machine)
        except BaseException:
            # The file may be ahead of memory: the next write would seal the former record.
            self.close()
            raise

    def close(self) -> None:
        """Close the file and release its lock; nothing is lost without a close."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            os.close(self._lock)

    def lease(self, keymat: KeyMaterial, count: int, last: int, *, sa: str | None = None) -> Lease:
        """Reserve the next `count` sequence numbers of a key, fewer if `last` comes first.

        The first number of a fresh key is 1 (RFC 4303 2.2). `sa` names the SA in error messages.
        Raises KeyReuseError if the key was used inbound, is retired, or has no number left up to
        `last`; LedgerError.
        """
        return self.begin([LeaseRequest(keymat, count, last, sa)], [])[0][0]

    def replay_floor(self, keymat: KeyMaterial, *, sa: str | None = None) -> int:
        """Return the highest sequence number stored for an inbound key, 0 for a fresh one.

        Registers a fresh key. Raises KeyReuseError if the key was used outbound or is retired;
        LedgerError.
        """
        return self.begin([], [FloorRequest(keymat, sa)])[1][0].floor

    def begin(
        self, outbound: Sequence[LeaseRequest], inbound: Sequence[FloorRequest]
    ) -> tuple[list[Lease], list[Reception]]:
        """Lease numbers for all outbound keys and return the numbers of all inbound ones, or fail.

        The ceiling of an inbound key is MIN_MARGIN or more ahead of its floor on return.
        One write serves all, so thousands of SAs don't wait for the disk one after the other.
        Raises as `lease` and `replay_floor`; on an error no number is used and no key registered.
        """
        for wanted in outbound:
            if wanted.count < 1 or not 1 <= wanted.last <= _MAX_SEQ:
                raise ValueError("count must be positive and last a sequence number")
        with self._mutex:
            changes: dict[bytes, Row] = {}
            leases = []
            firsts: dict[bytes, int] = {}
            for wanted in outbound:
                name, row = self._find(wanted.keymat, Role.OUTBOUND, wanted.sa, changes)
                first = max(row.highest, wanted.used) + 1
                end = min(first + wanted.count, wanted.last + 1)
                if first >= end:
                    raise KeyReuseError(
                        "the sequence numbers of this key are used up",
                        where=_where(wanted.sa),
                        hint=NEW_KEYS,
                    )
                changes[name] = replace(row, highest=end - 1)
                firsts.setdefault(name, first)
                leases.append(Lease(first, end))
            numbers = []
            for asked in inbound:
                name, row = self._find(asked.keymat, Role.INBOUND, asked.sa, changes)
                floor = max(row.highest, asked.used)
                fence = max(row.ceiling, floor)
                # No further than that: many crashes in a row don't take it away from the peer.
                ceiling = min(max(fence, floor + MIN_MARGIN), _MAX_SEQ)
                begun = replace(row, highest=floor, ceiling=ceiling)
                if begun != row or name not in self._contents.rows:
                    changes[name] = begun
                numbers.append(Reception(floor, fence, ceiling))
            self._write(changes)
            self._first = firsts | self._first
            return leases, numbers

    def is_used_up(self, keymat: KeyMaterial, last: int, used: int = 0) -> bool:
        """Return True for an outbound key without a number left up to `last`; nothing is leased.

        Numbers up to `used` were used elsewhere.
        """
        with self._mutex:
            row = self._contents.rows.get(self._contents.fingerprint(keymat))
        return row is not None and row.role is Role.OUTBOUND and max(row.highest, used) >= last

    def knows(self, keymat: KeyMaterial) -> bool:
        """Return True for a key that was used in either direction, or is retired."""
        with self._mutex:
            return self._contents.fingerprint(keymat) in self._contents.rows

    def release(self, keymat: KeyMaterial, lease: Lease, next_seq: int) -> None:
        """Give back the numbers from `next_seq` on, once the engine has forgotten the SA.

        `lease` is the newest lease of the key taken by this process, or the last few of one SA
        joined, each beginning at the end of its predecessor. It can be released once. Any other
        lease, or a `next_seq` outside of it, is ignored. Raises LedgerError.
        """
        self.end([(keymat, lease, next_seq)], [])

    def store_replay_floors(self, floors: Sequence[tuple[KeyMaterial, int]]) -> None:
        """Store the highest authenticated number of each inbound key, all or none.

        A floor never goes down. Raises KeyReuseError if a key was used outbound or is retired;
        LedgerError.
        """
        self.end([], floors)

    def end(
        self,
        leases: Sequence[tuple[KeyMaterial, Lease, int]],
        floors: Sequence[tuple[KeyMaterial, int]],
        ceilings: Sequence[tuple[KeyMaterial, int]] = (),
    ) -> None:
        """Release each of `leases` as `release` does, and store `floors` and `ceilings`, at once.

        A ceiling may go down, to the floor at most; one that is not given stays.
        Raises as `release` and `store_replay_floors`; on an error nothing is released or stored.
        """
        with self._mutex:
            changes: dict[bytes, Row] = {}
            released = set()
            for keymat, lease, next_seq in leases:
                name = self._contents.fingerprint(keymat)
                known = self._first.get(name, _MAX_SEQ + 1)
                if name in released or not known <= lease.first <= next_seq <= lease.end:
                    continue
                row = self._contents.rows[name]
                if row.highest + 1 == lease.end:
                    released.add(name)
                    if next_seq < lease.end:
                        changes[name] = replace(row, highest=next_seq - 1)
            for keymat, highest in floors:
                if not 0 <= highest <= _MAX_SEQ:
                    raise ValueError("not a sequence number")
                name, row = self._find(keymat, Role.INBOUND, None, changes)
                if highest > row.highest or name not in self._contents.rows:
                    floor = max(highest, row.highest)
                    changes[name] = replace(row, highest=floor, ceiling=max(floor, row.ceiling))
            for keymat, ceiling in ceilings:
                name, row = self._find(keymat, Role.INBOUND, None, changes)
                above = min(max(ceiling, row.highest), _MAX_SEQ)
                if above != row.ceiling:
                    changes[name] = replace(row, ceiling=above)
            for name in released:
                del self._first[name]
            self._write(changes)

    def entries(self) -> list[LedgerEntry]:
        """Every key of the ledger, the oldest first."""
        with self._mutex:
            return entries_of(self._contents)

    def _find(
        self, keymat: KeyMaterial, role: Role, sa: str | None, changes: Mapping[bytes, Row]
    ) -> tuple[bytes, Row]:
        """The row of a key, from `changes` if they hold it; a new row for a fresh key."""
        name = self._contents.fingerprint(keymat)
        row = changes.get(name) or self._contents.rows.get(name)
        if row is None:
            row = Row(role, 0, int(time.time()))
        if row.role is Role.RETIRED:
            raise KeyReuseError(
                "this key and salt dates from before the ledger was replaced",
                where=_where(sa),
                hint=NEW_KEYS,
            )
        if row.role is not role:
            raise KeyReuseError(
                f"this key and salt was used for {row.role} traffic and can't be used for {role}",
                where=_where(sa),
                hint="each direction needs its own key: make one with 'esp-gw keygen'",
            )
        return name, row

    def _write(self, changes: Mapping[bytes, Row]) -> None:
        if changes:
            contents = replace(self._contents, rows={**self._contents.rows, **changes})
            self._store(contents, partial(ledger_file.store, changes=changes))

    def _store(
        self, contents: Contents, write: Callable[[sqlite3.Connection, Contents], None]
    ) -> None:
        """Write to disk; the contents in memory change only after the write is certain.

        After an error the file may be ahead of memory, never behind it. The numbers of a failed
        lease were not handed out, so the next try may take them again.
        """
        if self._closed:
            raise LedgerError("the ledger is closed", where=str(self._path))
        with ledger_file.errors(self._path):
            try:
                write(self._connection, contents)
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                raise
            if files.inode(self._path) != self._inode:
                raise LedgerError(
                    "the ledger was moved or deleted while in use",
                    where=str(self._path),
                    hint="put it back, or restart the gateway",
                )
        self._contents = contents


def _where(sa: str | None) -> str | None:
    return None if sa is None else f"SA {sa}"
