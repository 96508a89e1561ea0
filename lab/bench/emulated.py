"""Instructions per packet on aarch64, counted under qemu's user emulation: a count, not a speed.

The program is crates/esp-core/examples/core_bench.rs for aarch64. scripts/count-instructions builds
it and the counting plugin for qemu, then runs this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from esp_gw.demo.netns import run_command
from esp_gw.errors import LabError
from lab.bench.table import Table

SUITES = ("aes256gcm16", "chacha20poly1305")
SIZES = (64, 576, 1400)
TIMEOUT = 300.0
# The difference between the two runs is the cost of the packets, without program startup.
_BATCHES = (20, 120)
_COUNTED = re.compile(r"(\d+) instructions, (\d+) crypto")


@dataclass(frozen=True, slots=True)
class Board:
    """A processor by its qemu name, and the library preloaded into the program."""

    name: str
    cpu: str
    preload: Path | None = None


@dataclass(frozen=True, slots=True)
class Emulator:
    """Runs `program` under qemu with the counting plugin; `libraries` is qemu's sysroot (-L)."""

    program: Path
    plugin: Path
    libraries: Path

    def run(self, board: Board, *arguments: str) -> tuple[str, int, int]:
        """Return the output, all instructions, and AES and GHASH instructions. Raises LabError."""
        preload = ("-E", f"LD_PRELOAD={board.preload}") if board.preload else ()
        command = (
            *("qemu-aarch64", "-cpu", board.cpu, "-L", str(self.libraries), *preload),
            *("-plugin", str(self.plugin), str(self.program), *arguments),
        )
        result = run_command(command, TIMEOUT, False, where="qemu-aarch64")
        counted = _COUNTED.search(result.stderr)
        if result.returncode or counted is None:
            lines = result.stderr.strip().splitlines() or ["the plugin counted nothing"]
            raise LabError(lines[0], where="qemu-aarch64")
        return result.stdout, int(counted[1]), int(counted[2])

    def packet(self, board: Board, *arguments: str) -> tuple[float, float]:
        """Return instructions per packet, and AES and GHASH instructions. Raises LabError."""
        runs = []
        for batches in _BATCHES:
            output, *counts = self.run(board, *arguments, "--batches", str(batches))
            runs.append((int(output.split()[0]), *counts))
        packets, instructions, crypto = (
            more - less for less, more in zip(runs[0], runs[1], strict=True)
        )
        return instructions / packets, crypto / packets


def table(emulator: Emulator, suite: str, boards: tuple[Board, ...]) -> Table:
    """Count the cases of a suite on each board. Raises LabError."""
    return Table(
        suite,
        ("per packet", *(text for board in boards for text in (board.name, "of which AES"))),
        tuple(_rows(emulator, suite, boards)),
    )


def _rows(emulator: Emulator, suite: str, boards: tuple[Board, ...]) -> Iterator[tuple[str, ...]]:
    cases = json.loads(emulator.run(boards[0], "--cases", "--suite", suite)[0])
    for number, case in enumerate(cases):
        if case["size"] in SIZES:
            figures = [
                f"{count:,.0f}"
                for board in boards
                for count in emulator.packet(board, "--suite", suite, "--case", str(number))
            ]
            yield (f"{case['test']}, {case['size']:,} bytes, {case['provider']}", *figures)


_FILE = click.Path(exists=True, path_type=Path)


@click.command()
@click.option("--program", type=_FILE, required=True)
@click.option("--plugin", type=_FILE, required=True)
@click.option("--no-aes", type=_FILE, required=True)
@click.option("--libraries", type=_FILE, required=True)
def count(program: Path, plugin: Path, no_aes: Path, libraries: Path) -> None:
    """Print tables of instructions per packet, as Markdown."""
    emulator = Emulator(program, plugin, libraries)
    boards = (Board("Pi 5", "cortex-a76"), Board("Pi 3, 4", "cortex-a72", preload=no_aes))
    try:
        for suite in SUITES:
            print(table(emulator, suite, boards).render())
    except LabError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    count()
