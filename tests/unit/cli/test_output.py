"""Tables: what they look like on a terminal and elsewhere, small and large."""

from __future__ import annotations

import io
import string
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from esp_gw.cli import output

COLUMNS = ("NAME", "SPI", "PACKETS", "DROPS")
CELLS = st.text(string.ascii_letters + string.digits + " .:", max_size=12).map(str.strip)

NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)


class Screen(io.StringIO):
    """A terminal of 80 columns."""

    def isatty(self) -> bool:
        return True


def printed(screen: io.StringIO, rows: list[tuple[str, ...]]) -> list[str]:
    """The lines of a table on this screen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "dumb")
        patch.setattr(sys, "stdout", screen)
        output.print_table(COLUMNS[: len(rows[0])], rows, none="nothing")
    return [line.rstrip() for line in screen.getvalue().splitlines()]


def with_rich(rows: list[tuple[str, ...]], right: set[str]) -> list[str]:
    """The table as rich draws it where there is room."""
    used = [i for i in range(len(COLUMNS)) if any(row[i] for row in rows)]
    table = Table(box=None, pad_edge=False)
    for i in used:
        table.add_column(COLUMNS[i], justify="right" if COLUMNS[i] in right else "left")
    for row in rows:
        table.add_row(*(row[i] for i in used))
    console = Console(file=io.StringIO(), width=1000, markup=False, emoji=False, highlight=False)
    console.print(table)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


@given(st.lists(st.tuples(NAMES, CELLS, CELLS, CELLS), min_size=1, max_size=8))
def test_a_table_that_is_not_on_a_terminal_looks_as_rich_draws_it(
    rows: list[tuple[str, ...]],
) -> None:
    right = {
        name
        for i, name in enumerate(COLUMNS)
        if name != "SPI" and all(not row[i] or row[i][0].isdigit() for row in rows)
    }
    assert printed(io.StringIO(), rows) == with_rich(rows, right)


def test_long_cells_are_folded_on_a_terminal() -> None:
    header, *folded = printed(Screen(), [("office", "x" * 100)])
    assert header == "NAME    SPI"
    assert folded == ["office  " + "x" * 72, "        " + "x" * 28]


def test_a_table_of_thousands_of_rows_has_a_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, too: rich would take half a minute."""
    monkeypatch.setitem(sys.modules, "rich.table", None)
    rows = [(f"tunnel-{number}", "2001:db8:1:2:3:4:5:6") for number in range(5_000)]
    header, first, *_, last = lines = printed(Screen(), rows)
    assert header == "NAME         SPI"
    assert first == "tunnel-0     2001:db8:1:2:3:4:5:6"
    assert last == "tunnel-4999  2001:db8:1:2:3:4:5:6"
    assert len(lines) == 5_001
