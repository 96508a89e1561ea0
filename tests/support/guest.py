"""A virtual machine for tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lab.vm.__main__ import CHECKOUT, here
from lab.vm.initramfs import OUT
from lab.vm.machine import Machine, Setup, run
from lab.vm.protocol import Kind

LIMIT = 900.0
"""Seconds for one command in a machine: an emulator that may share two processors."""
INSIDE = "ESP_GW_INSIDE_VM"
"""The environment variable set for tests that run in a machine."""

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

    def run(self, *arguments: str, env: Mapping[str, str] | None = None) -> Result:
        output = {Kind.STDOUT: b"", Kind.STDERR: b""}

        def collect(kind: Kind, data: bytes) -> None:
            output[kind] += data

        words = ("env", *(f"{name}={value}" for name, value in (env or {}).items()), *arguments)
        command = here(self._setup, words, CHECKOUT)
        status = run(self._machine, command, collect, time.monotonic() + LIMIT)
        return Result(status, output[Kind.STDOUT].decode(), output[Kind.STDERR].decode())

    def pytest(self, name: str) -> Result:
        """Run tests/vm/inside/NAME.py in the machine; its evidence goes to /out/NAME.jsonl."""
        program = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--timeout=600")
        evidence = f"--evidence={OUT}/{name}.jsonl"
        return self.run(*program, evidence, f"tests/vm/inside/{name}.py", env={INSIDE: "1"})
