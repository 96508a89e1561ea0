"""A table in Markdown, aligned for a terminal, and its cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lab.bench.results import Result

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its title; the first column is left-aligned, the others right-aligned."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def render(self) -> str:
        """Markdown with aligned columns."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
        text = [self._line(self.head, widths), f"| {' | '.join(rule)} |"]
        text += [self._line(row, widths) for row in self.rows]
        note = f"\n{self.note}\n" if self.note else ""
        return f"### {self.title}\n\n" + "\n".join(text) + f"\n{note}"

    @staticmethod
    def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"


def number(value: float) -> str:
    """A figure rounded to its significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or not value else f"{value:.3f}"


def cell(result: Result | None) -> str:
    """Median and range, with an asterisk if a note names a limit of the figure."""
    if result is None:
        return MISSING
    star = "*" if result.note else ""
    if result.low == result.high:
        return f"{number(result.median)}{star}"
    return f"{number(result.median)}{star} ({number(result.low)}-{number(result.high)})"


def percents(cpu: Sequence[float]) -> str:
    """Processor time of the daemons, as `80 + 75 %`."""
    return f"{' + '.join(f'{value:.0f}' for value in cpu)} %" if cpu else MISSING


def ratio(value: float | None) -> str:
    """A ratio, or MISSING."""
    return MISSING if value is None else number(value)
