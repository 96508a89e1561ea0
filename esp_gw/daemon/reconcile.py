"""Computes the changes from the observed to the desired state, without I/O or a clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from esp_gw.desired import Desired
from esp_gw.engine.base import OuterSocket
from esp_gw.model import Direction, Policy, Sa
from esp_gw.network.changes import Change, Step, network_changes
from esp_gw.network.objects import Network


@dataclass(frozen=True, slots=True)
class Observed:
    """The state in place: the engine's SAs, policies and sockets, and our part of the network."""

    sas: Mapping[str, Sa]
    policies: tuple[Policy, ...]
    sockets: frozenset[OuterSocket]
    network: Network


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
    """Install an SA, atomically replacing one of the same name."""

    sa: Sa

    @property
    def name(self) -> str:
        """The SA's name."""
        return self.sa.name

    def describe(self) -> str:
        """Return the SA's name."""
        return f"sa {self.name} installed"


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
    """Remove an inbound SA whose SPI a new SA takes."""

    step = Step.EVICT_SAS


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
    changes = [
        *network_changes(network, observed.network),
        *_socket_changes(outer_sockets(desired), observed.sockets),
        *_sa_changes(desired, observed),
    ]
    if desired.policies != observed.policies:
        changes.append(ReplacePolicies(desired.policies))
    return sorted(changes, key=lambda change: change.step)


def _socket_changes(wanted: frozenset[OuterSocket], there: frozenset[OuterSocket]) -> list[Change]:
    changes: list[Change] = []
    if not wanted <= there:
        changes.append(OpenSockets(there | wanted))
    if there - wanted:
        changes.append(CloseSockets(wanted))
    return changes


def _sa_changes(desired: Desired, observed: Observed) -> list[Change]:
    wanted = {sa.name for sa in desired.sas}
    changed = [sa for sa in desired.sas if observed.sas.get(sa.name) != sa]
    # An SPI may move to another name, or two names may swap SPIs: its old holder is removed first.
    owners = {sa.spi: sa.name for sa in changed if sa.direction is Direction.INBOUND}
    evicted = {
        sa.name
        for sa in observed.sas.values()
        if sa.direction is Direction.INBOUND and owners.get(sa.spi, sa.name) != sa.name
    }
    changes: list[Change] = [EvictSa(name) for name in observed.sas if name in evicted]
    changes += [
        InstallInboundSa(sa) if sa.direction is Direction.INBOUND else InstallOutboundSa(sa)
        for sa in changed
    ]
    changes += [RemoveSa(name) for name in observed.sas if name not in wanted | evicted]
    return changes


def outer_sockets(desired: Desired) -> frozenset[OuterSocket]:
    """Return the sockets that the SAs need."""
    return frozenset(OuterSocket(sa.local, sa.encapsulation) for sa in desired.sas)
