"""The table of a measurement between two machines."""

from __future__ import annotations

from collections.abc import Iterator

from lab.two_pis.answers import Rate, Reading
from lab.two_pis.measure import Report

_UNKNOWN = "-"


def table(report: Report) -> str:
    """Return the table: the rates, then each board's reported state before and after."""
    cells = list(_rows(report))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def _rows(report: Report) -> Iterator[tuple[str, str, str, str]]:
    yield f"{report.seconds} s each", "without", "through the tunnel", "share"
    for test in report.tests:
        share = _UNKNOWN
        if test.without is not None and test.without.mbit_s:
            share = f"{100 * test.through.mbit_s / test.without.mbit_s:.0f} %"
        name = f"{test.protocol} {test.sender} -> {test.receiver}"
        yield name, _rate(test.without), _rate(test.through), share
    yield "", "before", "after", ""
    for board in report.boards:
        model = board.after.model
        yield f"{board.host}{f' ({model})' if model else ''}", "", "", ""
        states = [_state(reading) for reading in (board.before, board.after)]
        for name, before in states[0].items():
            yield f"  {name}", before, states[1][name], ""


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return _UNKNOWN
    lost = "" if rate.lost_percent is None else f", {rate.lost_percent:.1f} % lost"
    return f"{rate.mbit_s:.1f} Mbit/s{lost}"


def _state(reading: Reading) -> dict[str, str]:
    celsius, clock = reading.temperature_c, reading.clock_mhz
    return {
        "temperature": _UNKNOWN if celsius is None else f"{celsius:.1f} °C",
        "clock": _UNKNOWN if clock is None else f"{clock} MHz",
        "throttled": _causes(reading.throttled),
        "throttled since boot": _causes(reading.throttled_since_start),
    }


def _causes(causes: tuple[str, ...] | None) -> str:
    if causes is None:
        return _UNKNOWN
    return ", ".join(causes) or "no"
