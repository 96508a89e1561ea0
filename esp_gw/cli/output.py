"""What the commands print: JSON documents, tables and blocks of `name: value`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click


def print_json(document: Mapping[str, object]) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], none: str) -> None:
    """Rows under their columns, or the line `none`; a column that is empty in all rows is left out.

    On a terminal long cells are folded, elsewhere every row is one line.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(none)
        return
    used = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    from rich.console import Console  # noqa: PLC0415 - slow to import, and --json needs none of it
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i in used:
        numeric = all(not row[i] or row[i][0].isdigit() for row in cells)
        justify = "right" if numeric and not columns[i].startswith("SPI") else "left"
        table.add_column(columns[i], justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in cells:
        table.add_row(*(row[i] for i in used))
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def print_block(title: str, name: str, fields: Mapping[str, str]) -> None:
    """A heading and the fields that are not empty, one a line, as `wg show` prints them."""
    click.echo(f"{title}: {printable(name)}")
    for field, value in fields.items():
        if value:
            click.echo(f"  {field}: {printable(value)}")


def printable(text: str) -> str:
    """The text on one line, control characters as escapes: a terminal shall not obey them."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


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
