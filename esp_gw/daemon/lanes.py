"""Lanes whose SA has no sequence number left, and what others of their tunnel do for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from esp_gw.desired import Desired
from esp_gw.errors import LedgerError
from esp_gw.ledger.thread import SequenceNumbers
from esp_gw.logs import log
from esp_gw.model import Direction, KeyMaterial, Sa


class Lanes:
    """The lanes that carry nothing, as the engine and the ledger tell.

    One that is installed stays, and the engine passes it over. One that can't be installed any more
    is left out while a sister works: the ledger would refuse all SAs with it.
    """

    def __init__(self, ledger: SequenceNumbers) -> None:
        self._ledger = ledger
        self._used_up: set[KeyMaterial] = set()
        self.left_out: frozenset[str] = frozenset()
        """The names of the SAs that are left out."""

    def expire(self, name: str, sas: Mapping[str, Sa]) -> bool:
        """Log that an SA has used its last number; return True if a sister does its work.

        It is an error for the last SA of a tunnel. `sas` are the engine's.
        """
        sa = sas.get(name)
        if sa is not None:
            self._used_up.add(sa.keymat)
            if any(each.keymat not in self._used_up for each in _sisters(sa, sas.values())):
                _warn(sa)
                return True
        log.error("an SA has no sequence number left: give it a new key", sa=name)
        return False

    async def pass_over(self, desired: Desired, installed: Mapping[str, Sa]) -> Desired:
        """Return the desired state without what can't be installed, as long as a sister works.

        The first lane that works sends the keepalives of its tunnel. `installed` are the SAs that
        are there, by name.
        """
        lanes = [sa for sa in desired.sas if sa.lane is not None]
        lanes = [sa for sa in lanes if _is_outbound_lane(sa)]
        if not lanes:
            self.left_out = frozenset()
            return desired
        new = [sa for sa in lanes if sa.name not in installed and sa.keymat not in self._used_up]
        # Another fault of the ledger is refused with the SAs that it is asked for.
        try:
            self._used_up.update(sa.keymat for sa in await self._ledger.used_up(new))
        except LedgerError:
            return desired
        if not self._used_up:
            self.left_out = frozenset()
            return desired
        return self._without_dead(desired, lanes, installed)

    def _without_dead(
        self, desired: Desired, lanes: list[Sa], installed: Mapping[str, Sa]
    ) -> Desired:
        changed: dict[str, Sa | None] = {}
        tunnels: dict[str | None, list[Sa]] = {}
        for sa in lanes:
            tunnels.setdefault(sa.tunnel, []).append(sa)
        for first, *others in tunnels.values():
            tunnel = [first, *others]
            working = [sa for sa in tunnel if sa.keymat not in self._used_up]
            if not working:
                continue
            dead = [sa for sa in tunnel if sa.keymat in self._used_up]
            changed |= {sa.name: None for sa in dead if sa.name not in installed}
            if first in dead:
                changed[working[0].name] = replace(
                    working[0], keepalive=first.keepalive, liveness=first.liveness
                )
                if first.name in installed:
                    changed[first.name] = replace(first, keepalive=0, liveness=0)
        left_out = frozenset(name for name, sa in changed.items() if sa is None)
        for sa in lanes:
            if sa.name in left_out - self.left_out:
                _warn(sa)
        self.left_out = left_out
        placed = (changed.get(sa.name, sa) for sa in desired.sas)
        return replace(desired, sas=tuple(sa for sa in placed if sa is not None))


def _is_outbound_lane(sa: Sa) -> bool:
    return sa.lane is not None and sa.direction is Direction.OUTBOUND


def _sisters(sa: Sa, sas: Iterable[Sa]) -> list[Sa]:
    """Return the other outbound lanes of an SA's tunnel, in order; none for an only SA."""
    if not _is_outbound_lane(sa):
        return []
    there = (each for each in sas if _is_outbound_lane(each) and each.tunnel == sa.tunnel)
    return [each for each in there if each.name != sa.name]


def _warn(sa: Sa) -> None:
    text = "a lane carries nothing, others do its work: give its SA a new key"
    log.warning(text, tunnel=sa.tunnel, lane=sa.lane, sa=sa.name)
