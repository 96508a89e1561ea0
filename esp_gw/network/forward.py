"""Base chains of the host's packet filters that drop forwarded packets no rule accepts.

Sources: libnftables-json(5); iptables-nft keeps its chains in nf_tables, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_OURS = "esp_gw"
"""Beginning of the names of the gateways' own tables."""
_FAMILIES = {"ip": 4, "ip6": 6}
_FINAL = ("drop", "reject")


def dropping_chain(ruleset: Sequence[Mapping[str, Any]], version: int) -> str | None:
    """Return the first base chain at the forward hook that ends in a drop for an IP version.

    `ruleset` are the entries of `nft -j list ruleset`. The chain is named as nft and iptables do.
    """
    chains = [entry["chain"] for entry in ruleset if "chain" in entry]
    rules = [entry["rule"] for entry in ruleset if "rule" in entry]
    for chain in sorted(chains, key=lambda each: int(each.get("prio", 0))):
        family, table, name = chain["family"], chain["table"], chain["name"]
        at_hook = chain.get("hook") == "forward" and chain.get("type") == "filter"
        ours = str(table).startswith(_OURS)
        if not at_hook or ours or _FAMILIES.get(family, version) != version:
            continue
        inside = [
            rule["expr"]
            for rule in rules
            if (rule["family"], rule["table"], rule["chain"]) == (family, table, name)
        ]
        if chain.get("policy") == "drop" or (inside and _always_drops(inside[-1])):
            return f"chain {name} of table {family} {table}"
    return None


def _always_drops(expressions: Sequence[Mapping[str, Any]]) -> bool:
    """Return True if a rule without a match ends in a drop."""
    kinds = [next(iter(each)) for each in expressions if each]
    return bool(kinds) and kinds[-1] in _FINAL and "match" not in kinds
