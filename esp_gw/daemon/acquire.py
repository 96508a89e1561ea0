"""Acquires: packets that met a policy of IKE which has no SA, from samples of dropped packets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from esp_gw.config.conflicts import covers
from esp_gw.daemon.children import ChildPolicy
from esp_gw.daemon.held import Held
from esp_gw.engine.base import Refused
from esp_gw.model import DropReason, Policy, PortRange, Selector
from esp_gw.protocol import PORT_PROTOCOLS
from esp_gw.values import host_network

INTERVAL = 1.0
"""Seconds between two acquires of one policy, at least."""


class Acquires:
    """Finds the policies that samples have met; each is told at most once in INTERVAL."""

    def __init__(self) -> None:
        self._told: dict[str, float] = {}

    def look(
        self, samples: Iterable[Refused], spd: tuple[Policy, ...], held: Held, now: float
    ) -> Iterator[dict[str, object]]:
        """Yield the events of these samples, at `now` in seconds; `spd` is in order."""
        self._told = {name: at for name, at in self._told.items() if now - at < INTERVAL}
        for sample in samples:
            if sample.reason != DropReason.NO_SA or sample.destination is None:
                continue
            policy = _met(sample, spd, held)
            if policy is not None and policy.id not in self._told:
                self._told[policy.id] = now
                yield {
                    "event": "Acquire",
                    "policy": policy.id,
                    "local": str(sample.source),
                    "remote": str(sample.destination),
                    "protocol": sample.protocol,
                    "local_port": sample.source_port,
                    "remote_port": sample.destination_port,
                }


def _met(sample: Refused, spd: tuple[Policy, ...], held: Held) -> ChildPolicy | None:
    """Return the policy that a dropped packet met, if it is one of the owner's that holds."""
    packet = _selector_of(sample)
    for policy in spd:
        if packet is not None and any(covers(each, packet) for each in policy.selectors):
            return held.holding(policy.name)
    return None


def _selector_of(sample: Refused) -> Selector | None:
    """Return the selector of a packet alone."""
    if sample.destination is None or sample.source.version != sample.destination.version:
        return None
    ports = [
        PortRange(port, port) if sample.protocol in PORT_PROTOCOLS and port else None
        for port in (sample.source_port, sample.destination_port)
    ]
    return Selector(
        host_network(sample.source), host_network(sample.destination), sample.protocol, *ports
    )
