"""The steps of a flow's way: their collector, what they are told from, and their words."""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from esp_gw.daemon.health import Condition
from esp_gw.engine.base import SaCounters
from esp_gw.model import Policy, Sa, Selector
from esp_gw.network.flow import Flow
from esp_gw.network.route_lookup import Way
from esp_gw.network.survey import Survey
from esp_gw.values import PROTOCOLS

RELOAD = "then run 'esp-gw reload'"
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}


class State(enum.StrEnum):
    """Meaning of a step for the flow."""

    OK = "ok"
    WARNING = "warning"
    STOP = "stop"


class Verdict(enum.StrEnum):
    """End of a flow: in ESP, outside of every tunnel, or dropped."""

    CARRIED = "carried"
    CLEAR = "clear"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the way: its subject `what`, what was found, and the remedy, if any."""

    what: str
    state: State
    found: str
    todo: str = ""


class Steps:
    """Collects steps in the order in which packets meet them."""

    def __init__(self) -> None:
        self.all: list[Step] = []
        self.is_clear = False

    def add(self, what: str, found: str) -> None:
        """Add a step that is as it should be."""
        self.all.append(Step(what, State.OK, found))

    def warn(self, what: str, found: str, todo: str = "") -> None:
        """Add a step that may stop the flow, or a part of it."""
        self.all.append(Step(what, State.WARNING, found, todo))

    def stop(self, what: str, found: str, todo: str = "") -> None:
        """Add a step at which the flow ends."""
        self.all.append(Step(what, State.STOP, found, todo))

    def leave_alone(self, what: str, found: str) -> None:
        """Add a step that shows that no tunnel carries the flow."""
        self.is_clear = True
        self.add(what, found)

    @property
    def verdict(self) -> Verdict:
        """The end of the flow."""
        if any(step.state is State.STOP for step in self.all):
            return Verdict.STOPPED
        return Verdict.CLEAR if self.is_clear else Verdict.CARRIED


@dataclass(frozen=True, slots=True)
class Scene:
    """The gateway at one moment, as far as a flow may meet it.

    `sas` are the installed ones by name, `lacking` the reasons for others that are not there.
    `condition` returns that of an SA's tunnel.
    """

    flow: Flow
    tun: str
    policies: Sequence[Policy]
    sas: Mapping[str, Sa]
    lacking: Mapping[str, str]
    counters: Mapping[str, SaCounters]
    condition: Callable[[str], Condition]
    survey: Survey

    def refusal(self, way: Way, flow: Flow, arrives: str = "") -> tuple[str, str]:
        """Return what the kernel's refusal of a flow's route means, and what mends it."""
        target = flow.destination
        if arrives in self.survey.strict and way.error in (errno.EXDEV, errno.EINVAL):
            # sysctl(8): a dot of a name is written as a slash.
            name = f"net.ipv4.conf.{arrives.replace('.', '/')}.rp_filter"
            return (
                f"the reverse path filter of {arrives} drops it: {flow.source} is reached by "
                "another interface",
                f"run 'sysctl -w {name}=2'",
            )
        see = f"see 'ip route get {target}'"
        match way.error:
            case errno.ENETUNREACH:
                found = f"there is no route to {target}"
                return found, f"add one: 'ip route add {target} via ROUTER'"
            case errno.EHOSTUNREACH:
                found = f"{target} is unreachable: it is closed, or its own route is gone"
                return found, f"{see} and 'esp-gw guard status'"
            case errno.EACCES:
                return f"a route forbids {target}", see
            case error:
                return f"the kernel refuses a route to {target}: {os.strerror(error)}", see


def by(way: Way) -> str:
    """Return a route in words."""
    router = "" if way.gateway is None else f" via {way.gateway}"
    return f"by {way.device}{router}"


def selector_text(selector: Selector) -> str:
    """Return a selector in words."""
    ends = f"{selector.local} - {selector.remote}"
    return " ".join([ends, *_transport(selector)])


def transport_text(selector: Selector) -> str:
    """Return protocol and ports of a selector, empty for all."""
    return " ".join(_transport(selector))


def _transport(selector: Selector) -> list[str]:
    protocol = selector.protocol
    words = [] if protocol is None else [_PROTOCOL_NAMES.get(protocol, str(protocol))]
    if selector.local_port is not None:
        words.append(f"local port {selector.local_port}")
    if selector.remote_port is not None:
        words.append(f"remote port {selector.remote_port}")
    return words


def heard(seconds: float | None) -> str:
    """Return when a peer was heard last."""
    if seconds is None:
        return "never heard"
    if seconds < 120:
        return f"heard {seconds:.0f} s ago"
    return f"heard {seconds / 60:.0f} min ago"
