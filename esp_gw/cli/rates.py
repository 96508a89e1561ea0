"""Rates of the tunnels from their counters at two moments, and how a terminal shows them."""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from esp_gw.cli.output import counted
from esp_gw.errors import printable
from esp_gw.model import DropReason, TunnelState

HISTORY = 60
"""Seconds that a sparkline remembers at most."""
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*%#"
_NAME_WIDTH = 16
_STATE_WIDTH = 7


@dataclass(frozen=True, slots=True)
class Rate:
    """The rates of a tunnel, a second: inner bits and packets, and packets that were dropped."""

    name: str
    state: str
    bits_out: float
    bits_in: float
    packets_out: float
    packets_in: float
    drops: float

    def as_json(self) -> dict[str, object]:
        """Return the rates for a script, rounded."""
        return {
            name: round(value, 1) if isinstance(value, float) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, slots=True)
class _Counts:
    bytes_out: int
    bytes_in: int
    packets_out: int
    packets_in: int
    drops: int


class Rates:
    """Follows the tunnels; times are in seconds of one clock."""

    def __init__(self) -> None:
        self._at: float | None = None
        self._counts: dict[str, _Counts] = {}
        self._past: dict[str, deque[float]] = {}

    def take(self, tunnels: Iterable[Mapping[str, Any]], now: float) -> list[Rate] | None:
        """Return the rates since the last call, None at the first one.

        Those of a tunnel that is new are 0 until the next call.
        """
        before, since = self._counts, self._at
        entries = list(tunnels)
        self._counts = {entry["name"]: _counts(entry) for entry in entries}
        self._at = now
        self._past = {name: past for name, past in self._past.items() if name in self._counts}
        if since is None or now <= since:
            return None
        rates = [
            _rate(entry, before.get(entry["name"]), self._counts[entry["name"]], now - since)
            for entry in entries
        ]
        for rate in rates:
            past = self._past.setdefault(rate.name, deque(maxlen=HISTORY))
            past.append(rate.bits_out + rate.bits_in)
        return rates

    def history(self, name: str) -> Sequence[float]:
        """Return the bits a second of a tunnel, both ways, the oldest first."""
        return self._past.get(name, ())


def no_rates(tunnels: Iterable[Mapping[str, Any]]) -> list[Rate]:
    """Return tunnels that were looked at once: their rates are not known, and shown as 0."""
    return [_rate(entry, None, _counts(entry), 1.0) for entry in tunnels]


_BAD: dict[str, int] = {TunnelState.FAILING: 3, TunnelState.DOWN: 2, TunnelState.UP: 1}

SORTS: dict[str, tuple[str, Callable[[Rate], Any]]] = {
    "n": ("name", lambda rate: rate.name),
    "t": ("state", lambda rate: (-_BAD.get(rate.state, 0), rate.name)),
    "o": ("out", lambda rate: (-rate.bits_out, rate.name)),
    "i": ("in", lambda rate: (-rate.bits_in, rate.name)),
    "p": ("packets", lambda rate: (-rate.packets_out - rate.packets_in, rate.name)),
    "d": ("drops", lambda rate: (-rate.drops, rate.name)),
}
"""The orders of the tunnels, by their keys."""


def screen_lines(
    rates: Rates, now: Sequence[Rate], sort: str, first: int, size: tuple[int, int]
) -> list[str]:
    """Return the lines of the display: `size` is the terminal's, `first` the number of a row.

    The last line has the keys.
    """
    width, height = size
    name, key = SORTS[sort]
    ordered = sorted(now, key=key)
    rows = max(height - 4, 1)
    head = _row("NAME", "STATE", "OUT bit/s", "IN bit/s", "PACKETS/s", "DROPS/s")
    lines = [_total(now), "", head]
    room = max(width - len(head) - 2, 0)
    lines += [
        f"{_of(rate)}  {spark(rates.history(rate.name), room)}".rstrip()
        for rate in ordered[first : first + rows]
    ]
    more = len(ordered) - len(ordered[first : first + rows])
    shown = f", {more} more" if more > 0 else ""
    keys = " ".join(f"{each}:{words}" for each, (words, _) in SORTS.items())
    lines += [""] * (height - 1 - len(lines))
    lines.append(f"by {name}{shown}; {keys} q:quit")
    return lines


def row_line(rate: Rate) -> str:
    """Return the rates of a tunnel on a line, its name in full."""
    return _cells(rate, printable(rate.name))


def spark(past: Sequence[float], width: int) -> str:
    """Return the last values as a sparkline, the highest of them as its highest block."""
    blocks = _BLOCKS if _has_blocks() else _ASCII_BLOCKS
    last = list(past)[-width:] if width else []
    top = max(last, default=0.0)
    return "".join(
        " " if not value else blocks[math.ceil(value / top * len(blocks)) - 1] for value in last
    )


def figure(value: float) -> str:
    """Return a number with three digits or so, and its factor: `999`, `1.23 k`, `45.6 M`."""
    if value < 999.5:
        return f"{value:.0f}"
    for factor in "kMGT":
        value /= 1000
        if value < 999.5 or factor == "T":
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {factor}"


def _total(now: Sequence[Rate]) -> str:
    out, into = (
        _bits(sum(each))
        for each in ([rate.bits_out for rate in now], [rate.bits_in for rate in now])
    )
    bad = sum(rate.state in (TunnelState.DOWN, TunnelState.FAILING) for rate in now)
    fault = f", {bad} down or failing" if bad else ""
    return f"{counted(len(now), 'tunnel')}, {out} out, {into} in{fault}"


def _bits(value: float) -> str:
    number, _, factor = figure(value).partition(" ")
    return f"{number} {factor}bit/s"


def _row(name: str, state: str, *figures: str) -> str:
    out, into, packets, drops = figures
    return f"{name:{_NAME_WIDTH}} {state:{_STATE_WIDTH}} {out:>9} {into:>9} {packets:>9} {drops:>7}"


def _of(rate: Rate) -> str:
    name = printable(rate.name)
    if len(name) > _NAME_WIDTH:
        name = f"{name[: _NAME_WIDTH - 1]}~"
    return _cells(rate, name)


def _cells(rate: Rate, name: str) -> str:
    packets = rate.packets_out + rate.packets_in
    cells = (figure(each) for each in (rate.bits_out, rate.bits_in, packets, rate.drops))
    return _row(name, rate.state, *cells)


def _counts(entry: Mapping[str, Any]) -> _Counts:
    drops = {each: n for each, n in entry["drops"].items() if each != DropReason.DUMMY}
    return _Counts(
        entry["bytes_out"],
        entry["bytes_in"],
        entry["packets_out"],
        entry["packets_in"],
        sum(drops.values()),
    )


def _rate(entry: Mapping[str, Any], before: _Counts | None, now: _Counts, seconds: float) -> Rate:
    def grown(name: str) -> float:
        # A tunnel with a new key may count from 0 again.
        more = 0 if before is None else getattr(now, name) - getattr(before, name)
        return float(max(more, 0) / seconds)

    return Rate(
        entry["name"],
        entry["state"],
        8 * grown("bytes_out"),
        8 * grown("bytes_in"),
        grown("packets_out"),
        grown("packets_in"),
        grown("drops"),
    )


def _has_blocks() -> bool:
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        _BLOCKS.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True
