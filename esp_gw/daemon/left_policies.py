"""Policies that a session of the owner has left closed, until another one says what they become.

They drop what they match, stand behind all others, and tell nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from esp_gw.config.conflicts import covers
from esp_gw.model import Action, Policy, Selector

LEFT = "ike-left:"
"""Begins the names of these policies; no person and no owner can give such a name."""


def left_behind(policies: Iterable[Policy]) -> tuple[Policy, ...]:
    """Return what stays closed of these, in order: those that protect hold, a bypass is gone."""
    closing: dict[tuple[Selector, ...], Policy] = {}
    for each in policies:
        known = closing.get(each.selectors)
        if each.action is not Action.BYPASS and not (known and known.standing):
            closing[each.selectors] = each
    return tuple(
        replace(each, name=f"{LEFT}{number}", sas=())
        for number, each in enumerate(closing.values(), 1)
    )


def uncovered(
    left: Sequence[Policy], action_pairs: Iterable[tuple[Action, Selector]]
) -> tuple[Policy, ...]:
    """Return those of `left` of which new policies with these selectors don't close everything."""
    if not left:
        return ()
    closed = dict.fromkeys(pair for action, pair in action_pairs if action is not Action.BYPASS)

    def is_closed(pair: Selector) -> bool:
        return pair in closed or any(_closes(wide, pair) for wide in closed)

    return tuple(each for each in left if not all(map(is_closed, each.selectors)))


def _closes(wide: Selector, pair: Selector) -> bool:
    """Return True if a new selector closes all of a former one.

    Where the former sources are not known, it is for the new policies to tell them. Meanwhile the
    route of a remote prefix closes it for all of them, but for a default route.
    """
    if not pair.local.prefixlen and wide.remote.prefixlen:
        wide = Selector(pair.local, wide.remote)
    return covers(wide, pair)
