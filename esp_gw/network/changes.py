"""Changes to a gateway's state: each has a step, which orders it, and a description.

Changes of the kernel's network are here; those of the engine are in daemon/reconcile.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from esp_gw.model import IPAddress
from esp_gw.network.plan import Route, Rule


class Step(enum.IntEnum):
    """The order in which changes are applied; safety depends on it.

    Prefixes become unreachable before they are routed into the TUN. SAs are installed before the
    policies that need them, and removed after them. Inbound SAs come first: packets of a peer that
    already uses the new key must be accepted before the gateway replies with it.
    """

    GUARD_ROUTES = enum.auto()
    ADD_RULES = enum.auto()
    OPEN_SOCKETS = enum.auto()
    EVICT_SAS = enum.auto()
    INSTALL_INBOUND_SAS = enum.auto()
    INSTALL_OUTBOUND_SAS = enum.auto()
    REPLACE_POLICIES = enum.auto()
    SET_MTU = enum.auto()
    ADD_ADDRESSES = enum.auto()
    ADD_TUN_ROUTES = enum.auto()
    REMOVE_RULES = enum.auto()
    REMOVE_ROUTES = enum.auto()
    REMOVE_ADDRESSES = enum.auto()
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
    """A change of the kernel's network, for Netlink.apply."""


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
