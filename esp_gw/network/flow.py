"""A flow in question, as commands and lookups name it, and the selectors that match it."""

from __future__ import annotations

from dataclasses import dataclass

from esp_gw.model import IPAddress, PortRange, Selector
from esp_gw.protocol import PORT_PROTOCOLS


@dataclass(frozen=True, slots=True)
class Flow:
    """The first packet of a flow, of one IP version; None for what is not said of it."""

    source: IPAddress
    destination: IPAddress
    protocol: int | None = None
    source_port: int | None = None
    destination_port: int | None = None

    @property
    def reverse(self) -> Flow:
        """The flow of its answers."""
        return Flow(
            self.destination,
            self.source,
            self.protocol,
            self.destination_port,
            self.source_port,
        )


def matches(selector: Selector, flow: Flow) -> bool | None:
    """Return True if a selector matches an outbound flow, None if it depends on the unsaid.

    Source: RFC 4301 4.4.1.1.
    """
    if flow.source not in selector.local or flow.destination not in selector.remote:
        return False
    answers = (
        _is(selector.protocol, flow.protocol),
        _holds(selector.local_port, flow.source_port, flow.protocol),
        _holds(selector.remote_port, flow.destination_port, flow.protocol),
    )
    if False in answers:
        return False
    return None if None in answers else True


def _is(wanted: int | None, said: int | None) -> bool | None:
    if wanted is None:
        return True
    return None if said is None else wanted == said


def _holds(ports: PortRange | None, said: int | None, protocol: int | None) -> bool | None:
    if ports is None:
        return True
    if said is not None:
        return ports.first <= said <= ports.last
    # A packet without ports matches no range.
    return False if protocol is not None and protocol not in PORT_PROTOCOLS else None
