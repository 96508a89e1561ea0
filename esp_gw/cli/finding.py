"""A finding of `esp-gw doctor`."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.StrEnum):
    """Severity of a finding; a fault keeps the gateway from working."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check: its subject `what`, the observation, and the remedy, if any."""

    state: State
    what: str
    found: str
    todo: str = ""
