"""Objects of the kernel's network that belong to a gateway: routes, rules, the filter.

Sources: ip-rule(8), ip-route(8).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from esp_gw.model import IPAddress, IPNetwork, PortRange
from esp_gw.network.firewall import Firewall

MAIN_TABLE = 254
MAX_BYPASS_RULES = 400
"""Rule priorities from the table's number minus this, to the table's number plus 1, are ours.

Bypass selectors may use all of these below the table's number, except the last one.
"""


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

    @property
    def is_guard(self) -> bool:
        """True if the route closes its prefix while there is no TUN."""
        return self.kind is RouteKind.UNREACHABLE


@dataclass(frozen=True, slots=True)
class Rule:
    """An `ip rule`; `inverted` makes it match packets without `fwmark`.

    `suppress_default` ignores the table's default route. `find_source` matches an IPv6 packet that
    has no source address yet by the one it would get. `own_output` matches packets of this host
    alone, not forwarded ones.
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
    own_output: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """The TUN's MTU, addresses and state, and our routes, rules and packet filter."""

    mtu: int
    addresses: frozenset[IPAddress] = frozenset()
    routes: frozenset[Route] = frozenset()
    rules: frozenset[Rule] = frozenset()
    firewall: Firewall | None = None
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class Host:
    """Addresses of the host's other interfaces, and the networks that these connect it to.

    `versions` are the IP versions that its kernel has, `routers` its default gateways.
    """

    addresses: frozenset[IPAddress] = frozenset()
    connected: frozenset[IPNetwork] = frozenset()
    versions: frozenset[int] = frozenset({4, 6})
    routers: frozenset[IPAddress] = frozenset()

    def address_beside(self, other: IPAddress) -> IPAddress | None:
        """Return the host's lowest address in a network that `other` is in, too, or None."""
        shared = [network for network in self.connected if other in network]
        beside = [each for each in self.addresses if any(each in network for network in shared)]
        return min(beside, key=int, default=None)


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
    if before.firewall is not None and before.firewall == now.firewall != there.firewall:
        names.append(f"nftables table {now.firewall.name}")
    return tuple(dict.fromkeys(names))
