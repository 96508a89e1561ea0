"""Output of the commands: JSON documents, tables and blocks of `name: value`."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from esp_gw.cli.folding import table_lines, terminal_width, text_lines
from esp_gw.errors import EspGwError, printable
from esp_gw.model import ANY, DropReason, Encapsulation

_MANY_LANES = 8
"""Number of lanes up to which each is shown, also without flows."""
_NO_BREAK = "\N{NO-BREAK SPACE}"


def print_json(document: Mapping[str, object]) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(document, indent=2))


def refuse_open_stdout(hint: str) -> None:
    """Raise EspGwError, with this hint, if keys on stdout would be seen or kept: it is no pipe."""
    mode = os.fstat(sys.stdout.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise EspGwError("stdout is not a pipe, so the keys would be visible to others", hint=hint)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], none: str) -> None:
    """Print a header and one line per row, or the line `none` if there are no rows.

    A column that is empty in all rows is left out. On a terminal that is too narrow, a row has
    several lines.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        click.echo(none)
        return
    used = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    cells = [[row[i] for i in used] for row in cells]
    names = [columns[i] for i in used]
    right = [_is_number(name, [row[i] for row in cells]) for i, name in enumerate(names)]
    click.echo("\n".join(table_lines([names, *cells], right, terminal_width())))


def _is_number(column: str, cells: Iterable[str]) -> bool:
    return not column.startswith("SPI") and all(not cell or cell[0].isdigit() for cell in cells)


def print_block(title: str, name: str, fields: Mapping[str, str]) -> None:
    """Print a heading and the non-empty fields, one per line, in the style of `wg show`."""
    print_text(f"{title}: {name}")
    for field, value in fields.items():
        if value:
            print_text(f"{field}: {value}", indent="  ", hanging="      ")


def print_text(text: str, indent: str = "", hanging: str = "  ") -> None:
    """Print a line, between words divided where a terminal is narrower; `hanging` begins the rest.

    Elsewhere it stays one line.
    """
    for line in text_lines(printable(text), terminal_width(), indent, hanging):
        click.echo(line)


def spi(value: int) -> str:
    """Format an SPI like `ip xfrm`."""
    return f"0x{value:08x}"


def size(count: int) -> str:
    """Format a number of bytes in binary units, with three digits or more."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1024:
            return f"{value:.2f} {unit}"
    return f"{value / 1024:.2f} PiB"


def span(seconds: float) -> str:
    """Format a duration in its two largest units."""
    minutes, secs = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (secs, "s")]
    while len(parts) > 1 and not parts[0][0]:
        parts.pop(0)
    return " ".join(f"{number} {unit}" for number, unit in parts[:2])


def age(seconds: float | None) -> str:
    """Format the time since something happened, which may be never."""
    return "never" if seconds is None else f"{span(seconds)} ago"


def counted(number: int, noun: str) -> str:
    """Format a number with its noun: `1 tunnel`, `2 tunnels`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def lanes(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the flows that each lane of a tunnel carries: `0: 3`, `1: 0`; none without lanes.

    Of many lanes those without flows are counted: `62 without flows`.
    """
    flows = {number: entry["flows"] for number, entry in enumerate(entries)}
    idle = sum(not count for count in flows.values()) if len(flows) > _MANY_LANES else 0
    there = [f"{number}: {count}" for number, count in flows.items() if count or not idle]
    return [*there, f"{idle} without flows"] if idle else there


def print_wrapped(text: str) -> None:
    """Print a line, broken between words where it is wider than a small terminal."""
    click.echo(_wrapped(printable(text)))


def print_listed(head: str, items: Iterable[str], indent: str = "") -> None:
    """Print a line with items, broken like `print_wrapped`, but within no item."""
    listed = ", ".join(printable(item).replace(" ", _NO_BREAK) for item in items)
    click.echo(_wrapped(f"{printable(head)}: {listed}", indent).replace(_NO_BREAK, " "))


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text,
        80,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def endpoint(address: str, port: int | None) -> str:
    """Format an address, with its UDP port if there is one."""
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def remote(entry: Mapping[str, Any]) -> str:
    """Format the peer of an SA or tunnel, with its port where ESP is in UDP."""
    has_port = entry["encapsulation"] == Encapsulation.UDP and entry["remote"] != ANY
    return endpoint(entry["remote"], entry["remote_port"] if has_port else None)


def drops(counters: Mapping[str, int] | int | None) -> str:
    """Format the non-zero drop counters, by reason if the reasons are known.

    Keepalives of the peer are no loss.
    """
    if isinstance(counters, Mapping):
        return ", ".join(
            f"{reason} {count}"
            for reason, count in counters.items()
            if count and reason != DropReason.DUMMY
        )
    return str(counters) if counters else ""


def joined(values: Iterable[Any] | None) -> str:
    """Join values with commas."""
    return ", ".join(str(value) for value in values or ())


def word(value: object) -> str:
    """Format a value as one word of a shell's command."""
    return printable(shlex.quote(str(value)))
