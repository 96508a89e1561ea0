"""Changes to a gateway's state: each has a step, which orders it, and a description.

Changes of the kernel's network are here; those of the engine are in daemon/reconcile.py.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import ClassVar

from esp_gw.model import IPAddress, IPNetwork
from esp_gw.network.firewall import Firewall
from esp_gw.network.objects import Network, Route, RouteKind, Rule
from esp_gw.network.prefixes import PrefixIndex


class Step(enum.IntEnum):
    """The order in which changes are applied; safety depends on it.

    Prefixes become unreachable before they are routed into the TUN, but for those inside a prefix
    that is routed there already, which nothing may interrupt. What the kernel may refuse comes
    before SAs where it can. SAs are installed before the policies that need them, and removed after
    them. Inbound SAs come first: packets of a peer that already uses the new key must be accepted
    before the gateway replies with it.
    """

    GUARD_ROUTES = enum.auto()
    ADD_RULES = enum.auto()
    REPLACE_FIREWALL = enum.auto()
    SET_MTU = enum.auto()
    ADD_ADDRESSES = enum.auto()
    OPEN_SOCKETS = enum.auto()
    EVICT_SAS = enum.auto()
    INSTALL_INBOUND_SAS = enum.auto()
    INSTALL_OUTBOUND_SAS = enum.auto()
    REPLACE_POLICIES = enum.auto()
    ADD_TUN_ROUTES = enum.auto()
    COVERED_GUARD_ROUTES = enum.auto()
    REMOVE_FIREWALL = enum.auto()
    REMOVE_RULES = enum.auto()
    REMOVE_ROUTES = enum.auto()
    REMOVE_ADDRESSES = enum.auto()
    RETIRE_SAS = enum.auto()
    REMOVE_SAS = enum.auto()
    CLOSE_SOCKETS = enum.auto()


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the gateway's state, applied at its `step`.

    `is_guard` marks a change that keeps packets from leaving in the clear, even while the TUN is
    down.
    """

    step: ClassVar[Step]
    is_guard: ClassVar[bool] = False

    def describe(self) -> str:
        """Return the change in words, as `esp-gw reload` prints it, without keys."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class NetworkChange(Change):
    """A change of the kernel's network, for KernelNetwork.apply."""


@dataclass(frozen=True, slots=True)
class AddRoute(NetworkChange):
    """Add a route into the TUN, or replace the existing one to this destination."""

    step = Step.ADD_TUN_ROUTES
    route: Route

    def describe(self) -> str:
        """Return destination and kind."""
        return f"route {self.route.destination} {self.route.kind} added"


@dataclass(frozen=True, slots=True)
class AddGuardRoute(AddRoute):
    """Add an unreachable route, which guards its destination."""

    step = Step.GUARD_ROUTES
    is_guard = True


@dataclass(frozen=True, slots=True)
class AddCoveredGuardRoute(AddGuardRoute):
    """Add an unreachable route inside a prefix that is guarded and routed into the TUN already.

    It follows its own route into the TUN: before, it would stop the packets of the wider prefix.
    """

    step = Step.COVERED_GUARD_ROUTES


@dataclass(frozen=True, slots=True)
class RemoveRoute(NetworkChange):
    """Remove one of our routes."""

    step = Step.REMOVE_ROUTES
    route: Route

    def describe(self) -> str:
        """Return destination and kind."""
        return f"route {self.route.destination} {self.route.kind} removed"


@dataclass(frozen=True, slots=True)
class AddRule(NetworkChange):
    """Add a rule."""

    step = Step.ADD_RULES
    is_guard = True
    rule: Rule

    def describe(self) -> str:
        """Return the priority."""
        return f"rule {self.rule.priority} added"


@dataclass(frozen=True, slots=True)
class ReplaceFirewall(NetworkChange):
    """Make the packet filter's table hold exactly this, in one transaction."""

    step = Step.REPLACE_FIREWALL
    is_guard = True
    firewall: Firewall

    def describe(self) -> str:
        """Return the table's name."""
        return f"nftables table {self.firewall.name} replaced"


@dataclass(frozen=True, slots=True)
class RemoveFirewall(NetworkChange):
    """Delete the packet filter's table."""

    step = Step.REMOVE_FIREWALL

    def describe(self) -> str:
        """Return the object removed."""
        return "nftables table removed"


@dataclass(frozen=True, slots=True)
class RemoveRule(NetworkChange):
    """Remove one of our rules."""

    step = Step.REMOVE_RULES
    rule: Rule

    def describe(self) -> str:
        """Return the priority."""
        return f"rule {self.rule.priority} removed"


@dataclass(frozen=True, slots=True)
class AddAddress(NetworkChange):
    """Add an address to the TUN."""

    step = Step.ADD_ADDRESSES
    address: IPAddress

    def describe(self) -> str:
        """Return the address."""
        return f"address {self.address} added"


@dataclass(frozen=True, slots=True)
class RemoveAddress(NetworkChange):
    """Remove an address from the TUN."""

    step = Step.REMOVE_ADDRESSES
    address: IPAddress

    def describe(self) -> str:
        """Return the address."""
        return f"address {self.address} removed"


@dataclass(frozen=True, slots=True)
class SetMtu(NetworkChange):
    """Set the TUN's MTU, in bytes."""

    step = Step.SET_MTU
    mtu: int

    def describe(self) -> str:
        """Return the MTU."""
        return f"mtu {self.mtu}"


def network_changes(wanted: Network, there: Network) -> list[NetworkChange]:
    """Return the changes that lead from one network to another, sorted by their steps."""
    if wanted == there:
        return []
    new_routes = sorted(wanted.routes - there.routes, key=str)
    replaced = {(route.kind, route.destination, route.table) for route in new_routes}
    is_inside = any(_is_guarded_around(route, there.routes) for route in new_routes)
    covers = _covers(there.routes) if is_inside else {}
    changes: list[NetworkChange] = [_addition(route, covers) for route in new_routes]
    changes += [
        RemoveRoute(route)
        # Inside a prefix that stays routed, the unreachable route goes before the one into the TUN.
        for route in sorted(there.routes - wanted.routes, key=lambda r: (not r.is_guard, str(r)))
        if (route.kind, route.destination, route.table) not in replaced
    ]
    changes += [AddRule(rule) for rule in sorted(wanted.rules - there.rules, key=_precedence)]
    # The exceptions from a rule come before it, so the last rule goes first.
    gone = sorted(there.rules - wanted.rules, key=_precedence, reverse=True)
    changes += [RemoveRule(rule) for rule in gone]
    if wanted.firewall != there.firewall:
        changes.append(
            RemoveFirewall() if wanted.firewall is None else ReplaceFirewall(wanted.firewall)
        )
    if wanted.mtu != there.mtu:
        changes.append(SetMtu(wanted.mtu))
    new_addresses, old_addresses = (
        sorted(addresses, key=str)
        for addresses in (wanted.addresses - there.addresses, there.addresses - wanted.addresses)
    )
    changes += [AddAddress(address) for address in new_addresses]
    changes += [RemoveAddress(address) for address in old_addresses]
    return sorted(changes, key=lambda change: change.step)


def _is_guarded_around(route: Route, routes: Set[Route]) -> bool:
    """Return True if a wider prefix is guarded. Of many routes only those are looked for."""
    return any(
        Route(RouteKind.UNREACHABLE, route.destination.supernet(new_prefix=length), route.table)
        in routes
        for length in range(route.destination.prefixlen)
    )


def _covers(routes: Set[Route]) -> dict[int, PrefixIndex[bool]]:
    """Return the prefixes that are guarded and routed into the TUN, by table."""
    guarded = {(route.destination, route.table) for route in routes if route.is_guard}
    covers: dict[int, dict[IPNetwork, bool]] = {}
    for route in routes:
        if not route.is_guard and (route.destination, route.table) in guarded:
            covers.setdefault(route.table, {})[route.destination] = True
    return {table: PrefixIndex(prefixes) for table, prefixes in covers.items()}


def _addition(route: Route, covers: Mapping[int, PrefixIndex[bool]]) -> NetworkChange:
    if not route.is_guard:
        return AddRoute(route)
    cover = covers.get(route.table)
    if cover is not None and any(cover.around(route.destination, shorter=1)):
        return AddCoveredGuardRoute(route)
    return AddGuardRoute(route)


def _precedence(rule: Rule) -> tuple[int, str]:
    return rule.priority, str(rule)
