"""Interleaved rounds: every subject once per round, so that noise affects all alike."""

from __future__ import annotations

import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from esp_gw.errors import EspGwError
from lab.bench.measures import TESTS
from lab.bench.model import Failure, Memory, Observation, Subject
from lab.bench.plan import Plan, Section

MAX_FAILURES = 2
"""Failures of a test for a subject after which it is not tried again."""

FAULTS = (EspGwError, OSError, LookupError, ValueError, ArithmeticError)
"""Errors of a system or a measuring program: recorded, and the run continues."""


class Session:
    """State of one run: observations and failures so far."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self._plan = plan
        self._say = say
        self._began = time.monotonic()
        self._memory: defaultdict[str, Memory] = defaultdict(Memory)
        self._failed: Counter[tuple[str, str, str]] = Counter()
        self.observations: list[Observation] = []
        self.failures: list[Failure] = []

    def run(self) -> None:
        """Take every turn of the plan. A failure is recorded and the run continues."""
        for number, section, subject in self._plan.turns():
            self._turn(number, section, subject)

    def progress(self, what: str) -> None:
        """Print the next step and the elapsed time."""
        gone = time.monotonic() - self._began
        self._say(f"[{minutes(gone)} of about {minutes(self._plan.seconds)}] {what}")

    def observe(self, observation: Observation) -> None:
        """Record a figure."""
        self.observations.append(observation)

    def fail(self, section: str, system: str, test: str, reason: str) -> None:
        """Record a failed measurement, once."""
        failure = Failure(section, system, test, reason)
        if failure not in self.failures:
            self.failures.append(failure)
            self._say(f"  {system}{f', {test}' if test else ''}: {reason}")

    def _turn(self, number: int, section: Section, subject: Subject) -> None:
        system = subject.system
        if self._gives_up(section.name, system, ""):
            return
        self.progress(f"round {number + 1} of {self._plan.rounds}: {section.name}, {system}")
        with (
            self._noted(section.name, system, ""),
            scratch() as folder,
            subject.open(folder) as link,
        ):
            for name in subject.tests:
                if self._gives_up(section.name, system, name):
                    continue
                with self._noted(section.name, system, name):
                    samples = TESTS[name].run(link, self._plan.lengths, self._memory[system])
                    for sample in samples:
                        self.observe(Observation(section.name, system, name, number, sample))

    def _gives_up(self, section: str, system: str, test: str) -> bool:
        return self._failed[section, system, test] >= MAX_FAILURES

    @contextmanager
    def _noted(self, section: str, system: str, test: str) -> Iterator[None]:
        try:
            yield
        except FAULTS as error:
            self._failed[section, system, test] += 1
            self.fail(section, system, test, reason(error))


def reason(fault: Exception) -> str:
    """An error on one line; prefixed with its type unless it is one of esp_gw's own."""
    is_ours = isinstance(fault, EspGwError)
    return " ".join((str(fault) if is_ours else f"{type(fault).__name__}: {fault}").split())


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for keys, configurations and logs."""
    with tempfile.TemporaryDirectory(prefix="esp-gw-bench-") as folder:
        yield Path(folder)


def minutes(seconds: float) -> str:
    """A duration as M:SS."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
