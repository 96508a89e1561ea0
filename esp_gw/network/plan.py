"""Pure computation of the kernel's network (routes, rules, filter, addresses, MTU) for tunnels.

Every prefix that a policy protects or discards has two routes in a table of our own: one into the
TUN at a better metric, and an unreachable one at the worst. If the TUN is gone because the daemon
ended, the unreachable route keeps packets from leaving in the clear. A bypass policy becomes an
`ip rule` of higher precedence. The packet filter closes what routes can't (firewall.py).

Near prefixes are local ones, and networks that an interface of the host is connected to, inside a
protected prefix: they stay reachable without the TUN.

Sources: RFC 4301 4.4.1, ip-rule(8), ip-route(8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from esp_gw.desired import Desired
from esp_gw.errors import NetworkError
from esp_gw.model import LAST_TABLE, RESERVED_TABLES, Action, IPAddress, IPNetwork
from esp_gw.network.firewall import plan_firewall
from esp_gw.network.mtu import DEFAULT_PATH_MTU, inner_mtu, prefix_mtu
from esp_gw.network.objects import Host, Network, Route, RouteKind
from esp_gw.network.prefixes import PrefixIndex
from esp_gw.network.rules import Near, plan_rules
from esp_gw.network.sources import SourceHints, own_addresses


def plan_network(desired: Desired, path_mtus: Mapping[IPAddress, int], host: Host) -> Network:
    """Return the network that the desired tunnels need on a host.

    `path_mtus` gives bytes for each peer address, 1500 for a missing one. An address that the host
    has on another interface is added to the TUN again only for masquerade (`sources.py`), that of a
    default gateway not at all. Of an IP version that the kernel lacks there is nothing. Raises
    NetworkError if rules can't express the policies.
    """
    settings = desired.settings
    sas = {sa.name: sa for sa in desired.sas}
    _check_table(settings.table)
    # By remote prefix, in the order of the SPD; what is discarded needs no source.
    local_of: dict[IPNetwork, dict[IPNetwork, None]] = {}
    narrowest: dict[IPNetwork, int] = {}
    for policy in desired.policies:
        if policy.action is Action.BYPASS:
            continue
        for selector in policy.selectors:
            ours = local_of.setdefault(selector.remote, {})
            if policy.action is Action.PROTECT:
                ours[selector.local] = None
            for sa in [sas[name] for name in policy.sas if name in sas]:
                mtu = inner_mtu(sa, path_mtus.get(sa.remote, DEFAULT_PATH_MTU))
                narrowest[selector.remote] = min(mtu, narrowest.get(selector.remote, mtu))
    protected = PrefixIndex(narrowest)
    configured = own_addresses(settings.addresses, host)
    sources = SourceHints(configured, host.addresses)
    routes = set()
    for prefix, ours in local_of.items():
        table = settings.table + (1 if prefix.prefixlen == 0 else 0)
        mtu = prefix_mtu(prefix, protected, settings.mtu)
        source = sources.of(tuple(ours))
        routes.add(Route(RouteKind.TUN, prefix, table, mtu, source))
        routes.add(Route(RouteKind.UNREACHABLE, prefix, table))
    near = near_prefixes(desired, host)
    rules = plan_rules(desired, frozenset(local_of), near, host.addresses)
    own = frozenset(configured) - host.addresses
    addresses = own | sources.for_masquerade(own, desired)
    there = host.versions
    usable = frozenset(each for each in routes if each.destination.version in there)
    return Network(
        mtu=max((route.mtu for route in usable), default=settings.mtu or DEFAULT_PATH_MTU),
        addresses=frozenset(each for each in addresses if each.version in there),
        routes=usable,
        rules=frozenset(each for each in rules if each.version in there),
        firewall=plan_firewall(settings, desired.policies, near.prefixes),
    )


def protection(desired: Desired) -> Desired:
    """Return the part of the desired state that says what is protected, without SAs and keys."""
    policies = tuple(replace(policy, sas=()) for policy in desired.policies)
    return Desired(desired.settings, policies=policies)


def plan_guard(desired: Desired, host: Host) -> Network:
    """Return the part of the network that keeps protected prefixes closed without a TUN.

    Its `mtu` is 0. Raises NetworkError if rules can't express the policies.
    """
    whole = plan_network(protection(desired), {}, host)
    return Network(
        mtu=0,
        routes=frozenset(route for route in whole.routes if route.is_guard),
        rules=whole.rules,
        firewall=whole.firewall,
    )


def near_prefixes(desired: Desired, host: Host) -> Near:
    """Return the near prefixes, and the protected ones inside them.

    An example is a spoke that protects 10.0.0.0/8 and has a LAN inside it. A prefix inside a
    discarded one is discarded. A connected network that is itself a protected prefix is near,
    because its neighbours would be locked out; a single address, as on a point-to-point link, is
    protected.
    """
    selectors = [
        (policy.action, selector)
        for policy in desired.policies
        if policy.action is not Action.BYPASS
        for selector in policy.selectors
    ]
    prefixes = {selector.remote for _, selector in selectors}
    protected = {selector.remote for action, selector in selectors if action is Action.PROTECT}
    # Under a default route, whatever its policy, the LAN and the uplink remain reachable.
    around = PrefixIndex(
        {each: (each.prefixlen, each in protected or not each.prefixlen) for each in prefixes}
    )
    candidates = {selector.local for _, selector in selectors} - prefixes
    candidates |= {each for each in host.connected if each.num_addresses > 1} | (
        host.connected - prefixes
    )
    near = {
        prefix
        for prefix in candidates
        if prefix.prefixlen and max(around.around(prefix), default=(0, False))[1]
    }
    # A protected prefix inside a near one is an exception from it.
    wide = PrefixIndex(dict.fromkeys(near, True))
    inside = {prefix for prefix in prefixes if any(wide.around(prefix, shorter=1))}
    return Near(frozenset(near), frozenset(inside))


def _check_table(table: int) -> None:
    if table > LAST_TABLE or table in RESERVED_TABLES:
        raise NetworkError(
            f"routing table {table} can't be used: rules at its number must come before the "
            "kernel's own, and the next table must be free",
            where="gateway.table",
            hint=f"choose a number up to {LAST_TABLE} that is not 252 to 255",
        )
