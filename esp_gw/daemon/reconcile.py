"""Computes the changes from the observed to the desired state, without I/O or a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esp_gw.desired import Desired
from esp_gw.engine.base import OuterSocket
from esp_gw.model import Direction, KeyMaterial, Policy, Sa, Suite
from esp_gw.network.changes import Change, Step, network_changes
from esp_gw.network.objects import Network

GRACE = 60.0
"""Seconds for which packets under a replaced key are accepted."""


@dataclass(frozen=True, slots=True)
class Observed:
    """The state in place: the engine's SAs, policies and sockets, and our part of the network.

    `policies` and `sockets` are None if a failed change has left them unknown. `retired` names the
    SAs whose packets are still accepted for a grace time.
    """

    sas: Mapping[str, Sa]
    policies: tuple[Policy, ...] | None
    sockets: frozenset[OuterSocket] | None
    network: Network
    retired: frozenset[str] = frozenset()


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
    new one. `retires` is the SA of the same name under another key: its packets are accepted for a
    grace time, while the peer changes over.
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
            return (
                f"sa {self.name} installed with a new key; SPI {self.retires.spi:#x} is accepted "
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
class ReplacePolicies(Change):
    """Replace the SPD."""

    step = Step.REPLACE_POLICIES
    policies: tuple[Policy, ...]

    def describe(self) -> str:
        """Return the number of policies."""
        return f"{len(self.policies)} policies in place"


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


def _sa_changes(desired: Desired, observed: Observed) -> list[InstallSa | RemoveSa]:
    there = observed.sas
    wanted = {sa.name for sa in desired.sas}
    changed = [sa for sa in desired.sas if there.get(sa.name) != sa]
    directions = {sa.name: sa.direction for sa in changed}
    # A name changes its direction only where a person gives it to another SA: no move is tried.
    turned = {
        name for name, sa in there.items() if directions.get(name, sa.direction) != sa.direction
    }
    by_key = {_key(sa): name for name, sa in there.items() if name not in turned}
    moves = {sa.name: by_key[_key(sa)] for sa in changed if _key(sa) in by_key}
    moved = frozenset(moves.values())
    taken = {sa.spi for sa in changed if sa.direction is Direction.INBOUND}
    evicted = {
        name: sa.spi
        for name, sa in there.items()
        if name in turned
        or (sa.direction is Direction.INBOUND and sa.spi in taken and name not in moved)
    }
    gone = moved | evicted.keys()
    retired = {
        sa.name: there[sa.name] for sa in changed if sa.name in there and sa.name not in gone
    }
    changes: list[InstallSa | RemoveSa] = [EvictSa(name, spi) for name, spi in evicted.items()]
    for sa in changed:
        kind = InstallInboundSa if sa.direction is Direction.INBOUND else InstallOutboundSa
        changes.append(kind(sa, moves.get(sa.name), retired.get(sa.name)))
    kept = wanted | gone | observed.retired
    return changes + [RemoveSa(name) for name in there if name not in kept]


def _key(sa: Sa) -> tuple[Direction, Suite, KeyMaterial]:
    return sa.direction, sa.suite, sa.keymat


def _sockets_wanted(
    desired: Desired, observed: Observed, changes: Sequence[Change]
) -> frozenset[OuterSocket]:
    """Return the sockets of the wanted SAs, and of those that stay for their grace time."""
    gone = {change.name for change in changes if isinstance(change, RemoveSa)}
    gone |= {change.moves for change in changes if isinstance(change, InstallSa) and change.moves}
    kept = [observed.sas[name] for name in observed.retired - gone]
    kept += [
        change.retires
        for change in changes
        if isinstance(change, InstallInboundSa) and change.retires is not None
    ]
    return outer_sockets(desired) | {OuterSocket(sa.local, sa.encapsulation) for sa in kept}


def outer_sockets(desired: Desired) -> frozenset[OuterSocket]:
    """Return the sockets that the SAs need."""
    return frozenset(OuterSocket(sa.local, sa.encapsulation) for sa in desired.sas)
