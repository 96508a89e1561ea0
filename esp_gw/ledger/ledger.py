"""The ledger of sequence numbers: what is on disk as used before it is used.

The 64-bit sequence number is the IV of an SA (RFC 4106 3.1, RFC 7634 2), and an IV used twice with
one key gives the key stream, and with AES-GCM the authentication key, away. So numbers are leased:
the file says that they are used up, safely on disk, before the engine gets them. After a crash the
next lease begins where the last one ended, used or not.

A key is known by an HMAC of key and salt, so that neither a new name nor a new SPI makes it fresh;
the key itself is never stored.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from esp_gw.errors import KeyReuseError, LedgerError, LedgerForeignError
from esp_gw.ledger import file as ledger_file
from esp_gw.ledger.file import NEW_KEYS, REPLACE, Contents, Role, Row
from esp_gw.model import KeyMaterial, Lease

__all__ = [
    "LEASE_ESN",
    "LEASE_NO_ESN",
    "LEDGER_NAME",
    "FloorRequest",
    "LeaseRequest",
    "Ledger",
    "LedgerEntry",
    "Role",
]

LEDGER_NAME = "ledger.db"
"""The ledger's file in the state directory."""

LEASE_ESN = 2**20
"""How many numbers to lease with ESN: 12 s of full packets at 1 Gbit/s; the next lease is asked for
when half of it is left. A crash costs two leases at most, and 2**64 numbers hold 2**43 times that.
"""
LEASE_NO_ESN = 2**16
"""How many without ESN, where a key has 2**32: 7 s of full packets at 100 Mbit/s. A crash costs two
leases at most, a 32768th of the key's life.
"""

_MAX_SEQ = 2**64 - 1


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One key: `fingerprint` is 8 hex digits, not of the key but of its HMAC.

    `seq` is the next number of an outbound key, the highest known one of an inbound or retired key.
    """

    fingerprint: str
    role: Role
    seq: int
    first_use: datetime


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """What an outbound SA needs: see `Ledger.lease`. Up to `used` numbers were used elsewhere."""

    keymat: KeyMaterial
    count: int
    last: int
    sa: str | None
    used: int = 0


@dataclass(frozen=True, slots=True)
class FloorRequest:
    """What an inbound SA needs: see `Ledger.replay_floor`. `used` was accepted elsewhere."""

    keymat: KeyMaterial
    sa: str | None
    used: int = 0


class Ledger:
    """An open ledger, this process's alone; its methods may be called from any thread.

    Every method that changes something returns when the change is on disk, which on an SD card may
    take long: run them in a worker thread. All raise LedgerError when the disk refuses; nothing is
    leased then, and the next try may succeed.
    """

    def __init__(
        self, path: Path, lock: int, connection: sqlite3.Connection, contents: Contents
    ) -> None:
        self._path = path
        self._lock = lock
        self._connection = connection
        self._contents = contents
        self._inode = ledger_file.inode(path)
        # Of each key, the first number that this process was given and has not released since.
        self._first: dict[bytes, int] = {}
        self._mutex = threading.Lock()
        self._closed = False

    @staticmethod
    def create(path: Path, machine: str) -> None:
        """Make an empty ledger of this machine, mode 0600. Raises LedgerError if one exists."""
        with ledger_file.errors(path), ledger_file.locked(path):
            if os.path.lexists(path):
                raise LedgerError(
                    "a ledger exists already",
                    where=str(path),
                    hint="keep it; if it can't be used any more, see --replace",
                )
            fresh = ledger_file.build(
                path, Contents(machine, secrets.token_bytes(ledger_file.SECRET_LEN), {})
            )
            ledger_file.put_in_place(fresh, path)

    @staticmethod
    def replace(path: Path, machine: str, retired: Sequence[KeyMaterial]) -> int:
        """Move a ledger that can't be used aside, to NAME.old-N, and make a new one.

        Every key that the old one knew is known to the new one as retired, and refused for ever. A
        damaged one may not tell all it knew, so `retired` are refused as well: every key that may
        have been used with it. Gives the number of keys retired. Raises LedgerError.
        """
        with ledger_file.errors(path), ledger_file.locked(path):
            if not os.path.lexists(path):
                raise ledger_file.missing(path)
            old = ledger_file.salvage(path)
            unknown = Row(Role.RETIRED, 0, int(time.time()))
            rows = {old.fingerprint(keymat): unknown for keymat in retired}
            rows |= {name: replace(row, role=Role.RETIRED) for name, row in old.rows.items()}
            fresh = ledger_file.build(path, Contents(machine, old.secret, rows))
            ledger_file.move_aside(path)
            ledger_file.put_in_place(fresh, path)
            return len(rows)

    @classmethod
    def open(cls, path: Path, machine: str) -> Ledger:
        """Open the ledger of this machine, and check all of it.

        Raises LedgerMissingError, LedgerDamagedError, LedgerForeignError, and LedgerError if others
        may read the file or another process has it open. Each one's hint says what to do.
        """
        with ledger_file.errors(path), contextlib.ExitStack() as undo:
            ledger_file.check_file(path)
            lock = ledger_file.acquire_lock(path)
            undo.callback(os.close, lock)
            connection = ledger_file.connect(path)
            undo.callback(connection.close)
            contents = ledger_file.read(path, connection)
            if contents.machine != machine:
                raise LedgerForeignError(
                    "this ledger was made on another machine", where=str(path), hint=REPLACE
                )
            ledger = cls(path, lock, connection, contents)
            undo.pop_all()
            return ledger

    def close(self) -> None:
        """Close the file and let others open it; nothing is lost by not closing."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            os.close(self._lock)

    def lease(self, keymat: KeyMaterial, count: int, last: int, *, sa: str | None = None) -> Lease:
        """Reserve the next `count` sequence numbers of a key, fewer where `last` comes first.

        The first number of a fresh key is 1 (RFC 4303 2.2). Raises KeyReuseError when the key was
        used inbound, is retired, or has no number left up to `last`; LedgerError. `sa` names the
        SA in the error's text.
        """
        return self.begin([LeaseRequest(keymat, count, last, sa)], [])[0][0]

    def replay_floor(self, keymat: KeyMaterial, *, sa: str | None = None) -> int:
        """The highest sequence number stored for an inbound key, 0 for a fresh one, now registered.

        Raises KeyReuseError when the key was used outbound or is retired; LedgerError.
        """
        return self.begin([], [FloorRequest(keymat, sa)])[1][0]

    def begin(
        self, outbound: Sequence[LeaseRequest], inbound: Sequence[FloorRequest]
    ) -> tuple[list[Lease], list[int]]:
        """Lease numbers for all outbound keys and give the floors of all inbound ones, or nothing.

        One write for all, so that thousands of SAs don't wait for the disk one after the other.
        Raises as `lease` and `replay_floor`; no number is used and no key is known then.
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
            floors = []
            for asked in inbound:
                name, row = self._find(asked.keymat, Role.INBOUND, asked.sa, changes)
                floor = max(row.highest, asked.used)
                if name not in self._contents.rows or floor > row.highest:
                    changes[name] = replace(row, highest=floor)
                floors.append(floor)
            self._write(changes)
            self._first = firsts | self._first
            return leases, floors

    def release(self, keymat: KeyMaterial, lease: Lease, next_seq: int) -> None:
        """Give back the numbers from `next_seq` on, once the engine has forgotten the SA.

        `lease` is the newest one of the key that this process took, or the last few of one SA
        joined, where each begins at the end of the one before; it can be given back once. For any
        other, or a `next_seq` outside of it, nothing happens. Raises LedgerError.
        """
        self.end([(keymat, lease, next_seq)], [])

    def store_replay_floors(self, floors: Sequence[tuple[KeyMaterial, int]]) -> None:
        """Store the highest authenticated number of each inbound key, all or none; none goes down.

        Raises KeyReuseError when a key was used outbound or is retired; LedgerError.
        """
        self.end([], floors)

    def end(
        self,
        leases: Sequence[tuple[KeyMaterial, Lease, int]],
        floors: Sequence[tuple[KeyMaterial, int]],
    ) -> None:
        """Do what `release` does for each of `leases`, and store floors, in one write.

        Raises as both do; nothing is given back or stored then.
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
                    changes[name] = replace(row, highest=max(highest, row.highest))
            for name in released:
                del self._first[name]
            self._write(changes)

    def entries(self) -> list[LedgerEntry]:
        """Every key that the ledger knows, the oldest first."""
        with self._mutex:
            rows = sorted(self._contents.rows.items(), key=lambda item: (item[1].first_use, item))
        return [
            LedgerEntry(
                name.hex()[:8],
                row.role,
                row.highest + (row.role is Role.OUTBOUND),
                datetime.fromtimestamp(row.first_use, UTC),
            )
            for name, row in rows
        ]

    def _find(
        self, keymat: KeyMaterial, role: Role, sa: str | None, changes: Mapping[bytes, Row]
    ) -> tuple[bytes, Row]:
        """The row of a key with the changes that aren't written yet, a new one for a fresh key."""
        name = self._contents.fingerprint(keymat)
        row = changes.get(name) or self._contents.rows.get(name)
        if row is None:
            row = Row(role, 0, int(time.time()))
        if row.role is Role.RETIRED:
            raise KeyReuseError(
                "this key and salt is from before the ledger was replaced",
                where=_where(sa),
                hint=NEW_KEYS,
            )
        if row.role is not role:
            raise KeyReuseError(
                f"this key and salt was used for {row.role} traffic and can't be for {role}",
                where=_where(sa),
                hint="each direction needs its own key: make one with 'esp-gw keygen'",
            )
        return name, row

    def _write(self, changes: Mapping[bytes, Row]) -> None:
        """Put rows on disk; what is in memory follows only when that is certain.

        After an error the file may be ahead, never behind: the numbers of a lease that failed were
        not given out, so the next try may take them again.
        """
        if not changes:
            return
        if self._closed:
            raise LedgerError("the ledger is closed", where=str(self._path))
        contents = replace(self._contents, rows={**self._contents.rows, **changes})
        with ledger_file.errors(self._path):
            try:
                ledger_file.store(self._connection, contents, changes)
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.rollback()
                raise
            if ledger_file.inode(self._path) != self._inode:
                raise LedgerError(
                    "the ledger was moved or deleted while in use",
                    where=str(self._path),
                    hint="put it back, or restart the gateway",
                )
        self._contents = contents


def _where(sa: str | None) -> str | None:
    return None if sa is None else f"SA {sa}"
