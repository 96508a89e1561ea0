"""Verdict of the host's packet filters on the first packet of a flow, as far as it can be told.

Conditions that can't be judged from outside, such as a limit or a match of iptables' own, are
neither true nor false: what depends on them is not certain.

Sources: libnftables-json(5), nft(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any

from esp_gw.model import IPAddress
from esp_gw.network.flow import Flow
from esp_gw.network.forward import Chain, Expressions
from esp_gw.protocol import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP

_OURS = "esp_gw"
"""Beginning of the names of the gateways' own tables."""
_FAMILIES = {"ip": 4, "ip6": 6}
_PROTOCOLS = {
    "icmp": IPPROTO_ICMP,
    "tcp": IPPROTO_TCP,
    "udp": IPPROTO_UDP,
    "sctp": IPPROTO_SCTP,
    "ipv6-icmp": IPPROTO_ICMPV6,
    "icmpv6": IPPROTO_ICMPV6,
}
_SILENT = {"match", "counter", "log", "comment", "notrack"}
"""Statements after which a rule goes on as before; of others nobody knows."""
_FINAL = {"accept": "accept", "drop": "drop", "reject": "drop"}
_CONTINUE = "continue"
_MAX_DEPTH = 16
_NEW = "new"

_Rules = Mapping[Chain, Sequence[Expressions]]


@dataclass(frozen=True, slots=True)
class Passage:
    """A packet at a hook of netfilter: `input`, `forward`, `postrouting` and so on.

    `arrives` and `leaves` are its interfaces; one that the hook has none of is empty.
    """

    hook: str
    flow: Flow
    arrives: str = ""
    leaves: str = ""

    @property
    def version(self) -> int:
        """The IP version."""
        return self.flow.source.version


@dataclass(frozen=True, slots=True)
class Dropped:
    """A base chain that drops a packet; not `certain` if a rule that can't be judged may not."""

    chain: Chain
    certain: bool


def dropped_by(ruleset: Sequence[Mapping[str, Any]], passage: Passage) -> Dropped | None:
    """Return the first base chain that drops a packet, other than the gateways' own, or None.

    `ruleset` are the entries of `nft -j list ruleset`.
    """
    rules = rules_of(ruleset)
    for chain, policy in bases(ruleset, "filter", passage):
        verdict, certain = _walk(rules, chain, passage, 0)
        if verdict == _CONTINUE:
            verdict = policy
        if verdict == "drop":
            return Dropped(chain, certain)
    return None


def rules_of(ruleset: Sequence[Mapping[str, Any]]) -> _Rules:
    """Return the rules of each chain, in order."""
    rules: dict[Chain, list[Expressions]] = {}
    for rule in (entry["rule"] for entry in ruleset if "rule" in entry):
        chain = Chain(rule["family"], rule["table"], rule["chain"])
        rules.setdefault(chain, []).append(rule.get("expr", ()))
    return rules


def bases(
    ruleset: Sequence[Mapping[str, Any]], kind: str, passage: Passage
) -> Iterator[tuple[Chain, str]]:
    """Yield the base chains of a type (`filter`, `nat`) that see a packet, with their policies.

    Those of the gateways are left out.
    """
    found = [entry["chain"] for entry in ruleset if entry.get("chain", {}).get("hook")]
    for base in sorted(found, key=lambda each: int(each.get("prio", 0))):
        chain = Chain(base["family"], base["table"], base["name"])
        at_hook = base["hook"] == passage.hook and base.get("type") == kind
        known = _FAMILIES.get(chain.family, passage.version if chain.family == "inet" else 0)
        if at_hook and known == passage.version and not chain.table.startswith(_OURS):
            yield chain, base.get("policy", "accept")


def acceptance(chain: Chain, passage: Passage, tun: str) -> str:
    """Return the command that lets what goes into or comes from the TUN through a chain."""
    if passage.hook == "forward":
        return chain.commands(tun)
    is_input = passage.hook == "input"
    network = "ip" if passage.version == 4 else "ip6"
    other = f"saddr {passage.flow.source}" if is_input else f"daddr {passage.flow.destination}"
    key = "iifname" if is_input else "oifname"
    where = f"{chain.family} {chain.table} {chain.name}"
    return f"'nft insert rule {where} {key} {tun} {network} {other} accept'"


def _walk(rules: _Rules, chain: Chain, passage: Passage, depth: int) -> tuple[str, bool]:
    """Return the verdict of a chain, `continue` if it has none, and True if it is certain."""
    certain = depth < _MAX_DEPTH
    for expressions in rules.get(chain, ()) if certain else ():
        found, verdict = _judged(expressions, passage)
        if found is False or verdict == _CONTINUE:
            continue
        target = verdict if isinstance(verdict, Jump) else None
        ends = isinstance(verdict, str)
        if target is not None:
            inner = Chain(chain.family, chain.table, target.chain)
            verdict, sure = _walk(rules, inner, passage, depth + 1)
            ends = verdict != _CONTINUE or target.is_goto
        else:
            sure = verdict is not None
        if found and ends:
            return (_CONTINUE if verdict == "return" else str(verdict)), certain and sure
        # It may be the end of the packet's way through this chain, or not.
        certain = certain and sure and not ends
    return _CONTINUE, certain


@dataclass(frozen=True, slots=True)
class Jump:
    """A verdict that goes on in another chain, and comes back from there unless `is_goto`."""

    chain: str
    is_goto: bool


def _judged(expressions: Expressions, passage: Passage) -> tuple[bool | None, str | Jump | None]:
    """Return True if a rule applies, and its verdict; None for what nobody knows."""
    try:
        return applies(expressions, passage), _verdict(expressions, passage)
    except (AttributeError, KeyError, TypeError, ValueError):
        # Another version of nft may write it in another way.
        return None, None


def applies(expressions: Expressions, passage: Passage) -> bool | None:
    """Return True if a packet meets all conditions of a rule, None if nobody knows."""
    answers: list[bool | None] = []
    for each in expressions:
        if "match" in each:
            answers.append(_meets(each["match"], passage))
        elif not each.keys() & (_SILENT | _FINAL.keys() | {"return", "jump", "goto", "vmap"}):
            answers.append(None)
    if False in answers:
        return False
    return None if None in answers else True


def _verdict(expressions: Expressions, passage: Passage) -> str | Jump | None:
    """Return the verdict of a rule, `continue` without one, None for one that can't be told."""
    for each in expressions:
        if "vmap" in each:
            return _mapped(each["vmap"], passage)
        found = written(each)
        if found is not None:
            return found
    unknown = any("queue" in each or "xt" in each for each in expressions)
    return None if unknown and not _has_match_alone(expressions) else _CONTINUE


def _has_match_alone(expressions: Expressions) -> bool:
    """Return True if what is of iptables in a rule without a verdict is no target."""
    return all(each["xt"].get("type") == "match" for each in expressions if "xt" in each)


def written(statement: Mapping[str, Any]) -> str | Jump | None:
    """Return the verdict that a statement is, or None."""
    for name, verdict in _FINAL.items():
        if name in statement:
            return verdict
    if "return" in statement:
        return "return"
    for name in ("jump", "goto"):
        if name in statement:
            return Jump(str(statement[name]["target"]), name == "goto")
    return None


def _mapped(vmap: Mapping[str, Any], passage: Passage) -> str | Jump | None:
    """Return the verdict that a map has for a packet."""
    data = vmap.get("data")
    if not isinstance(data, Mapping) or not isinstance(data.get("set"), list):
        return None
    for value, verdict in data["set"]:
        found = _compare(vmap["key"], value, passage)
        if found is None:
            return None
        if found:
            return written(verdict) or _CONTINUE
    return _CONTINUE


def _meets(match: Mapping[str, Any], passage: Passage) -> bool | None:
    found = _compare(match["left"], match["right"], passage)
    if found is None or match["op"] in ("==", "in"):
        return found
    return not found if match["op"] == "!=" else None


def _compare(left: Any, right: Any, passage: Passage) -> bool | None:
    """Return True if a property of the packet is, or is among, what a rule names."""
    if not isinstance(left, Mapping):
        return None
    if "meta" in left:
        return _compare_meta(left["meta"].get("key"), right, passage)
    if "payload" in left:
        return _compare_header(left["payload"], right, passage)
    if left.get("ct", {}).get("key") == "state":
        return any(value == _NEW for value in _values(right))
    return None


def _compare_meta(key: object, right: Any, passage: Passage) -> bool | None:
    flow = passage.flow
    match key:
        case "iifname" | "iif":
            return _names(right, passage.arrives)
        case "oifname" | "oif":
            return _names(right, passage.leaves)
        case "l4proto":
            return _is_protocol(right, flow.protocol)
        case "nfproto":
            return f"ipv{passage.version}" in _values(right)
        case "protocol":
            return ("ip" if passage.version == 4 else "ip6") in _values(right)
        case _:
            return None


def _compare_header(payload: Mapping[str, Any], right: Any, passage: Passage) -> bool | None:
    flow, protocol, field = passage.flow, payload.get("protocol"), payload.get("field")
    if protocol in ("ip", "ip6"):
        if passage.version != (4 if protocol == "ip" else 6):
            return False
        if field in ("protocol", "nexthdr"):
            return _is_protocol(right, flow.protocol)
        if field in ("saddr", "daddr"):
            return _holds(right, flow.source if field == "saddr" else flow.destination)
        return None
    if protocol in _PROTOCOLS or protocol == "th":
        known = flow.protocol
        if protocol != "th" and known is not None and known != _PROTOCOLS[str(protocol)]:
            return False
        port = {"sport": flow.source_port, "dport": flow.destination_port}.get(str(field))
        if known is None or port is None:
            return None
        return _holds_number(right, port)
    return None


def _values(right: Any) -> list[Any]:
    """Return the elements of a set, or the one value."""
    if isinstance(right, Mapping) and isinstance(right.get("set"), list):
        return list(right["set"])
    return list(right) if isinstance(right, list) else [right]


def _any(answers: Iterable[bool | None]) -> bool | None:
    found = list(answers)
    if True in found:
        return True
    return None if None in found else False


def _names(right: Any, interface: str) -> bool | None:
    def one(value: Any) -> bool | None:
        if not isinstance(value, str) or value.startswith("@"):
            return None
        return interface.startswith(value[:-1]) if value.endswith("*") else value == interface

    return _any(one(value) for value in _values(right))


def _is_protocol(right: Any, protocol: int | None) -> bool | None:
    def one(value: Any) -> bool | None:
        number = _PROTOCOLS.get(value, value) if isinstance(value, str) else value
        return number == protocol if isinstance(number, int) else None

    return None if protocol is None else _any(one(value) for value in _values(right))


def _holds(right: Any, address: IPAddress) -> bool | None:
    def one(value: Any) -> bool | None:
        try:
            if isinstance(value, Mapping) and "prefix" in value:
                prefix = value["prefix"]
                return address in ip_network(f"{prefix['addr']}/{prefix['len']}", strict=False)
            if isinstance(value, Mapping) and "range" in value:
                first, last = (ip_address(each) for each in value["range"])
                return int(first) <= int(address) <= int(last)
            return ip_address(value) == address
        except (ValueError, TypeError, KeyError):
            return None

    return _any(one(value) for value in _values(right))


def _holds_number(right: Any, number: int) -> bool | None:
    def one(value: Any) -> bool | None:
        if isinstance(value, Mapping) and isinstance(value.get("range"), list):
            first, last = value["range"]
            if isinstance(first, int) and isinstance(last, int):
                return first <= number <= last
            return None
        return value == number if isinstance(value, int) else None

    return _any(one(value) for value in _values(right))
