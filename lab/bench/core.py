"""The core alone: the program of crates/esp-core/examples/core_bench.rs, and what it printed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esp_gw.errors import LabError
from lab.bench.results import Result

SUPER_LEN = 62500
"""The inner bytes of the program's super-packet."""
TIMEOUT = 600.0
_UNITS = {
    "ns_per_packet": "ns",
    "instructions_per_packet": "instructions",
    "speedup": "threads 2 / 1",
}


def measure(program: Path, rounds: int, *, instructions: bool) -> list[Result]:
    """Run the program, and once more under valgrind if `instructions`. Raises LabError."""
    entries = _run(program, "--rounds", str(rounds))
    if instructions:
        entries += _run(program, "--instructions")
    return list(parse(entries))


def parse(entries: Sequence[Mapping[str, Any]]) -> Iterator[Result]:
    """The results of the program's JSON list; each provider is a system. Raises LabError."""
    try:
        for entry in entries:
            metric = str(entry["metric"])
            if int(entry["threads"]) > 1:
                metric += f"_{entry['threads']}_threads_{entry['sas']}"
            yield Result(
                section="core",
                system=f"native-{entry['provider']}",
                test=f"core_{entry['test']}_{entry['size']}",
                metric=metric,
                unit=_UNITS.get(str(entry["metric"]), ""),
                median=float(entry["median"]),
                low=float(entry["min"]),
                high=float(entry["max"]),
            )
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(f"an entry of the core's figures is not understood: {error}") from None


def _run(program: Path, *arguments: str) -> list[dict[str, Any]]:
    try:
        result = subprocess.run(
            [str(program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["it failed"]
            raise LabError(lines[0], where=program.name)
        entries: list[dict[str, Any]] = json.loads(result.stdout)
    except (OSError, ValueError) as error:
        raise LabError(str(error), where=program.name) from None
    except subprocess.TimeoutExpired:
        raise LabError(f"took longer than {TIMEOUT:.0f} s", where=program.name) from None
    return entries
