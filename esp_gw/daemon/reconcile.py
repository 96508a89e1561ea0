"""From what is wanted and what is there to the actions between them: no socket, no clock.

The order of the actions is the safety: prefixes become unreachable before they are routed into the
TUN, SAs are there before the policies that need them, and go after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esp_gw.engine.base import OuterSocket
from esp_gw.model import Desired, Direction, IPAddress, Policy, Sa
from esp_gw.network.plan import Network, Route, RouteKind, Rule


@dataclass(frozen=True, slots=True)
class Observed:
    """What is in place: the engine's SAs and policies, and the kernel's network that is ours."""

    sas: Mapping[str, Sa]
    policies: tuple[Policy, ...]
    sockets: frozenset[OuterSocket]
    network: Network


@dataclass(frozen=True, slots=True)
class AddRoute:
    """Add a route, or replace the one to this destination of the same kind."""

    route: Route


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove a route of ours."""

    route: Route


@dataclass(frozen=True, slots=True)
class AddRule:
    """Add a rule."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class RemoveRule:
    """Remove a rule of ours."""

    rule: Rule


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Put an address on the TUN."""

    address: IPAddress


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Take an address off the TUN."""

    address: IPAddress


@dataclass(frozen=True, slots=True)
class SetMtu:
    """Set the TUN's MTU, in bytes."""

    mtu: int


@dataclass(frozen=True, slots=True)
class SetSockets:
    """Have these outer sockets open and no others."""

    sockets: frozenset[OuterSocket]


@dataclass(frozen=True, slots=True)
class InstallSa:
    """Install an SA; one of the same name is replaced without a packet between."""

    sa: Sa


@dataclass(frozen=True, slots=True)
class RemoveSa:
    """Remove an SA."""

    name: str


@dataclass(frozen=True, slots=True)
class ReplacePolicies:
    """Put a new SPD in place."""

    policies: tuple[Policy, ...]


Action = (
    AddRoute
    | RemoveRoute
    | AddRule
    | RemoveRule
    | AddAddress
    | RemoveAddress
    | SetMtu
    | SetSockets
    | InstallSa
    | RemoveSa
    | ReplacePolicies
)


def reconcile(desired: Desired, network: Network, observed: Observed) -> list[Action]:
    """Return the actions that lead from `observed` to `desired` and its `network`, in order.

    What is the same on both sides appears in no action.
    """
    there, sockets = observed.network, outer_sockets(desired)
    new_routes = sorted(network.routes - there.routes, key=str)
    old_routes = sorted(there.routes - network.routes, key=str)
    wanted = {sa.name: sa for sa in desired.sas}
    actions: list[Action] = [
        AddRoute(route) for route in new_routes if route.kind is RouteKind.UNREACHABLE
    ]
    actions += [AddRule(rule) for rule in _by_priority(network.rules - there.rules)]
    if not sockets <= observed.sockets:
        actions.append(SetSockets(observed.sockets | sockets))
    # Inbound first: a peer that has the new key already must be understood before it is answered.
    changed = [sa for sa in desired.sas if observed.sas.get(sa.name) != sa]
    # An SPI may move from one name to another, or two names may swap theirs: what held it must be
    # gone first.
    owners = {sa.spi: sa.name for sa in changed if sa.direction is Direction.INBOUND}
    in_the_way = [
        sa.name
        for sa in observed.sas.values()
        if sa.direction is Direction.INBOUND and owners.get(sa.spi, sa.name) != sa.name
    ]
    actions += [RemoveSa(name) for name in in_the_way]
    actions += [InstallSa(sa) for sa in changed if sa.direction is Direction.INBOUND]
    actions += [InstallSa(sa) for sa in changed if sa.direction is Direction.OUTBOUND]
    if desired.policies != observed.policies:
        actions.append(ReplacePolicies(desired.policies))
    if network.mtu != there.mtu:
        actions.append(SetMtu(network.mtu))
    actions += [
        AddAddress(address) for address in sorted(network.addresses - there.addresses, key=str)
    ]
    actions += [AddRoute(route) for route in new_routes if route.kind is RouteKind.TUN]
    actions += [RemoveRule(rule) for rule in _by_priority(there.rules - network.rules)]
    replaced = {(route.kind, route.destination, route.table) for route in new_routes}
    actions += [
        RemoveRoute(route)
        for route in old_routes
        if (route.kind, route.destination, route.table) not in replaced
    ]
    actions += [
        RemoveAddress(address) for address in sorted(there.addresses - network.addresses, key=str)
    ]
    actions += [
        RemoveSa(name) for name in observed.sas if name not in wanted and name not in in_the_way
    ]
    if observed.sockets - sockets:
        actions.append(SetSockets(sockets))
    return actions


def is_guard(action: Action) -> bool:
    """Whether an action keeps packets from leaving in the clear, even while the TUN is down."""
    match action:
        case AddRoute(route):
            return route.kind is RouteKind.UNREACHABLE
        case AddRule():
            return True
        case _:
            return False


def outer_sockets(desired: Desired) -> frozenset[OuterSocket]:
    """Return the sockets that the SAs need."""
    return frozenset(OuterSocket(sa.local, sa.encapsulation) for sa in desired.sas)


def _by_priority(rules: frozenset[Rule]) -> list[Rule]:
    return sorted(rules, key=lambda rule: (rule.priority, str(rule)))
