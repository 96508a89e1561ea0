"""The ledger in a thread of its own: its fsyncs never block the event loop or delay a packet."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from esp_gw.ledger.ephemeral import EphemeralLedger, Records, is_usable
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import LEASE_ESN, LEASE_NO_ESN, FloorRequest, LeaseRequest, Ledger
from esp_gw.model import KeyMaterial, Lease, Reception, Sa

T = TypeVar("T")
L = TypeVar("L", Ledger, EphemeralLedger)


class SequenceNumbers(Protocol):
    """Asynchronous access to leases and replay floors, whatever keeps them."""

    @property
    def path(self) -> Path:
        """Path of the durable ledger, whether it exists or not."""

    async def lease(self, sa: Sa) -> Lease:
        """Reserve sequence numbers for an outbound SA, on disk on return. Raises LedgerError."""

    async def begin(
        self, outbound: Sequence[Sa], inbound: Sequence[Sa]
    ) -> tuple[list[Lease], list[Reception]]:
        """Reserve numbers for all outbound SAs, and return what all inbound SAs may have received.

        Raises LedgerError; no number is used in this case.
        """

    async def used_up(self, sas: Sequence[Sa]) -> list[Sa]:
        """Return those of some outbound SAs that have no sequence number left."""

    async def end(
        self,
        leases: Sequence[tuple[KeyMaterial, Lease, int]],
        floors: Sequence[tuple[KeyMaterial, int]],
        ceilings: Sequence[tuple[KeyMaterial, int]] = (),
    ) -> None:
        """Release the unused rest of leases, and store replay floors and ceilings."""

    async def close(self) -> None:
        """Close what is open."""


class _Thread(ABC, Generic[L]):
    """A ledger in a thread of its own, opened when the first SA needs it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ledger: L | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")

    @property
    def path(self) -> Path:
        """Path of the file, whether it exists or not."""
        return self._path

    async def lease(self, sa: Sa) -> Lease:
        """Reserve sequence numbers for an outbound SA, on disk on return. Raises LedgerError."""
        (lease,), _ = await self.begin([sa], [])
        return lease

    async def begin(
        self, outbound: Sequence[Sa], inbound: Sequence[Sa]
    ) -> tuple[list[Lease], list[Reception]]:
        """Reserve numbers for all outbound SAs, and return what all inbound SAs may have received.

        One write puts all on disk. Raises LedgerError; no number is used in this case.
        """
        leases = [
            LeaseRequest(sa.keymat, _lease_len(sa), sa.last_seq, sa.name, sa.used_seq)
            for sa in outbound
        ]
        floors = [FloorRequest(sa.keymat, sa.name, sa.used_seq) for sa in inbound]
        return await self._run(lambda: self._open().begin(leases, floors))

    async def used_up(self, sas: Sequence[Sa]) -> list[Sa]:
        """Return those of some outbound SAs that have no sequence number left.

        Raises LedgerError.
        """
        if not sas:
            return []
        return await self._run(
            lambda: [
                sa for sa in sas if self._open().is_used_up(sa.keymat, sa.last_seq, sa.used_seq)
            ]
        )

    async def end(
        self,
        leases: Sequence[tuple[KeyMaterial, Lease, int]],
        floors: Sequence[tuple[KeyMaterial, int]],
        ceilings: Sequence[tuple[KeyMaterial, int]] = (),
    ) -> None:
        """Release the unused rest of leases, and store replay floors and ceilings, in one write.

        A lease is a key, the lease and the next number; its key must not be used for any further
        packet. Raises LedgerError.
        """
        await self._run(lambda: self._open().end(leases, floors, ceilings))

    async def known(self, sas: Sequence[Sa]) -> list[Sa]:
        """Return those SAs whose keys the ledger knows; none if there is no ledger yet.

        Raises LedgerError.
        """
        return await self._run(lambda: self._known(sas))

    async def close(self) -> None:
        """Close the ledger and end the thread."""
        if self._ledger is not None:
            await self._run(self._ledger.close)
        self._thread.shutdown()

    def _known(self, sas: Sequence[Sa]) -> list[Sa]:
        if self._ledger is None and not self._is_there():
            return []
        return [sa for sa in sas if self._open().knows(sa.keymat)]

    def _is_there(self) -> bool:
        return self._path.exists()

    def _open(self) -> L:
        if self._ledger is None:
            self._ledger = self._opened()
        return self._ledger

    @abstractmethod
    def _opened(self) -> L:
        """Return the ledger, opened. Raises LedgerError."""

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


class LedgerThread(_Thread[Ledger]):
    """The durable ledger; a gateway without SAs needs none."""

    def _opened(self) -> Ledger:
        ledger = Ledger.open(self.path, machine_identity())
        ledger.bind()
        return ledger


class EphemeralThread(_Thread[EphemeralLedger]):
    """The ledger of the keys that live until a reboot at most, with the records that hold them."""

    async def records(self, kind: str) -> list[tuple[str, str]]:
        """Return name and content of the records of a kind, in order. Raises LedgerError."""
        return await self._run(lambda: self._records(kind))

    def _records(self, kind: str) -> list[tuple[str, str]]:
        if self._ledger is None and not self._is_there():
            return []
        return self._open().records(kind)

    def _is_there(self) -> bool:
        # A file that is to be begun anew takes space, and knows nothing.
        return is_usable(self._path)

    async def write(self, records: Records) -> None:
        """Change records and retire keys, all or nothing. Raises LedgerError."""
        await self._run(lambda: self._open().write(records))

    def _opened(self) -> EphemeralLedger:
        return EphemeralLedger.open(self.path)


def _lease_len(sa: Sa) -> int:
    return LEASE_ESN if sa.esn else LEASE_NO_ESN
