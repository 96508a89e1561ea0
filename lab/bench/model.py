"""Types shared by the benchmark: a link to measure, a subject, a sample."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from esp_gw.demo.netns import Namespace

Swanctl = Callable[..., str]
"""Runs `swanctl` with its arguments; returns what it printed. Raises LabError."""


@dataclass(frozen=True, slots=True)
class Ike:
    """The two charons of a link: their control, and their process ids.

    `gateways` are the processes that carry the packets, where these are not charon's; `lost`
    returns the number of packets that they have not carried so far.
    """

    swanctl: tuple[Swanctl, Swanctl]
    charons: tuple[int, int]
    gateways: tuple[int, ...] = ()
    lost: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """Two hosts joined by a system; `pids` are its daemons, empty for a plain wire.

    First those of `a`, then as many of `b`. Traffic goes from the address `source` on `a` to the
    address `target` on `b`; `further` are such pairs of the tunnels after the first. `ike` is there
    where charon finds the keys.
    """

    a: Namespace
    b: Namespace
    source: str
    target: str
    pids: tuple[int, ...] = ()
    further: tuple[tuple[str, str], ...] = ()
    ike: Ike | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Run lengths: seconds per run, number of pings, probes per search for a rate, children."""

    tcp: int
    udp: int
    pings: int
    probes: int
    idle: int
    children: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure; `cpu` is the percentage of a core that each daemon used during the test.

    `note` names in a few words the limit of the figure, if known.
    """

    metric: str
    unit: str
    value: float
    cpu: tuple[float, ...] = ()
    note: str = ""


@dataclass(slots=True)
class Memory:
    """Packet rates by test from earlier rounds, the starting points of later ones."""

    rates: dict[str, float] = field(default_factory=dict)


Run = Callable[[Link, Lengths, Memory], list[Sample]]
"""The load of one test, and the figures taken from it."""
Opener = Callable[[Path], AbstractContextManager[Link]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A system in one setting, with its tests; `setup` is its startup time in seconds.

    `system` is its name in the JSON, which includes a non-default setting. `open` sets the system
    up in an empty folder and tears it down.
    """

    system: str
    tests: tuple[str, ...]
    open: Opener
    setup: float = 2.0


@dataclass(frozen=True, slots=True)
class Observation:
    """A sample and its origin."""

    section: str
    system: str
    test: str
    round: int
    sample: Sample


@dataclass(frozen=True, slots=True)
class Failure:
    """A test or system that could not be measured, and the reason on one line."""

    section: str
    system: str
    test: str
    reason: str
