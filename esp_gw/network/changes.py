"""Changes of what a gateway has in place: each says when its turn is, and what it does in words.

Those of the kernel's network stand here; those of the engine build on them in daemon/reconcile.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from esp_gw.model import IPAddress
from esp_gw.network.plan import Route, Rule


class Step(enum.IntEnum):
    """The order of changes, which is the safety.

    Prefixes become unreachable before they are routed into the TUN. SAs are there before the
    policies that need them, and go after them. Inbound SAs come first: a peer that has the new key
    already must be understood before it is answered.
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
    """A change of what is in place, carried out at its `step`.

    An `is_guard` one keeps packets from leaving in the clear, even while the TUN is down.
    """

    step: ClassVar[Step]
    is_guard: ClassVar[bool] = False

    def describe(self) -> str:
        """Return the change as a person who asked for a reload reads it, without keys."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class NetworkChange(Change):
    """A change of the kernel's network, for Netlink.apply."""


@dataclass(frozen=True, slots=True)
class AddRoute(NetworkChange):
    """Add a route into the TUN, or replace the one to this destination."""

    step = Step.ADD_TUN_ROUTES
    route: Route

    def describe(self) -> str:
        """Return destination and kind."""
        return f"route {self.route.destination} {self.route.kind} added"


@dataclass(frozen=True, slots=True)
class AddGuardRoute(AddRoute):
    """Make a destination unreachable."""

    step = Step.GUARD_ROUTES
    is_guard = True


@dataclass(frozen=True, slots=True)
class RemoveRoute(NetworkChange):
    """Remove a route of ours."""

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
    """Remove a rule of ours."""

    step = Step.REMOVE_RULES
    rule: Rule

    def describe(self) -> str:
        """Return the priority."""
        return f"rule {self.rule.priority} removed"


@dataclass(frozen=True, slots=True)
class AddAddress(NetworkChange):
    """Put an address on the TUN."""

    step = Step.ADD_ADDRESSES
    address: IPAddress

    def describe(self) -> str:
        """Return the address."""
        return f"address {self.address} added"


@dataclass(frozen=True, slots=True)
class RemoveAddress(NetworkChange):
    """Take an address off the TUN."""

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
