"""A ledger in memory that counts its writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from esp_gw.daemon.reconcile import InstallSa
from esp_gw.daemon.sas import InstalledSas
from esp_gw.engine.base import Engine
from esp_gw.errors import LedgerError
from esp_gw.ledger.ledger import MIN_MARGIN
from esp_gw.model import KeyMaterial, Lease, Reception, Sa


class CountingLedger:
    """Ledger thread as InstalledSas uses it; `writes` has the floors of each write.

    `numbers` are those of the keys that it knows, `ceilings` those on disk.
    """

    def __init__(self) -> None:
        self.writes: list[dict[KeyMaterial, int]] = []
        self.numbers: dict[KeyMaterial, Reception] = {}
        self.ceilings: dict[KeyMaterial, int] = {}
        self.refuses = False

    async def begin(
        self, outbound: Sequence[Sa], inbound: Sequence[Sa]
    ) -> tuple[list[Lease], list[Reception]]:
        fresh = Reception(0, 0, MIN_MARGIN)
        received = [self.numbers.get(sa.keymat, fresh) for sa in inbound]
        for sa, numbers in zip(inbound, received, strict=True):
            self.ceilings[sa.keymat] = numbers.ceiling
        return [Lease(1, 2**20) for _ in outbound], received

    async def end(
        self,
        leases: Sequence[object],
        floors: Sequence[tuple[KeyMaterial, int]],
        ceilings: Sequence[tuple[KeyMaterial, int]] = (),
    ) -> None:
        if self.refuses:
            raise LedgerError("the disk is full")
        self.writes.append(dict(floors))
        self.ceilings |= dict(ceilings)


async def installed(engine: Engine, ledger: CountingLedger, *sas: Sa) -> InstalledSas:
    """Install SAs in an engine by way of the gateway's bookkeeping."""
    book = InstalledSas(engine, cast("Any", ledger))
    ready = await book.register(sas)
    await book.install([InstallSa(sa) for sa in sas], ready, 0.0)
    return book
