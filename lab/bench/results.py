"""Results from observations: medians, ranges, ratios, and the JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lab.bench.model import Failure, Observation

Key = tuple[str, str, str]
"""System, test, metric."""
_LESS_IS_BETTER = ("us", "us/packet", "s/Gbit")


@dataclass(frozen=True, slots=True)
class Result:
    """One figure over all rounds: median, smallest, largest; `values` by round.

    `cpu` is the median percentage of a core that each daemon used. `note` includes the number of
    rounds that it applies to.
    """

    section: str
    system: str
    test: str
    metric: str
    unit: str
    median: float
    low: float
    high: float
    values: Mapping[int, float] = field(default_factory=dict)
    cpu: tuple[float, ...] = ()
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """One entry of `results`; `cpu` is the sum over all daemons, in percent of a core."""
        entry = {
            "section": self.section,
            "system": self.system,
            "test": self.test,
            "metric": self.metric,
            "unit": self.unit,
            "median": _short(self.median),
            "min": _short(self.low),
            "max": _short(self.high),
            "cpu": round(sum(self.cpu), 1) if self.cpu else None,
            "cpu_each": [round(value, 2) for value in self.cpu],
            "values": [_short(value) for _, value in sorted(self.values.items())],
        }
        return {**entry, "note": self.note} if self.note else entry


class Results:
    """The results of a run, keyed by system, test and metric; the first of a key wins."""

    def __init__(self, results: Iterable[Result]) -> None:
        self._by_key: dict[Key, Result] = {}
        for result in results:
            self._by_key.setdefault((result.system, result.test, result.metric), result)

    def __iter__(self) -> Iterator[Result]:
        return iter(self._by_key.values())

    def get(self, system: str, test: str, metric: str) -> Result | None:
        """One result, None if it was not measured."""
        return self._by_key.get((system, test, metric))

    def ratio(self, one: Key, other: Key) -> float | None:
        """The median of the ratios by round; the ratio of the medians if no round has both."""
        first, second = self._by_key.get(one), self._by_key.get(other)
        if first is None or second is None:
            return None
        pairs = [
            value / second.values[number]
            for number, value in first.values.items()
            if second.values.get(number)
        ]
        if pairs:
            return statistics.median(pairs)
        return first.median / second.median if second.median else None

    def best(self, systems: Sequence[str], test: str, metric: str) -> str | None:
        """The system with the best median: the smallest of a time or cost, else the largest."""
        found = [result for name in systems if (result := self.get(name, test, metric))]
        if not found:
            return None
        pick = min if found[0].unit in _LESS_IS_BETTER else max
        return pick(found, key=lambda result: result.median).system


def summarise(observations: Iterable[Observation]) -> Results:
    """Combine the figures of all rounds."""
    grouped: dict[tuple[str, str, str, str], list[Observation]] = {}
    for seen in observations:
        key = (seen.section, seen.system, seen.test, seen.sample.metric)
        grouped.setdefault(key, []).append(seen)
    return Results(_result(key, seen) for key, seen in grouped.items())


def _result(key: tuple[str, str, str, str], seen: list[Observation]) -> Result:
    section, system, test, metric = key
    values = {each.round: each.sample.value for each in seen}
    with_cpu = [each.sample.cpu for each in seen if each.sample.cpu]
    notes = [each.sample.note for each in seen if each.sample.note]
    return Result(
        section=section,
        system=system,
        test=test,
        metric=metric,
        unit=seen[0].sample.unit,
        median=statistics.median(values.values()),
        low=min(values.values()),
        high=max(values.values()),
        values=values,
        cpu=tuple(statistics.median(values) for values in zip(*with_cpu, strict=True)),
        note=f"{notes[0]} in {len(notes)} of {len(seen)} rounds" if notes else "",
    )


def as_json(
    rounds: int, results: Results, failures: Sequence[Failure], machine: Mapping[str, Any]
) -> dict[str, Any]:
    """The whole run as JSON values."""
    return {
        "rounds": rounds,
        "machine": dict(machine),
        "results": [result.as_json() for result in results],
        "failures": [
            {
                "section": failure.section,
                "system": failure.system,
                "test": failure.test,
                "reason": failure.reason,
            }
            for failure in failures
        ],
    }


def _short(value: float) -> float:
    """Round to six significant digits: more are noise."""
    return float(f"{value:.6g}")
