"""The conflicts of a wanted state with itself, looked for where it differs from the last one.

What both have in common is known to be without a conflict. So a change costs what it changes, not
what is there.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from esp_gw.config.conflicts import Conflict, find_conflicts
from esp_gw.desired import Desired
from esp_gw.model import Action, Direction, Policy, Sa


class Checked:
    """The last state that was accepted; its SAs by what no two may have in common."""

    def __init__(self) -> None:
        self._sas: dict[str, Sa] = {}
        self._policies: tuple[Policy, ...] = ()
        self._having: dict[Hashable, dict[str, Sa]] = {}

    def conflicts(self, wanted: Desired) -> list[Conflict]:
        """Return the conflicts in a state whose common part with the accepted one has none."""
        sas = {sa.name: sa for sa in wanted.sas}
        names = {policy.name for policy in wanted.policies}
        if len(sas) < len(wanted.sas) or len(names) < len(wanted.policies):
            return find_conflicts(wanted.sas, wanted.policies)
        known = self._sas
        new = [sa for sa in wanted.sas if known.get(sa.name) is not sa]
        changed = {sa.name for sa in new} | (known.keys() - sas.keys())
        concerned = self._policies_concerned(wanted, changed)
        involved = {sa.name: sa for sa in new}
        for sa in new:
            for mark in _marks(sa):
                there = self._having.get(mark, {})
                involved |= {name: sas[name] for name in there if name in sas}
        for policy in concerned:
            involved |= {name: sas[name] for name in policy.sas if name in sas}
        return find_conflicts(list(involved.values()), concerned)

    def _policies_concerned(self, wanted: Desired, changed: set[str]) -> list[Policy]:
        """Return the policies to be checked, in order: new ones, and what they may clash with.

        `changed` are the names of SAs that are new or gone.
        """
        known = {id(policy) for policy in self._policies}
        fresh = [policy for policy in wanted.policies if id(policy) not in known]
        chosen = {id(policy) for policy in fresh}
        if changed:
            chosen |= {
                id(policy) for policy in wanted.policies if not changed.isdisjoint(policy.sas)
            }
        actions = {policy.action for policy in fresh}
        # A bypass is checked against what closes before it, and the other way round.
        others = set()
        if Action.BYPASS in actions:
            others |= {Action.PROTECT, Action.DISCARD}
        if actions - {Action.BYPASS}:
            others.add(Action.BYPASS)
        return [
            policy for policy in wanted.policies if id(policy) in chosen or policy.action in others
        ]

    def accept(self, wanted: Desired) -> None:
        """Take a state as the one that the next is compared with."""
        sas = {sa.name: sa for sa in wanted.sas}
        before, self._sas = self._sas, sas
        for gone in [sa for name, sa in before.items() if sas.get(name) is not sa]:
            for mark in _marks(gone):
                there = self._having[mark]
                del there[gone.name]
                if not there:
                    del self._having[mark]
        for sa in [sa for name, sa in sas.items() if before.get(name) is not sa]:
            for mark in _marks(sa):
                self._having.setdefault(mark, {})[sa.name] = sa
        self._policies = wanted.policies


def _marks(sa: Sa) -> Iterable[Hashable]:
    """Return what no other SA may have: its key, and its SPI in its direction."""
    yield sa.keymat
    yield (sa.direction is Direction.INBOUND, sa.spi)
