"""Computes the changes from the observed to the desired state, without I/O or a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeVar

from esp_gw.desired import Desired
from esp_gw.engine.base import OuterSocket
from esp_gw.errors import NetworkError
from esp_gw.model import (
    Direction,
    Encapsulation,
    IPAddress,
    KeyMaterial,
    Origin,
    Policy,
    Sa,
    Suite,
)
from esp_gw.network.changes import Change, NetworkChange, Step, network_changes
from esp_gw.network.objects import Network
from esp_gw.per_object import PerObject

C = TypeVar("C", bound=Change)

GRACE = 60.0
"""Seconds for which packets under a replaced key or SPI are accepted."""
RETIRED_MARK = "~"
"""Mark in the name of a retired SA, which no person can give to an SA."""


def retired_name(sa: Sa) -> str:
    """Return the name of an SA for its grace time."""
    return f"{sa.name}{RETIRED_MARK}{sa.spi:#x}"


@dataclass(frozen=True, slots=True)
class Observed:
    """The state in place: the engine's SAs, policies and sockets, and our part of the network.

    `policies` and `sockets` are None if a failed change has left them unknown. `retired` has the
    SAs whose packets are still accepted for a grace time, each with its successor's name, and
    `lingering` the sockets that stay as long.
    """

    sas: Mapping[str, Sa]
    policies: tuple[Policy, ...] | None
    sockets: frozenset[OuterSocket] | None
    network: Network
    retired: Mapping[str, str] = field(default_factory=dict)
    lingering: frozenset[OuterSocket] = frozenset()


@dataclass(frozen=True, slots=True)
class SetSockets(Change):
    """Set the open outer sockets to exactly these."""

    sockets: frozenset[OuterSocket]

    def describe(self) -> str:
        """Return the sockets."""
        names = ", ".join(sorted(f"{s.address} {s.encapsulation}" for s in self.sockets))
        return f"outer sockets: {names or 'none'}"


@dataclass(frozen=True, slots=True)
class OpenSockets(SetSockets):
    """Open missing sockets; `sockets` still includes those no longer needed."""

    step = Step.OPEN_SOCKETS


@dataclass(frozen=True, slots=True)
class CloseSockets(SetSockets):
    """Close the sockets that are no longer needed."""

    step = Step.CLOSE_SOCKETS


@dataclass(frozen=True, slots=True)
class InstallSa(Change):
    """Install an SA, in one step with the others of its direction.

    `moves` names the SA with the same key, whose sequence numbers and replay window go on in the
    new one. `retires` is the SA of the same name under another key or SPI: its packets are accepted
    for a grace time, while the peer changes over.
    """

    sa: Sa
    moves: str | None = None
    retires: Sa | None = None

    @property
    def name(self) -> str:
        """The SA's name."""
        return self.sa.name

    def describe(self) -> str:
        """Return the SA's name, and what becomes of its predecessor."""
        if self.retires is not None and self.sa.direction is Direction.INBOUND:
            new = "SPI" if self.sa.keymat == self.retires.keymat else "key"
            return (
                f"sa {self.name} installed with a new {new}; SPI {self.retires.spi:#x} is accepted "
                f"for {GRACE:.0f} s more"
            )
        if self.moves is None:
            return f"sa {self.name} installed"
        former = "" if self.moves == self.name else f", formerly {self.moves}"
        return f"sa {self.name} changed{former}"


@dataclass(frozen=True, slots=True)
class InstallInboundSa(InstallSa):
    """Install an inbound SA."""

    step = Step.INSTALL_INBOUND_SAS


@dataclass(frozen=True, slots=True)
class InstallOutboundSa(InstallSa):
    """Install an outbound SA."""

    step = Step.INSTALL_OUTBOUND_SAS


@dataclass(frozen=True, slots=True)
class RemoveSa(Change):
    """Remove an SA."""

    step = Step.REMOVE_SAS
    name: str

    def describe(self) -> str:
        """Return the SA's name."""
        return f"sa {self.name} removed"


@dataclass(frozen=True, slots=True)
class EvictSa(RemoveSa):
    """Remove an SA whose SPI or name a new SA with another key takes."""

    step = Step.EVICT_SAS
    spi: int

    def describe(self) -> str:
        """Return the SA's name, and the loss."""
        return f"sa {self.name} removed: packets under its key to SPI {self.spi:#x} are lost"


@dataclass(frozen=True, slots=True)
class RetireSa(Change):
    """Accept packets of an inbound SA of a tunnel for a grace time, as long as `heir` is there."""

    step = Step.RETIRE_SAS
    sa: Sa
    heir: str

    def describe(self) -> str:
        """Return the SA's name and the grace time."""
        return f"sa {self.sa.name} removed; SPI {self.sa.spi:#x} is accepted for {GRACE:.0f} s more"


@dataclass(frozen=True, slots=True)
class ReplacePolicies(Change):
    """Replace the SPD."""

    step = Step.REPLACE_POLICIES
    policies: tuple[Policy, ...]

    def describe(self) -> str:
        """Return the number of policies."""
        count = len(self.policies)
        return f"{count} {'policy' if count == 1 else 'policies'} in place"


def reconcile(desired: Desired, network: Network, observed: Observed) -> list[Change]:
    """Return the changes that lead from `observed` to `desired` and its `network`, in order.

    Anything equal on both sides appears in no change.
    """
    sas = _sa_changes(desired, observed)
    sockets = _sockets_wanted(desired, observed, sas)
    changes: list[Change] = [
        *network_changes(network, observed.network),
        *_socket_changes(sockets, observed.sockets),
        *sas,
    ]
    if desired.policies != observed.policies:
        changes.append(ReplacePolicies(desired.policies))
    return sorted(changes, key=lambda change: change.step)


def step_of(change: Change) -> Step | None:
    """Return the step of a change, or None for the network, whose changes are one batch."""
    return None if isinstance(change, NetworkChange) else change.step


def changes_of(kind: type[C], changes: Sequence[Change]) -> list[C]:
    """Return the changes of one kind."""
    return [change for change in changes if isinstance(change, kind)]


def without_tun(changes: Sequence[Change], interface: str) -> list[Change]:
    """Return the changes that a TUN which is down doesn't stop; it gets the rest once it is up.

    Raises NetworkError for a new SA, which would carry nothing.
    """
    if any(isinstance(change, InstallSa) and change.moves is None for change in changes):
        raise NetworkError(
            "the TUN device is down, and nothing has changed",
            where=interface,
            hint=f"run 'ip link set {interface} up' first",
        )
    return needing_no_tun(changes)


def needing_no_tun(changes: Sequence[Change]) -> list[Change]:
    """Return the changes other than of the network, with those that close something in it."""
    return [each for each in changes if each.is_guard or not isinstance(each, NetworkChange)]


def _socket_changes(
    wanted: frozenset[OuterSocket], there: frozenset[OuterSocket] | None
) -> list[Change]:
    if there is None:
        return [OpenSockets(wanted)]
    changes: list[Change] = []
    if not wanted <= there:
        changes.append(OpenSockets(there | wanted))
    if there - wanted:
        changes.append(CloseSockets(wanted))
    return changes


def _sa_changes(desired: Desired, observed: Observed) -> list[Change]:
    there = observed.sas
    wanted = {sa.name: sa for sa in desired.sas}
    # Most are the same object: no function of Python is called for them.
    changed = [sa for sa in desired.sas if there.get(sa.name) is not sa]
    changed = [sa for sa in changed if there.get(sa.name) != sa]
    taken = {sa.spi for sa in changed if sa.direction is Direction.INBOUND}
    # A name changes its direction only where a person gives it to another SA: no move is tried.
    turned = {
        sa.name
        for sa in changed
        if sa.name in there and there[sa.name].direction is not sa.direction
    }
    by_key = {_key(there[name]): name for name in observed.retired}
    # One that stays as it is has its key alone.
    by_key |= {
        _key(sa): name
        for name, sa in there.items()
        if wanted.get(name) is not sa and name not in turned and name not in observed.retired
    }
    moves = {
        sa.name: by_key[_key(sa)]
        for sa in changed
        if _key(sa) in by_key and not _has_new_spi(sa, there.get(sa.name), taken)
    }
    moved = frozenset(moves.values())
    evicted = {
        name: sa.spi
        for name, sa in there.items()
        if name in turned
        or (sa.direction is Direction.INBOUND and sa.spi in taken and name not in moved)
    }
    gone = moved | evicted.keys()
    replaced = {
        sa.name: there[sa.name] for sa in changed if sa.name in there and sa.name not in gone
    }
    changes: list[Change] = [EvictSa(name, spi) for name, spi in evicted.items()]
    for sa in changed:
        kind = InstallInboundSa if sa.direction is Direction.INBOUND else InstallOutboundSa
        changes.append(kind(sa, moves.get(sa.name), replaced.get(sa.name)))
    changes += _retired_changes(wanted, observed, gone)
    others = there.keys() - wanted.keys() - gone - observed.retired.keys()
    return changes + _removals(desired, observed, sorted(others))


def _has_new_spi(sa: Sa, former: Sa | None, taken: Set[int]) -> bool:
    """Return True for an inbound SA with its key under another SPI; both SPIs go on for a while.

    The SPI is authenticated: no packet under one is accepted under the other.
    """
    return (
        former is not None
        and sa.direction is Direction.INBOUND
        and _key(sa) == _key(former)
        and sa.spi != former.spi
        and former.spi not in taken
    )


def _retired_changes(wanted: Mapping[str, Sa], observed: Observed, gone: Set[str]) -> list[Change]:
    """Return the changes of retired SAs: they go with their successor, and follow its selectors."""
    changes: list[Change] = []
    for name, origin in observed.retired.items():
        successor = wanted.get(origin)
        if name in gone:
            continue
        if successor is None:
            changes.append(RemoveSa(name))
        elif observed.sas[name].selectors != successor.selectors:
            sa = replace(observed.sas[name], selectors=successor.selectors)
            changes.append(InstallInboundSa(sa, moves=name))
    return changes


def _removals(desired: Desired, observed: Observed, names: Sequence[str]) -> list[Change]:
    """Remove unwanted SAs; inbound ones of a tunnel that stays retire, but for those of IKE.

    An IKE daemon removes one when the peer uses it no more.
    """
    heirs = {
        sa.tunnel: sa.name
        for sa in desired.sas
        if sa.direction is Direction.INBOUND and sa.origin is not Origin.IKE
    }
    changes: list[Change] = []
    for name in names:
        sa = observed.sas[name]
        has_heir = sa.tunnel is not None and sa.tunnel in heirs
        if has_heir and sa.direction is Direction.INBOUND and RETIRED_MARK not in name:
            changes.append(RetireSa(sa, heirs[sa.tunnel]))
        else:
            changes.append(RemoveSa(name))
    return changes


def _key(sa: Sa) -> tuple[Direction, Suite, KeyMaterial]:
    return sa.direction, sa.suite, sa.keymat


def _sockets_wanted(
    desired: Desired, observed: Observed, changes: Sequence[Change]
) -> frozenset[OuterSocket]:
    """Return the sockets of the wanted SAs, and of what stays for its grace time."""
    gone = {change.name for change in changes if isinstance(change, RemoveSa)}
    kept = [observed.sas[name] for name in observed.retired.keys() - gone]
    for change in changes:
        if isinstance(change, InstallInboundSa) and change.retires is not None:
            kept.append(change.retires)
        elif isinstance(change, RetireSa):
            kept.append(change.sa)
    return outer_sockets(desired) | observed.lingering | {_socket_of(sa) for sa in kept}


def outer_sockets(desired: Desired) -> frozenset[OuterSocket]:
    """Return the sockets that the SAs need, and those by which IKE is received."""
    listening = (OuterSocket(each, Encapsulation.UDP) for each in desired.listening)
    return needed_sockets(desired) | frozenset(listening)


def needed_sockets(desired: Desired) -> frozenset[OuterSocket]:
    """Return the sockets that the SAs need."""
    found = _SOCKETS.of(desired.sas)
    # A few sockets for all SAs: each is hashed once.
    return frozenset({id(each): each for each in found}.values())


def sockets_left(desired: Desired, there: Mapping[str, Sa]) -> set[OuterSocket]:
    """Return the sockets that SAs leave which keep their keys.

    The peer may learn of the new address only from our next packet.
    """
    wanted = {sa.name: sa for sa in desired.sas}
    gone = [sa for sa in there.values() if wanted.get(sa.name) is not sa]
    if not gone:
        return set()
    new = [sa for sa in desired.sas if there.get(sa.name) is not sa]
    now = {_key(sa): _socket_of(sa) for sa in new if sa.direction is Direction.INBOUND}
    before = {_key(sa): _socket_of(sa) for sa in gone}
    return {socket for key, socket in before.items() if now.get(key, socket) != socket}


def _socket_of(sa: Sa) -> OuterSocket:
    return _socket(sa.local, sa.encapsulation)


@lru_cache(maxsize=256)
def _socket(address: IPAddress, encapsulation: Encapsulation) -> OuterSocket:
    return OuterSocket(address, encapsulation)


_SOCKETS = PerObject(_socket_of)
