"""What the kernel's network must look like for a set of tunnels: a pure computation.

Every prefix that a policy protects or discards is routed into the TUN from a table of our own, at
the lowest metric, and made unreachable at the highest: where the TUN is gone, because the daemon
was killed, its packets find no other way in the clear. A bypass policy is an `ip rule` in front.

Sources: RFC 4301 4.4.1, ip-rule(8), ip-route(8).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from esp_gw.esp import max_payload
from esp_gw.model import (
    Action,
    Desired,
    Encapsulation,
    IPAddress,
    IPNetwork,
    Mode,
    Policy,
    PortRange,
    Sa,
    Selector,
)
from esp_gw.wire import IPV4_HEADER_LEN, IPV6_HEADER_LEN

MAIN_TABLE = 254
DEFAULT_PATH_MTU = 1500
MIN_IPV6_MTU = 1280
UDP_HEADER_LEN = 8
MAX_BYPASS_RULES = 400
"""Rule priorities from the table's number minus this, to the table's number plus 1, are ours."""


class RouteKind(enum.StrEnum):
    """Where a route of ours leads."""

    TUN = "tun"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class Route:
    """A route in one of our tables; `mtu` is 0 and `source` None where they don't matter."""

    kind: RouteKind
    destination: IPNetwork
    table: int
    mtu: int = 0
    source: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """An `ip rule`; `inverted` makes it match what `fwmark` doesn't."""

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


@dataclass(frozen=True, slots=True)
class Network:
    """The TUN's MTU and addresses, our routes and our rules."""

    mtu: int
    addresses: frozenset[IPAddress] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()


def inner_mtu(sa: Sa, path_mtu: int) -> int:
    """Return the largest inner packet whose outer packet fits `path_mtu` bytes."""
    header = IPV4_HEADER_LEN if sa.remote.version == 4 else IPV6_HEADER_LEN
    udp = UDP_HEADER_LEN if sa.encapsulation is Encapsulation.UDP else 0
    payload = max_payload(path_mtu - header - udp, sa.suite)
    return payload + header if sa.mode is Mode.TRANSPORT else payload


def plan_network(
    desired: Desired, path_mtus: Mapping[IPAddress, int], host_addresses: frozenset[IPAddress]
) -> Network:
    """Return the network that the desired tunnels need.

    `path_mtus` gives bytes for each peer address, 1500 where one is missing; `host_addresses` are
    those of other interfaces: one that is there already is not put on the TUN a second time.
    """
    settings = desired.settings
    sas = {sa.name: sa for sa in desired.sas}
    mtus: dict[IPNetwork, int] = {}
    selectors: dict[IPNetwork, Selector] = {}
    for policy in desired.policies:
        if policy.action is Action.BYPASS:
            continue
        mtu = _policy_mtu(policy, sas, path_mtus, settings.mtu)
        for selector in policy.selectors:
            prefix = selector.remote
            mtus[prefix] = min(mtu, mtus.get(prefix, mtu))
            selectors.setdefault(prefix, selector)
    addresses = frozenset(settings.addresses)
    usable = addresses | host_addresses | {sa.local for sa in desired.sas}
    routes = set()
    for prefix, mtu in mtus.items():
        table = settings.table + (1 if prefix.prefixlen == 0 else 0)
        source = _source_hint(selectors[prefix].local, settings.addresses, usable)
        routes.add(Route(RouteKind.TUN, prefix, table, mtu, source))
        routes.add(Route(RouteKind.UNREACHABLE, prefix, table))
    return Network(
        mtu=max(mtus.values(), default=settings.mtu or DEFAULT_PATH_MTU),
        addresses=addresses - host_addresses,
        routes=frozenset(routes),
        rules=frozenset(_rules(desired, frozenset(selectors))),
    )


def _policy_mtu(
    policy: Policy, sas: Mapping[str, Sa], path_mtus: Mapping[IPAddress, int], limit: int | None
) -> int:
    sa = sas.get(policy.sa or "")
    mtu = DEFAULT_PATH_MTU
    if sa is not None:
        mtu = inner_mtu(sa, path_mtus.get(sa.remote, DEFAULT_PATH_MTU))
    if any(selector.remote.version == 6 for selector in policy.selectors):
        # IPv6 has no smaller links (RFC 8200 5); the outer packet is fragmented or dropped then.
        mtu = max(mtu, MIN_IPV6_MTU)
    return min(mtu, limit) if limit else mtu


def _source_hint(
    local: IPNetwork, preferred: tuple[IPAddress, ...], usable: frozenset[IPAddress]
) -> IPAddress | None:
    for address in preferred:
        if address.version == local.version and address in local:
            return address
    inside = [a for a in usable if a.version == local.version and a in local]
    return min(inside, key=int, default=None)


def _rules(desired: Desired, prefixes: frozenset[IPNetwork]) -> list[Rule]:
    settings = desired.settings
    bypass = [
        selector
        for policy in desired.policies
        if policy.action is Action.BYPASS
        for selector in policy.selectors
    ]
    first = settings.table - len(bypass)
    rules = [
        Rule(
            version=selector.remote.version,
            priority=first + number,
            table=MAIN_TABLE,
            source=None if selector.local.prefixlen == 0 else selector.local,
            destination=selector.remote,
            protocol=selector.protocol,
            source_port=selector.local_port,
            destination_port=selector.remote_port,
        )
        for number, selector in enumerate(bypass)
    ]
    rules += [
        Rule(version, settings.table, settings.table, fwmark=settings.fwmark, inverted=True)
        for version in sorted({prefix.version for prefix in prefixes if prefix.prefixlen})
    ]
    rules += _default_route_rules(desired)
    return rules


def _default_route_rules(desired: Desired) -> list[Rule]:
    """A protected 0.0.0.0/0 takes only what comes from its local prefixes.

    Otherwise the gateway's own outer packets and its own LAN would be routed into the TUN.
    """
    settings = desired.settings
    rules: set[Rule] = set()
    for policy in desired.policies:
        for selector in policy.selectors:
            if policy.action is Action.BYPASS or selector.remote.prefixlen:
                continue
            version, local = selector.remote.version, selector.local
            rules.add(Rule(version, settings.table, MAIN_TABLE, fwmark=settings.fwmark))
            if local.prefixlen:
                rules.add(Rule(version, settings.table, MAIN_TABLE, destination=local))
            rules.add(
                Rule(
                    version,
                    settings.table + 1,
                    settings.table + 1,
                    source=local if local.prefixlen else None,
                )
            )
    return sorted(rules, key=str)

