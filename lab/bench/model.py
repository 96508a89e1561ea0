"""What the parts of the benchmark speak: a link to measure, a subject, a sample."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from esp_gw.demo.netns import Namespace


@dataclass(frozen=True, slots=True)
class Link:
    """Two hosts that a system joins; `pids` are its daemons, none for a plain wire.

    `source` and `target` are the addresses on `a` and `b` that traffic goes from and to.
    """

    a: Namespace
    b: Namespace
    source: str
    target: str
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long things are measured: seconds of a run, pings, probes of a search for a rate."""

    tcp: int
    udp: int
    pings: int
    probes: int
    idle: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure; `cpu` is the percentage of a core that each daemon used meanwhile.

    `note` says in a few words what kept the figure from being higher, where that is known.
    """

    metric: str
    unit: str
    value: float
    cpu: tuple[float, ...] = ()
    note: str = ""


@dataclass(slots=True)
class Memory:
    """What the earlier rounds found and later ones begin with: packet rates by test."""

    rates: dict[str, float] = field(default_factory=dict)


Opener = Callable[[Path], AbstractContextManager[Link]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A system in one setting, with the tests it takes; `setup` is the seconds it needs to start.

    `system` is its name in the JSON; a setting other than the default is part of it. `open` sets it
    up in an empty folder and takes it down.
    """

    system: str
    tests: tuple[str, ...]
    open: Opener
    setup: float = 2.0


@dataclass(frozen=True, slots=True)
class Observation:
    """A sample, and where it comes from."""

    section: str
    system: str
    test: str
    round: int
    sample: Sample


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be measured, and why, on one line."""

    section: str
    system: str
    test: str
    reason: str
