"""Tables: alignment, empty columns, and one line per row everywhere."""

from __future__ import annotations

import io
import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.cli import output

COLUMNS = ("NAME", "SPI", "PACKETS", "DROPS")
CELLS = st.text(string.ascii_letters + string.digits + " .:", max_size=12).map(str.strip)

NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)


class Terminal(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


def printed(screen: io.StringIO, rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table on this screen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        patch.setattr(sys, "stdout", screen)
        output.print_table(COLUMNS[: len(rows[0])], rows, none="nothing")
    return screen.getvalue().splitlines()


@given(st.lists(st.tuples(NAMES, CELLS, CELLS, CELLS), min_size=1, max_size=8))
def test_columns_are_aligned_with_numbers_to_the_right_and_empty_columns_left_out(
    rows: list[tuple[str, ...]],
) -> None:
    lines = printed(io.StringIO(), rows)
    assert len(lines) == 1 + len(rows)
    start = 0
    for i, name in enumerate(COLUMNS):
        cells = [row[i] for row in rows]
        if not any(cells):
            continue
        right = name != "SPI" and all(not cell or cell[0] in string.digits for cell in cells)
        end = start + max(map(len, (name, *cells)))
        for cell, line in zip((name, *cells), lines, strict=True):
            padding = " " * (end - start - len(cell))
            assert line.ljust(end)[start:end] == (padding + cell if right else cell + padding)
            assert line[end : end + 2].strip() == ""
        start = end + 2
    assert max(map(len, lines)) <= start - 2
    assert lines == [line.rstrip() for line in lines]


def test_a_terminal_gets_the_same_lines_without_folding_or_escape_codes() -> None:
    rows = [("office", "x" * 100), ("attic", "7")]
    lines = printed(Terminal(), rows)
    assert lines == ["NAME    SPI", "office  " + "x" * 100, "attic   7"]
    assert lines == printed(io.StringIO(), rows)


def test_a_table_of_thousands_of_rows_has_a_line_for_each() -> None:
    rows = [(f"tunnel-{number}", "2001:db8:1:2:3:4:5:6") for number in range(5_000)]
    header, first, *_, last = lines = printed(Terminal(), rows)
    assert header == "NAME         SPI"
    assert first == "tunnel-0     2001:db8:1:2:3:4:5:6"
    assert last == "tunnel-4999  2001:db8:1:2:3:4:5:6"
    assert len(lines) == 5_001
