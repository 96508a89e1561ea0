"""Base chains of the host's packet filters that drop forwarded packets no rule accepts.

Sources: libnftables-json(5); iptables-nft keeps its chains in nf_tables, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esp_gw.desired import Desired
from esp_gw.model import Mode

Expressions = Sequence[Mapping[str, Any]]

_OURS = "esp_gw"
"""Beginning of the names of the gateways' own tables."""
_FAMILIES = {"ip": 4, "ip6": 6}
_FINAL = ("drop", "reject")
_DEVICES = ("iifname", "oifname", "iif", "oif")
_MAX_DEPTH = 8
_IPTABLES = {"ip": "iptables", "ip6": "ip6tables"}


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain, named as nft and iptables do."""

    family: str
    table: str
    name: str

    def __str__(self) -> str:
        return f"chain {self.name} of table {self.family} {self.table}"

    def commands(self, interface: str) -> str:
        """Return the commands that accept forwarding from and to an interface."""
        if (self.table, self.name) == ("filter", "FORWARD") and self.family in _IPTABLES:
            program = f"{_IPTABLES[self.family]} -I FORWARD"
            commands = [f"{program} {flag} {interface} -j ACCEPT" for flag in ("-i", "-o")]
        else:
            where = f"nft insert rule {self.family} {self.table} {self.name}"
            commands = [f"{where} {key} {interface} accept" for key in ("iifname", "oifname")]
        return " and ".join(f"'{command}'" for command in commands)


def dropping_chain(
    ruleset: Sequence[Mapping[str, Any]], version: int, interface: str
) -> Chain | None:
    """Return the first base chain at the forward hook that ends in a drop for an IP version.

    `ruleset` are the entries of `nft -j list ruleset`. A chain with a rule that accepts packets
    from or to the interface is skipped: it was made for the gateway.
    """
    rules: dict[Chain, list[Expressions]] = {}
    for rule in (entry["rule"] for entry in ruleset if "rule" in entry):
        chain = Chain(rule["family"], rule["table"], rule["chain"])
        rules.setdefault(chain, []).append(rule["expr"])
    chains = [entry["chain"] for entry in ruleset if "chain" in entry]
    for each in sorted(chains, key=lambda each: int(each.get("prio", 0))):
        chain = Chain(each["family"], each["table"], each["name"])
        at_hook = each.get("hook") == "forward" and each.get("type") == "filter"
        ours = chain.table.startswith(_OURS)
        if not at_hook or ours or _FAMILIES.get(chain.family, version) != version:
            continue
        inside = rules.get(chain, [])
        drops = each.get("policy") == "drop" or (inside and _always_drops(inside[-1]))
        if drops and not any(_accepts(each, interface) for each in _reached(rules, chain)):
            return chain
    return None


def forward_warnings(
    desired: Desired, ruleset: Sequence[Mapping[str, Any]], interface: str
) -> list[str]:
    """Return a line for each chain that keeps networks behind the gateway from its tunnels."""
    versions = {
        prefix.version
        for tunnel in desired.tunnels
        if tunnel.mode is Mode.TUNNEL
        for prefix in tunnel.local_ts
        if prefix.num_addresses > 1
    }
    chains = dict.fromkeys(
        chain
        for version in sorted(versions)
        if (chain := dropping_chain(ruleset, version, interface)) is not None
    )
    return [
        f"{chain} drops what it has no rule for: this host reaches the other side, the networks "
        f"behind it may not; run {chain.commands(interface)}"
        for chain in chains
    ]


def _reached(
    rules: Mapping[Chain, Sequence[Expressions]], chain: Chain, depth: int = 0
) -> Iterator[Expressions]:
    """Yield the rules of a chain, and of those to which it jumps."""
    for expressions in rules.get(chain, ()):
        yield expressions
        for each in expressions:
            jump = each.get("jump") or each.get("goto")
            if jump is not None and depth < _MAX_DEPTH:
                target = Chain(chain.family, chain.table, jump["target"])
                yield from _reached(rules, target, depth + 1)


def _accepts(expressions: Expressions, interface: str) -> bool:
    """Return True if a rule accepts packets from or to an interface, or all of them."""
    matches = [each["match"] for each in expressions if "match" in each]
    accepts = any("accept" in each for each in expressions)
    return accepts and (
        any(_is_of(match, interface) for match in matches)
        or not (matches or any("xt" in each for each in expressions))
    )


def _is_of(match: Mapping[str, Any], interface: str) -> bool:
    left = match["left"]
    meta = left.get("meta", {}).get("key") if isinstance(left, Mapping) else None
    if meta not in _DEVICES or match["op"] not in ("==", "in"):
        return False
    return any(_names(each, interface) for each in _values(match["right"]))


def _values(right: Any) -> Iterable[object]:
    if isinstance(right, Mapping) and isinstance(right.get("set"), list):
        return list(right["set"])
    return [right]


def _names(value: object, interface: str) -> bool:
    """Return True if a name, which may end in a wildcard, matches an interface."""
    if not isinstance(value, str):
        return False
    return interface.startswith(value[:-1]) if value.endswith("*") else value == interface


def _always_drops(expressions: Expressions) -> bool:
    """Return True if a rule without a match ends in a drop."""
    kinds = [next(iter(each)) for each in expressions if each]
    return bool(kinds) and kinds[-1] in _FINAL and "match" not in kinds
