"""Pure computation of the kernel's network (routes, rules, addresses, MTU) for a set of tunnels.

Every prefix that a policy protects or discards has two routes in a table of our own: one into the
TUN at a better metric, and an unreachable one at the worst. If the TUN is gone because the daemon
was killed, the unreachable route keeps packets from leaving in the clear. A bypass policy becomes
an `ip rule` of higher precedence.

Sources: RFC 4301 4.4.1, ip-rule(8), ip-route(8).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from esp_gw.desired import Desired
from esp_gw.errors import NetworkError
from esp_gw.model import (
    LAST_TABLE,
    RESERVED_TABLES,
    Action,
    IPAddress,
    IPNetwork,
    Policy,
    PortRange,
    Selector,
)
from esp_gw.network.mtu import DEFAULT_PATH_MTU, inner_mtu, prefix_mtu
from esp_gw.network.prefixes import PrefixIndex

MAIN_TABLE = 254
MAX_BYPASS_RULES = 400
"""Rule priorities from the table's number minus this, to the table's number plus 1, are ours.

Bypass selectors may use all of these below the table's number, except the last one.
"""
_UNSPECIFIED = IPv4Network("0.0.0.0/32")
_RULE_PORTS = PortRange(1, 65534)
"""The ports that a rule can match (fib_rule_port_range_valid in the kernel)."""


class RouteKind(enum.StrEnum):
    """The kind of a route of ours: into the TUN, or unreachable."""

    TUN = "tun"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Route:
    """A route in one of our tables; `mtu` is 0 and `source` None if they don't apply."""

    kind: RouteKind
    destination: IPNetwork
    table: int
    mtu: int = 0
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """An `ip rule`; `inverted` makes it match packets without `fwmark`.

    `suppress_default` ignores the table's default route. `find_source` matches an IPv6 packet that
    has no source address yet by the one it would get.
    """

    version: int
    priority: int
    table: int
    fwmark: int | None = None
    inverted: bool = False
    source: IPNetwork | None = None
    destination: IPNetwork | None = None
    protocol: int | None = None
    source_port: PortRange | None = None
    destination_port: PortRange | None = None
    suppress_default: bool = False
    find_source: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """The TUN's MTU, addresses and state, and our routes and rules."""

    mtu: int
    addresses: frozenset[IPAddress] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()
    is_up: bool = True


def missing_from(there: Network, before: Network, now: Network) -> tuple[str, ...]:
    """Name the objects in both plans that are missing from `there`.

    Rules come first, because packets leak without them.
    """
    rules = sorted(
        (before.rules & now.rules) - there.rules, key=lambda rule: (rule.version, rule.priority)
    )
    names = [f"rule {rule.priority} (IPv{rule.version})" for rule in rules]
    routes = sorted((before.routes & now.routes) - there.routes, key=str)
    names += [f"route {route.destination} {route.kind}" for route in routes]
    addresses = (before.addresses & now.addresses) - there.addresses
    names += [f"address {address}" for address in sorted(addresses, key=str)]
    if before.mtu == now.mtu != there.mtu:
        names.append(f"mtu {now.mtu}")
    return tuple(dict.fromkeys(names))


def plan_network(
    desired: Desired, path_mtus: Mapping[IPAddress, int], host_addresses: frozenset[IPAddress]
) -> Network:
    """Return the network that the desired tunnels need.

    `path_mtus` gives bytes for each peer address, 1500 for a missing one. `host_addresses` are
    those of other interfaces; one of them is not added to the TUN again. Raises NetworkError if
    rules can't express the policies.
    """
    settings = desired.settings
    sas = {sa.name: sa for sa in desired.sas}
    _check_table(settings.table)
    # The first selector in the SPD determines a prefix's source address.
    selectors: dict[IPNetwork, Selector] = {}
    narrowest: dict[IPNetwork, int] = {}
    for policy in desired.policies:
        if policy.action is Action.BYPASS:
            continue
        for selector in policy.selectors:
            selectors.setdefault(selector.remote, selector)
            for sa in [sas[name] for name in policy.sas if name in sas]:
                mtu = inner_mtu(sa, path_mtus.get(sa.remote, DEFAULT_PATH_MTU))
                narrowest[selector.remote] = min(mtu, narrowest.get(selector.remote, mtu))
    addresses = frozenset(settings.addresses)
    protected = PrefixIndex(narrowest)
    routes = set()
    for prefix, selector in selectors.items():
        table = settings.table + (1 if prefix.prefixlen == 0 else 0)
        mtu = prefix_mtu(prefix, protected, settings.mtu)
        source = _source_hint(selector.local, settings.addresses, host_addresses)
        routes.add(Route(RouteKind.TUN, prefix, table, mtu, source))
        routes.add(Route(RouteKind.UNREACHABLE, prefix, table))
    return Network(
        mtu=max((route.mtu for route in routes), default=settings.mtu or DEFAULT_PATH_MTU),
        addresses=addresses - host_addresses,
        routes=frozenset(routes),
        rules=frozenset(_rules(desired, frozenset(selectors), host_addresses)),
    )


def _check_table(table: int) -> None:
    if table > LAST_TABLE or table in RESERVED_TABLES:
        raise NetworkError(
            f"routing table {table} can't be used: rules at its number must come before the "
            "kernel's own, and the next table must be free",
            where="gateway.table",
            hint=f"choose a number up to {LAST_TABLE} that is not 252 to 255",
        )


def _source_hint(
    local: IPNetwork, preferred: tuple[IPAddress, ...], host_addresses: frozenset[IPAddress]
) -> IPAddress | None:
    """Return an address of this host inside `local`, or None; the kernel refuses any other."""
    for address in preferred:
        if address.version == local.version and address in local:
            return address
    if local.prefixlen == 0:
        return None
    inside = [
        address
        for address in host_addresses
        if address.version == local.version
        and address in local
        and not (address.is_loopback or address.is_link_local)
    ]
    return min(inside, key=int, default=None)


def _rules(
    desired: Desired, prefixes: frozenset[IPNetwork], host_addresses: frozenset[IPAddress]
) -> list[Rule]:
    """Return rules of five kinds, in order of priority.

    They are for bypass policies; for near prefixes inside protected ones; for protected prefixes;
    for the exceptions of a protected default route; and for that default route. Each kind has its
    own priorities, because the kernel tries rules of equal priority in order of insertion.
    """
    settings = desired.settings
    protected = settings.table - 1
    near = _near_rules(desired, prefixes, protected)
    rules = _bypass_rules(desired, min((rule.priority for rule in near), default=protected))
    rules += near
    rules += [
        Rule(version, protected, settings.table, fwmark=settings.fwmark, inverted=True)
        for version in sorted({prefix.version for prefix in prefixes if prefix.prefixlen})
    ]
    rules += _default_route_rules(desired, host_addresses)
    return rules


def _near_rules(desired: Desired, prefixes: frozenset[IPNetwork], behind: int) -> list[Rule]:
    """Return rules that keep a local prefix inside a protected one out of the tunnel.

    An example is a spoke that protects 10.0.0.0/8 and has a LAN inside it. Such a near prefix uses
    the main table only for routes that are no default route. A protected prefix inside a near one
    stays protected: the longest prefix has the first rule.
    """
    settings = desired.settings
    selectors = [
        selector
        for policy in desired.policies
        if policy.action is Action.PROTECT
        for selector in policy.selectors
    ]
    remotes = {selector.remote for selector in selectors if selector.remote.prefixlen}
    locals_ = {selector.local for selector in selectors} - prefixes
    near = _contained_in(locals_, remotes)
    inside = _contained_in(prefixes, near)
    lengths = sorted({prefix.prefixlen for prefix in near | inside}, reverse=True)
    first = behind - len(lengths)
    if near and first < 2:  # 0 is the kernel's, and one is for the mark
        raise NetworkError(
            f"routing table {settings.table} leaves no rule priorities before it",
            where="gateway.table",
            hint=f"choose a number above {MAX_BYPASS_RULES}",
        )
    # An inverted rule can't also match a destination, so a rule for outer packets comes first.
    rules = [
        Rule(version, first - 1, MAIN_TABLE, fwmark=settings.fwmark)
        for version in sorted({prefix.version for prefix in near})
    ]
    for prefix in sorted(near | inside, key=str):
        priority = first + lengths.index(prefix.prefixlen)
        if prefix in near:
            rules.append(
                Rule(
                    prefix.version,
                    priority,
                    MAIN_TABLE,
                    destination=prefix,
                    suppress_default=True,
                )
            )
        else:
            rules.append(Rule(prefix.version, priority, settings.table, destination=prefix))
    return rules


def _contained_in(prefixes: Iterable[IPNetwork], wide: Iterable[IPNetwork]) -> set[IPNetwork]:
    """Return those of `prefixes` that lie inside a wider one of `wide`."""
    index = PrefixIndex(dict.fromkeys(wide, True))
    return {prefix for prefix in prefixes if any(index.around(prefix, shorter=1))}


def _bypass_rules(desired: Desired, behind: int) -> list[Rule]:
    bypass = [
        (policy, selector)
        for policy in desired.policies
        if policy.action is Action.BYPASS
        for selector in policy.selectors
    ]
    limit = min(behind - (desired.settings.table - MAX_BYPASS_RULES), behind - 1)
    if len(bypass) > limit:
        raise NetworkError(
            f"bypass policies have {len(bypass)} pairs of prefixes, and there is room for {limit}",
            where=bypass[limit][0].name,
            hint="use wider prefixes",
        )
    first = behind - len(bypass)
    return [
        Rule(
            version=selector.remote.version,
            priority=first + number,
            table=MAIN_TABLE,
            source=selector.local if selector.local.prefixlen else None,
            destination=selector.remote if selector.remote.prefixlen else None,
            protocol=selector.protocol,
            source_port=_rule_ports(policy, selector.local_port),
            destination_port=_rule_ports(policy, selector.remote_port),
        )
        for number, (policy, selector) in enumerate(bypass)
    ]


def _rule_ports(policy: Policy, ports: PortRange | None) -> PortRange | None:
    """Return the ports that a rule can match; packets of ports 0 and 65535 go to the TUN.

    The engine drops those there.
    """
    if ports is None:
        return None
    first, last = max(ports.first, _RULE_PORTS.first), min(ports.last, _RULE_PORTS.last)
    if first > last:
        raise NetworkError(
            f"a kernel rule can't match port {ports} alone",
            where=policy.name,
            hint=f"bypass policies take ports {_RULE_PORTS}",
        )
    return PortRange(first, last)


def _default_route_rules(desired: Desired, host_addresses: frozenset[IPAddress]) -> list[Rule]:
    """Return rules by which a protected default route takes packets of its local prefixes only.

    Otherwise the gateway's own outer packets and its own LAN would be routed into the TUN.
    """
    settings = desired.settings
    table = settings.table + 1
    ours = host_addresses | {*settings.addresses, *(sa.local for sa in desired.sas)}
    rules: set[Rule] = set()
    for policy in desired.policies:
        for selector in policy.selectors:
            if policy.action is Action.BYPASS or selector.remote.prefixlen:
                continue
            version, local = selector.remote.version, selector.local
            rules.add(Rule(version, settings.table, MAIN_TABLE, fwmark=settings.fwmark))
            if not local.prefixlen:
                rules.add(Rule(version, table, table))
                continue
            # Without the main table's default route, which would send packets in the clear.
            rules.add(
                Rule(version, settings.table, MAIN_TABLE, destination=local, suppress_default=True)
            )
            rules.add(Rule(version, table, table, source=local, find_source=version == 6))
            if version == 4 and any(address in local for address in ours):
                # A packet of this host is routed before it has a source. Without this rule, the
                # main table would send it in the clear, from a source that the policy protects.
                rules.add(Rule(version, table, table, source=_UNSPECIFIED))
    return sorted(rules, key=str)
