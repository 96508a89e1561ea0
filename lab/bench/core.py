"""The core alone: runs crates/esp-core/examples/core_bench.rs and parses its output."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import run_command
from esp_gw.errors import LabError
from lab.bench.results import Result

SUPER_LEN = 62500
"""Inner bytes of the program's super-packet."""
BUILT = Path("crates/target/release/examples/core_bench")
"""The program in a checkout in which ./scripts/bench has built it."""
TIMEOUT = 600.0
_UNITS = {
    "ns_per_packet": "ns",
    "instructions_per_packet": "instructions",
    "speedup": "threads 2 / 1",
}


def nanoseconds(program: Path, rounds: int) -> list[Result]:
    """Time of a packet, and what splitting a super-packet gains. Raises LabError."""
    entries = _run(program, "--rounds", str(rounds))
    return list(parse(entries + _run(program, "--split", "--rounds", str(rounds))))


def instructions(program: Path, system: str = "native") -> list[Result]:
    """Instructions of a packet, counted by valgrind. Raises LabError."""
    return list(parse(_run(program, "--instructions"), system))


def parse(entries: Sequence[Mapping[str, Any]], system: str = "native") -> Iterator[Result]:
    """Results from the program's JSON list; `system` with each provider is one. Raises LabError."""
    try:
        for entry in entries:
            metric = str(entry["metric"])
            if int(entry["threads"]) > 1:
                metric += f"_{entry['threads']}_threads_{entry['sas']}"
            yield Result(
                section="core",
                system=f"{system}-{entry['provider']}",
                test=f"core_{entry['test']}_{entry['size']}",
                metric=metric,
                unit=_UNITS.get(str(entry["metric"]), ""),
                median=float(entry["median"]),
                low=float(entry["min"]),
                high=float(entry["max"]),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"malformed entry in core_bench's output: {error}") from None


def _run(program: Path, *arguments: str) -> list[dict[str, Any]]:
    try:
        result = run_command((str(program), *arguments), TIMEOUT, False, where=program.name)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["it failed"]
            raise LabError(lines[0], where=program.name)
        entries: list[dict[str, Any]] = json.loads(result.stdout)
    except (OSError, ValueError) as error:
        raise LabError(str(error), where=program.name) from None
    return entries
