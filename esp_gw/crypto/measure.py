"""How long this machine takes to seal a packet, with the code that an engine seals with."""

# Each engine's code is imported only where it is measured, as in engine/choose.py.
# ruff: noqa: PLC0415

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from esp_gw.crypto.providers import provider_fault
from esp_gw.crypto.recommend import SIZES, Figures
from esp_gw.model import AF_ALG, AWS_LC, OPENSSL, PROVIDER_AUTO, SUITES

Measure = Callable[[str, str, int, int], float]
"""`(provider, suite, size, packets)`: nanoseconds a packet, over `packets` packets of `size` bytes.

They are sealed one after the other, with a random key. Raises ValueError where the provider has no
such suite, and OSError where the kernel refuses it.
"""
Way = tuple[str, str]
"""A provider and a suite."""
Cell = tuple[str, str, int]
"""A provider, a suite and a size in bytes."""

_FIRST_PACKETS, _MAX_PACKETS = 8, 50_000
_MIN_ROUNDS = 3
"""Rounds there are in any case: one alone may meet a moment when another program runs."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How thoroughly to measure: seconds a sample, and seconds after which no round begins."""

    rounds: int
    sample: float
    limit: float


THOROUGH = Effort(rounds=21, sample=0.002, limit=3)
BRIEF = Effort(rounds=5, sample=0.0005, limit=0.04)
"""For commands that do something else, and for the daemon's start."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Nanoseconds a packet by cell; in `missing`, in one line, why a provider has no figures."""

    ns: dict[Cell, float] = field(default_factory=dict)
    missing: dict[Way, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sealer:
    """Who seals the packets: one of the engines, with the providers that it has.

    `provider` is the library of the configuration; suites in `in_kernel` are sealed by AF_ALG.
    """

    native: bool
    provider: str = PROVIDER_AUTO
    in_kernel: frozenset[str] = frozenset()

    @property
    def engine(self) -> str:
        """Its name."""
        return "native" if self.native else "python"

    @property
    def providers(self) -> tuple[str, ...]:
        """Those that it may have."""
        return (OPENSSL, AWS_LC, AF_ALG) if self.native else (OPENSSL, AF_ALG)

    def measure(self) -> Measure:
        """Return how to measure what this engine does."""
        if self.native:
            import esp_gw_core

            return esp_gw_core.measure_aead
        from esp_gw.crypto.measure_python import measure_python

        return measure_python

    def provider_of(self, suite: str) -> str:
        """Return the provider that seals with a suite."""
        if suite in self.in_kernel:
            return AF_ALG
        if not self.native:
            return OPENSSL
        if self.provider != PROVIDER_AUTO:
            return self.provider
        return OPENSSL if provider_fault(AWS_LC, SUITES[suite]) else AWS_LC

    def figures(self, suites: Iterable[str], effort: Effort) -> dict[str, Figures]:
        """Measure suites with the providers they have here; one that isn't had is left out."""
        ways = [(self.provider_of(suite), suite) for suite in suites]
        return by_suite(measure_cells(self.measure(), cells(ways), effort), ways)


def cells(ways: Iterable[Way]) -> list[Cell]:
    """Return each of them with each size."""
    return [(*way, size) for way in ways for size in SIZES]


def measure_cells(measure: Measure, cells: Sequence[Cell], effort: Effort) -> Measured:
    """Return the best of several rounds for each cell, measured in turn in every round.

    Whatever else the machine does only makes it slower: on a busy one the best of a few rounds
    comes within some percent of itself, where the median is off by half.
    """
    found = Measured()
    samples: dict[Cell, list[float]] = {cell: [] for cell in cells}
    packets = dict.fromkeys(cells, _FIRST_PACKETS)
    end = time.monotonic() + effort.limit
    # The first round only finds out how many packets make a sample.
    for number in range(effort.rounds + 1):
        for cell in cells:
            way = cell[:2]
            if way in found.missing:
                continue
            try:
                ns = measure(*cell, packets[cell])
            except (ValueError, OSError) as error:
                found.missing[way] = getattr(error, "strerror", None) or str(error)
                continue
            if number:
                samples[cell].append(ns)
            packets[cell] = round(min(max(effort.sample * 1e9 / ns, _FIRST_PACKETS), _MAX_PACKETS))
        if number >= _MIN_ROUNDS and time.monotonic() > end:
            break
    for cell, values in samples.items():
        if cell[:2] not in found.missing:
            found.ns[cell] = min(values)
    return found


def by_suite(found: Measured, ways: Iterable[Way]) -> dict[str, Figures]:
    """Return the figures of each suite with its provider, without those that have none."""
    return {
        suite: {size: found.ns[provider, suite, size] for size in SIZES}
        for provider, suite in ways
        if (provider, suite) not in found.missing
    }
