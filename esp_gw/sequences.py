"""The ledger beside the event loop: its fsyncs run in one thread and never delay a packet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from esp_gw.ledger import LEASE_ESN, LEASE_NO_ESN, Ledger
from esp_gw.machine import machine_identity
from esp_gw.model import KeyMaterial, Lease, Sa

T = TypeVar("T")


class Sequences:
    """Leases and replay floors, asked of the ledger in a thread of its own.

    The ledger is opened when the first SA needs it, so that a gateway without SAs needs none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ledger: Ledger | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    async def lease(self, sa: Sa) -> Lease:
        """Reserve sequence numbers for an outbound SA; they are on disk. Raises LedgerError."""
        count = LEASE_ESN if sa.esn else LEASE_NO_ESN
        return await self._run(
            lambda: self._open().lease(sa.keymat, count, sa.last_seq, sa=sa.name)
        )

    async def release(self, keymat: KeyMaterial, lease: Lease, next_seq: int) -> None:
        """Give back what was not used of a lease, when nothing more is sent with the key."""
        await self._run(lambda: self._open().release(keymat, lease, next_seq))

    async def replay_floor(self, sa: Sa) -> int:
        """Return the highest number known to have been accepted. Raises LedgerError."""
        return await self._run(lambda: self._open().replay_floor(sa.keymat, sa=sa.name))

    async def store_replay_floors(self, floors: Sequence[tuple[KeyMaterial, int]]) -> None:
        """Put the highest accepted numbers on disk. Raises LedgerError."""
        await self._run(lambda: self._open().store_replay_floors(floors))

    async def close(self) -> None:
        """Close the ledger and end the thread."""
        if self._ledger is not None:
            await self._run(self._ledger.close)
        self._thread.shutdown()

    def _open(self) -> Ledger:
        if self._ledger is None:
            self._ledger = Ledger.open(self.path, machine_identity())
        return self._ledger

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
