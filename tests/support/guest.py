"""A virtual machine for tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lab.vm.__main__ import CHECKOUT, here
from lab.vm.initramfs import OUT
from lab.vm.machine import Machine, run
from lab.vm.protocol import Kind
from lab.vm.qemu import Setup

LIMIT = 900.0
"""Seconds for one command in a machine: an emulator that may share two processors."""
INSIDE_LIMIT = 3600.0
"""Seconds for all tests inside: many times what they take, as each has a limit of its own."""
INSIDE = "ESP_GW_INSIDE_VM"
"""The environment variable set for tests that run in a machine."""
REPORT, EVIDENCE = "report.jsonl", "evidence.jsonl"
"""Files in the folder /out with the results of the tests inside."""

MakeSetup = Callable[..., Setup]


@dataclass(frozen=True)
class Result:
    """Exit status and output of a command in a machine."""

    status: int
    stdout: str
    stderr: str

    @property
    def tail(self) -> str:
        """Status and the end of the output, for a failure message."""
        return f"status {self.status}\n{self.stdout[-6000:]}\n{self.stderr[-3000:]}"


class Guest:
    """A machine that runs commands for tests, in the checkout."""

    def __init__(self, machine: Machine, setup: Setup) -> None:
        self._machine = machine
        self._setup = setup

    def run(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        limit: float = LIMIT,
        echo: bool = False,
    ) -> Result:
        """Run a command for up to `limit` seconds; if `echo`, print its output as it comes."""
        output = {Kind.STDOUT: b"", Kind.STDERR: b""}

        def collect(kind: Kind, data: bytes) -> None:
            output[kind] += data
            if echo:
                sys.stdout.write(data.decode(errors="replace"))
                sys.stdout.flush()

        words = ("env", *(f"{name}={value}" for name, value in (env or {}).items()), *arguments)
        command = here(self._setup, words, CHECKOUT)
        status = run(self._machine, command, collect, time.monotonic() + limit)
        return Result(status, output[Kind.STDOUT].decode(), output[Kind.STDERR].decode())

    def pytest(self, names: Iterable[str], markers: str, limit: float) -> Result:
        """Run the tests with `markers`, as in -m, of files of tests/vm/inside in the machine.

        Their results go to REPORT in /out, their evidence to EVIDENCE. The output is printed as it
        comes: if the machine hangs, it shows the test.
        """
        program = (sys.executable, "-u", "-m", "pytest", "-v", "-p", "no:cacheprovider")
        program += ("--timeout=600",)
        results = (f"--report={OUT}/{REPORT}", f"--evidence={OUT}/{EVIDENCE}")
        files = (f"tests/vm/inside/{name}.py" for name in names)
        return self.run(
            *program, *results, "-m", markers, *files, env={INSIDE: "1"}, limit=limit, echo=True
        )
