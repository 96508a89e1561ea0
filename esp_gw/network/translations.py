"""Rules of the host that give the first packet of a flow another address (NAT).

As with the packet filters, a condition that can't be judged from outside is neither true nor false.

Sources: libnftables-json(5), nft(8).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esp_gw.network.filters import Jump, Passage, applies, bases, rules_of, written
from esp_gw.network.forward import Chain, Expressions

_STATEMENTS = ("masquerade", "snat", "dnat", "redirect")
_MAX_DEPTH = 16

Rules = Mapping[Chain, Sequence[Expressions]]


@dataclass(frozen=True, slots=True)
class Translation:
    """A base chain that translates a packet by a statement, `snat` for one.

    Not `certain` if a rule that can't be judged may keep it as it is.
    """

    chain: Chain
    statement: str
    certain: bool


def translated_by(ruleset: Sequence[Mapping[str, Any]], passage: Passage) -> Translation | None:
    """Return the first base chain at a hook that translates a packet, or None."""
    rules = rules_of(ruleset)
    for chain, _ in bases(ruleset, "nat", passage):
        statement, certain = _walk(rules, chain, passage, 0)
        if statement in _STATEMENTS:
            return Translation(chain, statement, certain)
    return None


def exemption(chain: Chain, tun: str) -> str:
    """Return the command that lets what goes into the TUN keep its addresses."""
    return f"'nft insert rule {chain.family} {chain.table} {chain.name} oifname {tun} accept'"


def _walk(rules: Rules, chain: Chain, passage: Passage, depth: int) -> tuple[str, bool]:
    """Return the statement or the verdict that ends a chain, empty if none does."""
    certain = depth < _MAX_DEPTH
    for expressions in rules.get(chain, ()) if certain else ():
        try:
            found = applies([each for each in expressions if _statement(each) is None], passage)
        except (AttributeError, KeyError, TypeError, ValueError):
            found = None
        if found is False:
            continue
        certain = certain and found is True
        for each in expressions:
            end: str | Jump | None = _statement(each) or written(each)
            if isinstance(end, Jump):
                inner = Chain(chain.family, chain.table, end.chain)
                deeper, sure = _walk(rules, inner, passage, depth + 1)
                certain = certain and sure
                end = deeper or ("return" if end.is_goto else None)
            if isinstance(end, str) and (end in _STATEMENTS or found):
                return ("" if end == "return" else end), certain
    return "", certain


def _statement(each: Mapping[str, Any]) -> str | None:
    """Return the translation that a statement is, also one of iptables."""
    for name in _STATEMENTS:
        if name in each:
            return name
    xt = each.get("xt")
    if isinstance(xt, Mapping) and xt.get("type") == "target":
        name = str(xt.get("name", "")).lower()
        return name if name in _STATEMENTS else None
    return None
