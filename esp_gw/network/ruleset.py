"""The packet filter as commands for `nft -j`, without I/O.

One transaction replaces the contents of the table; its counters go on. Device names stand in it,
never indices: the TUN may be absent. Needs no connection tracking.

Sources: libnftables-json(5), nft(8).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from esp_gw.model import IPNetwork, PortRange, Selector
from esp_gw.network.firewall import Firewall, FirewallDrop
from esp_gw.network.ranges import Range
from esp_gw.protocol import BOOTPC_PORT, BOOTPS_PORT, IPPROTO_ESP, IPPROTO_UDP

Json = dict[str, Any]

FAMILY = "inet"
_IP = {4: "ip", 6: "ip6"}
_SET_TYPE = {4: "ipv4_addr", 6: "ipv6_addr"}
_ACCEPT: Json = {"accept": None}
_LINK_SCOPE = {
    4: ("224.0.0.0/4", "255.255.255.255", "169.254.0.0/16"),
    6: ("ff00::/8", "fe80::/10"),
}
_NEIGHBOUR_DISCOVERY = (
    "nd-neighbor-solicit",
    "nd-neighbor-advert",
    "nd-router-solicit",
    "nd-router-advert",
    "nd-redirect",
)
_PORT_FIELDS = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
# Bits from the start of an ICMP error to the protocol field of the IP header that it quotes.
_QUOTED_PROTOCOL = {4: (8 + 9) * 8, 6: (8 + 6) * 8}
_ICMP_ERRORS = {
    4: ("icmp", ("destination-unreachable", "time-exceeded", "parameter-problem")),
    6: (
        "icmpv6",
        ("destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"),
    ),
}
_HOOKS = {"egress": "postrouting", "ingress": "prerouting", "transit": "forward"}
_CHAINS = ("scope", "bypass-out", "bypass-in", "outer-in", "must-be-near", *_HOOKS)
_SETS = ("remote", "near", "full", "mirrored")


def replacement(firewall: Firewall, stale: Iterable[str] = ()) -> Json:
    """Return the transaction that makes the table hold exactly this filter.

    Tables named in `stale` are deleted by it, whether they exist or not.
    """
    table = {"family": FAMILY, "table": firewall.name}
    commands: list[Json] = [_add("table", {"family": FAMILY, "name": firewall.name})]
    for name in stale:
        commands += removal(name)["nftables"]
    commands.append({"flush": {"table": {"family": FAMILY, "name": firewall.name}}})
    commands += [_add("counter", {**table, "name": str(reason)}) for reason in FirewallDrop]
    for name in _SETS:
        for version, kind in _SET_TYPE.items():
            each = {**table, "name": f"{name}{version}"}
            commands.append(_add("set", {**each, "type": kind, "flags": ["interval"]}))
            commands.append({"flush": {"set": each}})
            elements = [
                _element(part) for part in _ranges(firewall, name) if part.first.version == version
            ]
            if elements:
                commands.append(_add("element", {**each, "elem": elements}))
    for name in _CHAINS:
        chain: Json = {**table, "name": name}
        if name in _HOOKS:
            chain |= {"type": "filter", "hook": _HOOKS[name], "prio": 0, "policy": "accept"}
        commands.append(_add("chain", chain))
    for name, rules in _rules(firewall).items():
        commands += [_add("rule", {**table, "chain": name, "expr": list(rule)}) for rule in rules]
    return {"nftables": commands}


def difference(before: Firewall, firewall: Firewall) -> Json | None:
    """Return the transaction between filters of which one only has more protected addresses.

    None for any other two. Ranges that both have are the same objects.
    """
    if replace(before, remote=firewall.remote) != firewall:
        return None
    there, wanted = ({id(part): part for part in each.remote} for each in (before, firewall))
    new = [part for key, part in wanted.items() if key not in there]
    gone = [part for key, part in there.items() if key not in wanted]
    if new and gone:
        # Neighbours that became one: the kernel takes no range that meets another.
        return None
    commands: list[Json] = []
    for version in _SET_TYPE:
        elements = [_element(part) for part in (*new, *gone) if part.first.version == version]
        if elements:
            name = {"family": FAMILY, "table": firewall.name, "name": f"remote{version}"}
            body = {"element": {**name, "elem": elements}}
            commands.append({"add" if new else "delete": body})
    return {"nftables": commands}


def differs_by(before: Json, after: Json, transaction: Json) -> bool:
    """Return True if listings of the table differ by what a `difference` says, as it seems."""
    first, second = (_apart(each) for each in (before, after))
    if first[0] != second[0]:
        return False
    number = sum(
        (1 if kind == "add" else -1) * len(body["element"]["elem"])
        for command in transaction["nftables"]
        for kind, body in command.items()
    )
    one, other = (set(map(repr, each[1])) for each in (first, second))
    return len(other) - len(one) == number and (one <= other or other <= one)


def _apart(listing: Json) -> tuple[list[Json], list[Json]]:
    """Return a listing without the elements of the sets of protected addresses, and these."""
    rest: list[Json] = []
    found: list[Json] = []
    for entry in listing["nftables"]:
        body = entry.get("set", {})
        if body.get("name") not in ("remote4", "remote6"):
            rest.append(entry)
            continue
        found += body.get("elem", [])
        rest.append({"set": {key: value for key, value in body.items() if key != "elem"}})
    return rest, found


def removal(name: str) -> Json:
    """Return the transaction that deletes a table, whether it exists or not."""
    table = {"family": FAMILY, "name": name}
    return {"nftables": [_add("table", table), {"delete": {"table": table}}]}


def _add(kind: str, body: Json) -> Json:
    return {"add": {kind: body}}


def _element(part: Range) -> Json:
    return {"range": [str(part.first), str(part.last)]}


def _ranges(firewall: Firewall, name: str) -> tuple[Range, ...]:
    return {
        "remote": firewall.remote,
        "near": firewall.near,
        "full": firewall.full,
        "mirrored": firewall.mirrored,
    }[name]


def _rules(firewall: Firewall) -> dict[str, list[Sequence[Json]]]:
    """Return the rules of each chain, each a sequence of expressions."""
    free = ["lo", firewall.interface]
    return {
        "scope": _scope(),
        "bypass-out": [_bypass(each, "local", "remote") for each in firewall.bypass],
        "bypass-in": [_bypass(each, "remote", "local") for each in firewall.bypass],
        "outer-in": _outer_in(firewall),
        "must-be-near": [
            [_jump("scope")],
            [_jump("outer-in")],
            [_jump("bypass-in")],
            # The way back leads where the packet came from, and so not into the TUN.
            [_reverse_path(exists=True), _ACCEPT],
            _drop(FirewallDrop.CLEARTEXT_IN),
        ],
        # After every decision on the route, and before source NAT hides the source.
        "egress": [
            [_match(_meta("oifname"), {"set": free}), _ACCEPT],
            [_match(_meta("mark"), firewall.fwmark), _ACCEPT],
            [_jump("scope")],
            _own_dhcp(),
            *[[_in_set("daddr", "near", version), _ACCEPT] for version in _IP],
            [_jump("bypass-out")],
            *[
                [_in_set(side, name, version), *_drop(FirewallDrop.CLEARTEXT_OUT)]
                for side, name in (("daddr", "remote"), ("saddr", "full"))
                for version in _IP
            ],
        ],
        "ingress": [
            [_match(_meta("iifname"), {"set": free}), _ACCEPT],
            *[
                [_in_set(side, name, version), {"goto": {"target": "must-be-near"}}]
                for side, name in (("saddr", "remote"), ("daddr", "full"))
                for version in _IP
            ],
        ],
        "transit": _transit(firewall),
    }


def _scope() -> list[Sequence[Json]]:
    """Link scope, multicast and neighbour discovery, which are never protected."""
    link_scope = [
        [_match(_payload(_IP[version], "daddr"), {"set": [_prefix(text) for text in prefixes]})]
        for version, prefixes in _LINK_SCOPE.items()
    ]
    return [
        *[[*match, _ACCEPT] for match in link_scope],
        [
            _match(_payload("icmpv6", "type"), {"set": list(_NEIGHBOUR_DISCOVERY)}),
            _match(_payload("ip6", "hoplimit"), 255),
            _ACCEPT,
        ],
    ]


def _outer_in(firewall: Firewall) -> list[Sequence[Json]]:
    """Packets that the gateway's sockets, IKE and path MTU discovery need from any address."""
    errors = [
        [
            _match(_payload(protocol, "type"), {"set": list(types)}),
            _match(
                {"payload": {"base": "th", "offset": _QUOTED_PROTOCOL[version], "len": 8}},
                {"set": [IPPROTO_UDP, IPPROTO_ESP]},
            ),
            _ACCEPT,
        ]
        for version, (protocol, types) in _ICMP_ERRORS.items()
    ]
    return [
        [_match(_fib("type", "daddr"), "local", "!="), {"return": None}],
        [_match(_meta("l4proto"), IPPROTO_ESP), _ACCEPT],
        [_match(_payload("udp", "dport"), {"set": sorted(firewall.ports)}), _ACCEPT],
        [
            _match(_payload("udp", "sport"), BOOTPS_PORT),
            _match(_payload("udp", "dport"), BOOTPC_PORT),
            _ACCEPT,
        ],
        # The first fragment decides; the others have no ports, and are nothing without it.
        [_match({"&": [_payload("ip", "frag-off"), 0x1FFF]}, 0, "!="), _ACCEPT],
        [_match({"exthdr": {"name": "frag", "field": "frag-off"}}, 0, "!="), _ACCEPT],
        *errors,
    ]


def _own_dhcp() -> Sequence[Json]:
    return [
        _match(_payload("udp", "sport"), BOOTPC_PORT),
        _match(_payload("udp", "dport"), BOOTPS_PORT),
        _match(_fib("type", "saddr"), "local"),
        _ACCEPT,
    ]


def _transit(firewall: Firewall) -> list[Sequence[Json]]:
    """Return the rules against forwarded packets that came from the TUN, or are forged."""
    name = firewall.interface
    into = _match(_meta("oifname"), name)
    rules: list[Sequence[Json]] = []
    if firewall.mirrored:
        rules += [
            [
                into,
                _match(_meta("iifname"), name),
                _in_set("saddr", "mirrored", version),
                _in_set("daddr", "mirrored", version),
                *_drop(FirewallDrop.LOOP),
            ]
            for version in _IP
        ]
    if firewall.checks_sources:
        rules.append(
            [
                into,
                _match(_meta("iifname"), name, "!="),
                _reverse_path(exists=False),
                *_drop(FirewallDrop.SPOOFED_SOURCE),
            ]
        )
    return rules


def _bypass(selector: Selector, source: str, destination: str) -> Sequence[Json]:
    """Return the rule that accepts the packets of a bypass selector in one direction."""
    prefixes: dict[str, IPNetwork] = {"local": selector.local, "remote": selector.remote}
    ports = {"local": selector.local_port, "remote": selector.remote_port}
    version = selector.remote.version
    expressions = [_match(_meta("nfproto"), f"ipv{version}")]
    for field, side in (("saddr", source), ("daddr", destination)):
        if prefixes[side].prefixlen:
            expressions.append(_match(_payload(_IP[version], field), _prefix(str(prefixes[side]))))
    if selector.protocol is not None:
        expressions.append(_match(_meta("l4proto"), selector.protocol))
        name = _PORT_FIELDS.get(selector.protocol, "th")
        for field, side in (("sport", source), ("dport", destination)):
            bounds = ports[side]
            if bounds is not None:
                expressions.append(_match(_payload(name, field), _port_range(bounds)))
    return [*expressions, _ACCEPT]


def _port_range(ports: PortRange) -> Json:
    return {"range": [ports.first, ports.last]}


def _match(left: Json, right: object, operator: str = "==") -> Json:
    return {"match": {"op": operator, "left": left, "right": right}}


def _in_set(field: str, name: str, version: int) -> Json:
    return _match(_payload(_IP[version], field), f"@{name}{version}")


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _meta(key: str) -> Json:
    return {"meta": {"key": key}}


def _fib(result: str, *flags: str) -> Json:
    return {"fib": {"result": result, "flags": list(flags)}}


def _reverse_path(*, exists: bool) -> Json:
    return _match(_fib("oif", "saddr", "iif"), exists)


def _prefix(text: str) -> object:
    address, _, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}} if length else address


def _jump(chain: str) -> Json:
    return {"jump": {"target": chain}}


def _drop(reason: FirewallDrop) -> Sequence[Json]:
    return [{"counter": str(reason)}, {"drop": None}]
