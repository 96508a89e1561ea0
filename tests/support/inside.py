"""The tests of tests/vm/inside, which run in a machine, and their results."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.engines import ENGINES

IKE_FILE = "test_ike_kernel"
# test_af_alg counts the keys of the whole machine, so nothing before it may leave one behind;
# test_af_alg_native is last, because it makes the kernel's gcm(aes) asynchronous for good.
ALL_FILES = (
    *("test_kernel_esp", "test_moving", IKE_FILE),
    *("test_af_alg", "test_af_alg_native"),
)
"""The files in their order of running, without the suffix."""
FILES = tuple(name for name in ALL_FILES if "native" in ENGINES or name != "test_af_alg_native")
"""Files that the installed engines can run."""
FULL_FILES = FILES[:4]
"""FILES with tests of the rest of the matrix."""
EVERY_RUN_FILES = tuple(name for name in FILES if name not in ("test_moving", IKE_FILE))
"""FILES with tests of every run."""


@dataclass(frozen=True)
class Outcome:
    """The result of one test. `faults` holds a text for each phase that did not pass."""

    test: str
    markers: frozenset[str]
    finished: bool
    seconds: float
    faults: tuple[str, ...]


@dataclass(frozen=True)
class InsideRun:
    """Results of one pytest in a machine; `tail` is the end of its output."""

    outcomes: tuple[Outcome, ...]
    status: int
    tail: str

    def of(self, name: str, marker: str) -> list[Outcome]:
        """Return the results of the tests of a file of FILES that have a marker."""
        return [
            outcome
            for outcome in self.outcomes
            if f"/{name}.py::" in outcome.test and marker in outcome.markers
        ]


def read_report(path: Path) -> tuple[Outcome, ...]:
    """Return the result of each collected test from a file that `pytest --report` has written."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    markers = {record["collected"]: record["markers"] for record in records if "markers" in record}
    phases: dict[str, list[dict[str, object]]] = {test: [] for test in markers}
    for record in records:
        if "test" in record:
            phases[record["test"]].append(record)
    return tuple(_outcome(test, markers[test], found) for test, found in phases.items())


def _outcome(test: str, markers: Iterable[str], phases: Sequence[Mapping[str, object]]) -> Outcome:
    return Outcome(
        test,
        frozenset(markers),
        finished=any(phase["when"] == "teardown" for phase in phases),
        seconds=sum(float(str(phase["seconds"])) for phase in phases),
        # A skipped test has not passed: what a machine lacks is a fault.
        faults=tuple(
            f"{phase['when']} {phase['outcome']}: {phase['details']}"
            for phase in phases
            if phase["outcome"] != "passed"
        ),
    )
