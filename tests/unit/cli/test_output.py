"""Tables: alignment, empty columns, a line for each row, or several on a narrow terminal."""

from __future__ import annotations

import io
import string
import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.cli import output
from esp_gw.cli.folding import text_lines

COLUMNS = ("NAME", "SPI", "PACKETS", "DROPS")
CELLS = st.text(string.ascii_letters + string.digits + " .:", max_size=12).map(str.strip)

NAMES = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)


class Terminal(io.StringIO):
    """A terminal, of 80 columns unless COLUMNS says otherwise."""

    def isatty(self) -> bool:
        return True


def printed(screen: io.StringIO, rows: Sequence[tuple[str, ...]], columns: int = 80) -> list[str]:
    """Return the lines of a table on this screen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", str(columns))
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


def test_a_wide_terminal_gets_the_same_lines_without_escape_codes() -> None:
    rows = [("office", "x" * 70), ("attic", "7")]
    lines = printed(Terminal(), rows)
    assert lines == ["NAME    SPI", "office  " + "x" * 70, "attic   7"]
    assert lines == printed(io.StringIO(), rows)


def test_a_row_that_is_wider_than_the_terminal_goes_on_in_aligned_lines() -> None:
    rows = [("office", "a" * 60, "1", "10.1.0.0/24"), ("attic", "b", "20", "10.2.0.0/24")]
    assert printed(Terminal(), rows) == [
        "NAME    SPI" + " " * 57 + "  PACKETS",
        "  DROPS",
        "office  " + "a" * 60 + "  1",
        "  10.1.0.0/24",
        "attic   b" + " " * 59 + "  20",
        "  10.2.0.0/24",
    ]


def test_a_cell_that_is_wider_than_the_terminal_is_divided_between_its_items() -> None:
    ours, theirs = (f"2001:db8:{i}:ffff:ffff:ffff:ffff:ffff/128" for i in (1, 2))
    assert printed(Terminal(), [("office", f"{ours}, 10.1.0.0/24 - {theirs}")])[2:] == [
        "office",
        f"  {ours}, 10.1.0.0/24",
        f"  - {theirs}",
    ]


COUNTS = st.integers(0, 2**64 - 1)
ITEMS = st.lists(
    st.one_of(
        st.ip_addresses().map(str),
        st.ip_addresses(network="2001:db8::/32").map(lambda address: f"[{address}]:4500"),
        st.builds("{} {}".format, st.sampled_from(["too-big", "auth-failed"]), COUNTS),
        st.builds("{}.{:02} {}".format, *[st.integers(0, 99)] * 2, st.sampled_from(["KiB", "B"])),
    ),
    max_size=6,
)


@given(
    st.lists(st.tuples(NAMES, ITEMS, ITEMS, ITEMS), min_size=1, max_size=6), st.integers(50, 200)
)
def test_no_address_and_no_number_is_divided_at_any_width(
    rows: list[tuple[str, list[str], list[str], list[str]]], width: int
) -> None:
    cells = [(name, *(", ".join(items) for items in lists)) for name, *lists in rows]
    lines = printed(Terminal(), cells, columns=width)
    assert [line for line in lines if len(line) > width] == []
    text = "\n".join(lines)
    for _, *lists in rows:
        for item in (item for items in lists for item in items):
            assert item in text


@pytest.mark.parametrize("width", range(24, 90))
def test_a_text_is_divided_between_words_but_not_beside_a_number(width: int) -> None:
    words = [
        "sent",
        "5.25 MiB",
        "in",
        "2 min 3 s",
        "to",
        "2001:db8::1",
        "(too-big 3, replay-old 42)",
    ]
    lines = text_lines(" ".join(words), width)
    assert max(map(len, lines)) <= max(width, 26)
    for whole in ("5.25 MiB", "2 min", "3 s", "2001:db8::1", "too-big 3", "replay-old 42"):
        assert any(whole in line for line in lines)
    assert " ".join(line.strip() for line in lines) == " ".join(words)


def test_a_table_of_thousands_of_rows_has_a_line_for_each() -> None:
    rows = [(f"tunnel-{number}", "2001:db8:1:2:3:4:5:6") for number in range(5_000)]
    header, first, *_, last = lines = printed(Terminal(), rows)
    assert header == "NAME         SPI"
    assert first == "tunnel-0     2001:db8:1:2:3:4:5:6"
    assert last == "tunnel-4999  2001:db8:1:2:3:4:5:6"
    assert len(lines) == 5_001
