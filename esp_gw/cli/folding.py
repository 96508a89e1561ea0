"""Lines for a terminal of any width: no address, and no number with its unit, is ever divided."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence

_NO_BREAK = "\N{NO-BREAK SPACE}"
_INDENT = "  "
_USUAL_WIDTH = 80
_BETWEEN_ITEMS = re.compile(r"(?<=,) | (?=- )")
"""The places of a cell where it may be divided: between `a, b`, and in front of `- b`."""
_BESIDE_A_NUMBER = re.compile(r"(?<![^\s(])([\d.]+) (?=\w)|(?<=[\w-]) (?=\d+(?:[,;)]|$))")


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout is, or None if it is none."""
    if not sys.stdout.isatty():
        return None
    # shutil has a function for this, and imports compressors: a command starts with little.
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stdout.fileno()).columns or _USUAL_WIDTH
    return _USUAL_WIDTH


def table_lines(
    rows: Sequence[Sequence[str]], right: Sequence[bool], width: int | None
) -> Iterator[str]:
    """Yield rows with aligned columns, two spaces apart; those marked `right` to the right.

    Where rows are wider than `width`, they go on in further lines, which are indented and aligned
    with those of the other rows; everything is to the left then.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    groups = [list(range(len(widths)))] if width is None else _groups(widths, width)
    if len(groups) > 1:
        right = [False] * len(widths)
    for row in rows:
        for number, group in enumerate(groups):
            indent = _INDENT if number else ""
            if len(group) == 1 and width is not None:
                yield from _divided(row[group[0]], indent, width)
                continue
            cells = (
                row[i].rjust(widths[i]) if right[i] else row[i].ljust(widths[i]) for i in group
            )
            line = f"{indent}{'  '.join(cells)}".rstrip()
            if line or not number:
                yield line


def _groups(widths: Sequence[int], width: int) -> list[list[int]]:
    """Return the columns of each line, as many as there is room for."""
    groups: list[list[int]] = [[]]
    used = 0
    for column, needed in enumerate(widths):
        if groups[-1] and used + 2 + needed > width:
            groups.append([])
        used = used + 2 + needed if groups[-1] else needed + len(_INDENT) * (len(groups) > 1)
        groups[-1].append(column)
    return groups


def _divided(cell: str, indent: str, width: int) -> list[str]:
    """Return a cell that has lines of its own."""
    items = [item.replace(" ", _NO_BREAK) for item in _BETWEEN_ITEMS.split(cell)]
    return _fill(" ".join(items), width, indent, indent)


def text_lines(text: str, width: int | None, indent: str = "", hanging: str = "  ") -> list[str]:
    """Return a text, between words divided where it is wider than `width`.

    Further lines begin with `hanging`.
    """
    if width is None:
        return [f"{indent}{text}"]
    whole = _BESIDE_A_NUMBER.sub(lambda found: found[0].replace(" ", _NO_BREAK), text)
    return _fill(whole, width, indent, hanging)


def _fill(text: str, width: int, indent: str, hanging: str) -> list[str]:
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(_NO_BREAK, " ") for line in lines]
