"""What the commands print: JSON documents, tables and blocks of `name: value`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from esp_gw.errors import printable

_MAX_FOLDED = 200
"""Rows of the longest table that is folded: folding takes a millisecond or two a row."""


def print_json(document: Mapping[str, object]) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], none: str) -> None:
    """Rows under their columns, or the line `none`; a column that is empty in all rows is left out.

    On a terminal long cells are folded, elsewhere and in long tables every row is one line.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(none)
        return
    used = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    cells = [[row[i] for i in used] for row in cells]
    names = [columns[i] for i in used]
    right = [_is_number(name, [row[i] for row in cells]) for i, name in enumerate(names)]
    if sys.stdout.isatty() and len(cells) <= _MAX_FOLDED:
        _print_folded(names, cells, right)
    else:
        click.echo("\n".join(_lines([names, *cells], right)))


def _is_number(column: str, cells: Iterable[str]) -> bool:
    return not column.startswith("SPI") and all(not cell or cell[0].isdigit() for cell in cells)


def _print_folded(names: list[str], cells: list[list[str]], right: list[bool]) -> None:
    from rich.console import Console  # noqa: PLC0415 - slow to import
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, to_right in zip(names, right, strict=True):
        table.add_column(name, justify="right" if to_right else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    Console(markup=False, emoji=False, highlight=False).print(table)


def _lines(rows: list[list[str]], right: list[bool]) -> Iterator[str]:
    """The rows as rich lays them out where there is room: it takes milliseconds for each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        )
        yield "  ".join(padded).rstrip()


def print_block(title: str, name: str, fields: Mapping[str, str]) -> None:
    """A heading and the fields that are not empty, one a line, as `wg show` prints them."""
    click.echo(f"{title}: {printable(name)}")
    for field, value in fields.items():
        if value:
            click.echo(f"  {field}: {printable(value)}")


def spi(value: int) -> str:
    """An SPI as `ip xfrm` writes it."""
    return f"0x{value:08x}"


def size(count: int) -> str:
    """Bytes in binary units, with three digits or more."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.2f} {unit}"
    return f"{value / 1024:.2f} PiB"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (secs, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2])


def counted(number: int, noun: str) -> str:
    """A number of things: `1 tunnel`, `2 tunnels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def endpoint(address: str, port: int | None) -> str:
    """An address, with its UDP port where there is one."""
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def drops(counters: Mapping[str, int] | int | None) -> str:
    """Drop counters that are not zero, by reason where the reasons are known."""
    if isinstance(counters, Mapping):
        return ", ".join(f"{reason} {count}" for reason, count in counters.items() if count)
    return str(counters) if counters else ""


def joined(values: Iterable[Any] | None) -> str:
    """Values with commas between them."""
    return ", ".join(str(value) for value in values or ())
