"""Both ledgers as one: the durable one, and that of keys which live until a reboot at most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from esp_gw.errors import KeyReuseError
from esp_gw.ledger.ephemeral import Records
from esp_gw.ledger.thread import EphemeralThread, LedgerThread
from esp_gw.model import Direction, KeyMaterial, Lease, Origin, Reception, Sa

E = TypeVar("E", tuple[KeyMaterial, Lease, int], tuple[KeyMaterial, int])


class Ledgers:
    """The sequence numbers of all SAs; those of IKE's are in the ephemeral ledger.

    A key that one of them knows is refused to the other.
    """

    def __init__(self, durable: LedgerThread, ephemeral: EphemeralThread) -> None:
        self._durable = durable
        self._ephemeral = ephemeral
        self._keys_of_ike: set[KeyMaterial] = set()

    @property
    def path(self) -> Path:
        """Path of the durable ledger, whether it exists or not."""
        return self._durable.path

    async def lease(self, sa: Sa) -> Lease:
        """Reserve sequence numbers for an outbound SA, on file on return. Raises LedgerError."""
        return await self._of(sa).lease(sa)

    async def begin(
        self, outbound: Sequence[Sa], inbound: Sequence[Sa]
    ) -> tuple[list[Lease], list[Reception]]:
        """Reserve numbers for all outbound SAs, and return what all inbound SAs may have received.

        Raises LedgerError; no number is used in this case.
        """
        leases: dict[str, Lease] = {}
        numbers: dict[str, Reception] = {}
        for ledger, other in (
            (self._ephemeral, self._durable),
            (self._durable, self._ephemeral),
        ):
            ours = [sa for sa in (*outbound, *inbound) if self._of(sa) is ledger]
            if not ours:
                continue
            for sa in await other.known(ours):
                raise KeyReuseError(
                    "this key and salt was used before, by another SA",
                    where=f"SA {sa.name}",
                    hint="each SA needs a key of its own",
                )
            ways = {way: [sa for sa in ours if sa.direction is way] for way in Direction}
            begun, received = await ledger.begin(ways[Direction.OUTBOUND], ways[Direction.INBOUND])
            leases |= {
                sa.name: lease for sa, lease in zip(ways[Direction.OUTBOUND], begun, strict=True)
            }
            numbers |= {
                sa.name: each for sa, each in zip(ways[Direction.INBOUND], received, strict=True)
            }
            if ledger is self._ephemeral:
                self._keys_of_ike.update(sa.keymat for sa in ours)
        return [leases[sa.name] for sa in outbound], [numbers[sa.name] for sa in inbound]

    async def used_up(self, sas: Sequence[Sa]) -> list[Sa]:
        """Return those of some lanes that have no sequence number left; IKE has no lanes.

        Raises LedgerError.
        """
        return await self._durable.used_up(sas)

    async def end(
        self,
        leases: Sequence[tuple[KeyMaterial, Lease, int]],
        floors: Sequence[tuple[KeyMaterial, int]],
        ceilings: Sequence[tuple[KeyMaterial, int]] = (),
    ) -> None:
        """Release the unused rest of leases, and store replay floors and ceilings.

        Raises LedgerError.
        """
        # Told apart before the first wait: a key may be forgotten meanwhile.
        (of_ike, others), (floors_of_ike, floors), (ceilings_of_ike, ceilings) = (
            self._split(leases),
            self._split(floors),
            self._split(ceilings),
        )
        if of_ike or floors_of_ike or ceilings_of_ike:
            await self._ephemeral.end(of_ike, floors_of_ike, ceilings_of_ike)
        if others or floors or ceilings:
            await self._durable.end(others, floors, ceilings)

    def _split(self, entries: Sequence[E]) -> tuple[list[E], list[E]]:
        """Return those of IKE's keys, and the others."""
        ours = [each for each in entries if each[0] in self._keys_of_ike]
        return ours, [each for each in entries if each[0] not in self._keys_of_ike]

    async def write(self, records: Records) -> None:
        """Change the records of what IKE holds, and retire keys, all or nothing.

        Raises LedgerError.
        """
        await self._ephemeral.write(records)

    def forget(self, keys: Sequence[KeyMaterial]) -> None:
        """Forget that keys are IKE's, once they are retired."""
        self._keys_of_ike.difference_update(keys)

    async def close(self) -> None:
        """Close both."""
        await self._durable.close()
        await self._ephemeral.close()

    def _of(self, sa: Sa) -> LedgerThread | EphemeralThread:
        return self._ephemeral if sa.origin is Origin.IKE else self._durable
