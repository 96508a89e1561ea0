"""Holds what the owner's session asks for: each change in place, in the records, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.held import Held, Key, outbound_of
from esp_gw.daemon.held_file import records_of
from esp_gw.daemon.ledgers import Ledgers
from esp_gw.daemon.lifetimes import Lifetimes
from esp_gw.daemon.sources import Sources
from esp_gw.daemon.views import remote_view
from esp_gw.engine.base import SaCounters
from esp_gw.errors import EspGwError
from esp_gw.logs import log
from esp_gw.model import Direction, KeyMaterial, Sa


class Holding:
    """The owner's SAs and policies; a change waits for its turn in `Sources.changes`."""

    def __init__(self, gateway: Gateway, sources: Sources, ledgers: Ledgers) -> None:
        self._gateway = gateway
        self._sources = sources
        self._ledgers = ledgers
        self.lifetimes = Lifetimes()
        self.changed = asyncio.Event()
        """Set by each change."""

    @property
    def held(self) -> Held:
        """The owner's SAs and policies now."""
        return self._sources.held

    async def change(self, after: Held) -> None:
        """Bring what the owner holds to another value, recorded when it works: both, or neither.

        Keys that are held no more are retired. Raises EspGwError.
        """
        gone = self.held.sas.keys() - after.sas.keys()
        await self._change(after)
        self._end(gone)

    async def remove(self, keys: Sequence[Key], now: float) -> list[dict[str, object]]:
        """Remove SAs, and return their last counters. Raises EspGwError."""
        ends = {key: self.held.find(key).sa for key in keys}
        await self._change(self.held.remove(keys))
        last = [
            self._view(key, self._gateway.installed.last.get(sa.name) or _unused(sa), now)
            for key, sa in ends.items()
        ]
        self._end(keys)
        return last

    async def _change(self, after: Held) -> None:
        before = self.held
        retired = before.retired(after)
        records = records_of(before, after, retired)
        try:
            await self._sources.hold(after, lambda: self._ledgers.write(records))
        except BaseException:
            # The numbers of a key that was refused stay; only the key itself is not kept.
            there = self._gateway.installed.sas
            new = [after.sas[key].sa for key in after.sas.keys() - before.sas.keys()]
            # A key may have been refused because it is in use.
            used = {
                sa.keymat for sa in (*there.values(), *(each.sa for each in before.sas.values()))
            }
            self._forget([sa.keymat for sa in new if sa.keymat not in used])
            raise
        self._forget(retired)
        self.changed.set()

    def _forget(self, keys: Sequence[KeyMaterial]) -> None:
        self._gateway.installed.forget(keys)
        self._ledgers.forget(keys)

    def _end(self, keys: Iterable[Key]) -> None:
        """Forget the use of SAs that are gone, and the counters of all that have not expired."""
        for key in keys:
            self.lifetimes.forget(key)
        expired = {sa.sa.name for sa in self.held.sas.values() if sa.expired}
        last = self._gateway.installed.last
        for name in last.keys() - expired:
            del last[name]

    async def restore(self, former: Held) -> None:
        """Put back the SAs that were held when the gateway ended, where they still work.

        The policies are in place, closed, but those that would let out what the configuration
        closes now: they are gone. An SA that can't be installed has expired.
        """
        there = self.held.policies
        kept = {name: policy for name, policy in former.policies.items() if name in there}
        if len(kept) < len(former.policies):
            before, former = former, replace(former, policies=kept)
            await self._forget_records(before, former)
        if not former.sas:
            return
        try:
            await self.change(former.with_left(self.held.left))
        except EspGwError:
            for key in former.sas:
                await self._restore_one(former, key)

    async def _forget_records(self, before: Held, after: Held) -> None:
        try:
            await self._ledgers.write(records_of(before, after, ()))
        except EspGwError as error:
            log.error("a policy of IKE that is left out is still in the records", reason=str(error))

    async def _restore_one(self, former: Held, key: Key) -> None:
        # One after the other: an address that is gone takes only its own SAs along.
        sa = former.sas[key]
        sas, policies = {**self.held.sas, key: sa}, dict(self.held.policies)
        if key.direction is Direction.OUTBOUND:
            policies |= {name: p for name, p in former.policies.items() if outbound_of(p) == key}
        try:
            await self.change(replace(self.held, sas=sas, policies=policies))
        except EspGwError as error:
            log.error("an SA of IKE can't be restored", sa=sa.sa.name, reason=str(error))
            expired = replace(self.held, sas=sas).expire(key)
            try:
                await self.change(expired)
            except EspGwError:
                # It is held all the same, so that its owner removes it with its record and its key.
                self._sources.held = expired

    def counted(self, keys: Iterable[Key], now: float) -> list[dict[str, object]]:
        """Return SAs that are held with their counters, at `now` in seconds."""
        held = {key: self.held.sas[key] for key in keys}
        there = self._gateway.engine.counters_of({each.sa.name for each in held.values()})
        found = []
        for key, each in held.items():
            sa = each.sa
            counters = (
                there.get(sa.name) or self._gateway.installed.last.get(sa.name) or _unused(sa)
            )
            found.append({**self._view(key, counters, now), "expired": each.expired})
        return found

    def _view(self, key: Key, counters: SaCounters, now: float) -> dict[str, object]:
        return {
            **key.plain(),
            "bytes": counters.bytes,
            "packets": counters.packets,
            "seq": counters.seq,
            "last_use_s": self.lifetimes.last_use(key, counters, now),
            "remote": remote_view(counters.remote),
            "remote_port": counters.remote_port,
        }


def _unused(sa: Sa) -> SaCounters:
    return SaCounters(0, 0, 0, 0, sa.remote, sa.remote_port)
