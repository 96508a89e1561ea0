"""A ledger in memory that counts its writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from esp_gw.daemon.reconcile import InstallSa
from esp_gw.daemon.sas import InstalledSas
from esp_gw.engine.base import Engine
from esp_gw.errors import LedgerError
from esp_gw.model import KeyMaterial, Lease, Sa


class CountingLedger:
    """Ledger thread as InstalledSas uses it; `writes` has the floors of each write."""

    def __init__(self) -> None:
        self.writes: list[dict[KeyMaterial, int]] = []
        self.refuses = False

    async def begin(
        self, outbound: Sequence[Sa], inbound: Sequence[Sa]
    ) -> tuple[list[Lease], list[int]]:
        return [Lease(1, 2**20) for _ in outbound], [0 for _ in inbound]

    async def end(
        self, leases: Sequence[object], floors: Sequence[tuple[KeyMaterial, int]]
    ) -> None:
        if self.refuses:
            raise LedgerError("the disk is full")
        self.writes.append(dict(floors))


async def installed(engine: Engine, ledger: CountingLedger, *sas: Sa) -> InstalledSas:
    """Install SAs in an engine by way of the gateway's bookkeeping."""
    book = InstalledSas(engine, cast("Any", ledger))
    ready = await book.register(sas)
    await book.install([InstallSa(sa) for sa in sas], ready, 0.0)
    return book
