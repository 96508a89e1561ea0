"""Measurement of the time to seal a packet on this machine, with the code of an engine."""

# The code of an engine is imported only if it is measured, as in engine/choose.py.
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

The packets are sealed one after the other, with a random key. Raises ValueError if the provider
lacks the suite, and OSError if the kernel refuses it.
"""
Way = tuple[str, str]
"""A provider and a suite."""
Cell = tuple[str, str, int]
"""A provider, a suite and a size in bytes."""

_FIRST_PACKETS, _MAX_PACKETS = 8, 50_000
_MIN_ROUNDS = 3
"""Smallest number of rounds: a single one may coincide with the activity of another program."""


@dataclass(frozen=True, slots=True)
class Effort:
    """Effort of a measurement: rounds, seconds a sample, seconds after which no round begins."""

    rounds: int
    sample: float
    limit: float


THOROUGH = Effort(rounds=21, sample=0.002, limit=3)
BRIEF = Effort(rounds=5, sample=0.0005, limit=0.04)
"""For commands with another purpose, and for the start of the daemon."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Nanoseconds a packet by cell; `missing` holds the reason, on one line, for absent figures."""

    ns: dict[Cell, float] = field(default_factory=dict)
    missing: dict[Way, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sealer:
    """The code that seals the packets: one of the engines, with its providers.

    `provider` is the library of the configuration; suites in `in_kernel` are sealed by AF_ALG.
    """

    native: bool
    provider: str = PROVIDER_AUTO
    in_kernel: frozenset[str] = frozenset()

    @property
    def engine(self) -> str:
        """Name of the engine."""
        return "native" if self.native else "python"

    @property
    def providers(self) -> tuple[str, ...]:
        """Providers that the engine may have."""
        return (OPENSSL, AWS_LC, AF_ALG) if self.native else (OPENSSL, AF_ALG)

    def measure(self) -> Measure:
        """Return the function that measures this engine."""
        if self.native:
            import esp_gw_core

            return esp_gw_core.measure_aead
        from esp_gw.crypto.measure_python import measure_python

        return measure_python

    def provider_of(self, suite: str) -> str:
        """Return the provider that seals the packets of a suite."""
        if suite in self.in_kernel:
            return AF_ALG
        if not self.native:
            return OPENSSL
        if self.provider != PROVIDER_AUTO:
            return self.provider
        return OPENSSL if provider_fault(AWS_LC, SUITES[suite]) else AWS_LC

    def figures(self, suites: Iterable[str], effort: Effort) -> dict[str, Figures]:
        """Measure suites with their providers; a suite without figures is left out."""
        ways = [(self.provider_of(suite), suite) for suite in suites]
        return by_suite(measure_cells(self.measure(), cells(ways), effort), ways)


def cells(ways: Iterable[Way]) -> list[Cell]:
    """Return the cell of each way with each size."""
    return [(*way, size) for way in ways for size in SIZES]


def measure_cells(measure: Measure, cells: Sequence[Cell], effort: Effort) -> Measured:
    """Return the best of several rounds for each cell; every round measures all cells in turn.

    Other load only makes a sample slower. On a busy machine the best of a few rounds is
    reproducible within some percent, while the median is off by half.
    """
    found = Measured()
    samples: dict[Cell, list[float]] = {cell: [] for cell in cells}
    packets = dict.fromkeys(cells, _FIRST_PACKETS)
    end = time.monotonic() + effort.limit
    # The first round only determines the number of packets in a sample.
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
    """Return the figures of each suite with its provider; suites without figures are left out."""
    return {
        suite: {size: found.ns[provider, suite, size] for size in SIZES}
        for provider, suite in ways
        if (provider, suite) not in found.missing
    }
