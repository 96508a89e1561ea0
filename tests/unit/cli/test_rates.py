"""Rates from counters at two moments, and the lines that show them."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.cli.rates import SORTS, Rate, Rates, figure, row_line, screen_lines, spark


def entry(name: str = "office", scale: int = 0, **fields: Any) -> dict[str, Any]:
    """A tunnel as listed, whose counters are multiples of `scale`."""
    counters = {
        "bytes_out": 1000 * scale,
        "bytes_in": 500 * scale,
        "packets_out": 10 * scale,
        "packets_in": 5 * scale,
        "drops": {"too-big": 2 * scale, "dummy": 7 * scale},
    }
    return {"name": name, "state": "up"} | counters | fields


def rate(name: str = "office", **fields: Any) -> Rate:
    values: dict[str, Any] = dict.fromkeys(
        ("bits_out", "bits_in", "packets_out", "packets_in", "drops"), 0.0
    )
    return Rate(**{"name": name, "state": "up"} | values | fields)


def test_a_rate_is_what_was_counted_in_the_time_between() -> None:
    rates = Rates()
    assert rates.take([entry(scale=1)], 10.0) is None
    assert rates.take([entry(scale=5)], 12.0) == [
        rate(bits_out=16000.0, bits_in=8000.0, packets_out=20.0, packets_in=10.0, drops=4.0)
    ]
    assert rates.history("office") == type(rates.history("office"))([24000.0])


def test_a_tunnel_that_is_new_or_counts_anew_has_no_rate() -> None:
    rates = Rates()
    rates.take([entry("old", 100)], 1.0)
    assert rates.take([entry("old", 2), entry("new", 50)], 2.0) == [rate("old"), rate("new")]
    assert rates.take([entry("new", 51)], 3.0) == [
        rate("new", bits_out=8000.0, bits_in=4000.0, packets_out=10.0, packets_in=5.0, drops=2.0)
    ]
    assert list(rates.history("old")) == []


def test_json_has_every_figure_a_second() -> None:
    shown = rate(bits_out=1234.5678).as_json()
    assert shown == {
        "name": "office", "state": "up", "bits_out": 1234.6, "bits_in": 0.0, "packets_out": 0.0,
        "packets_in": 0.0, "drops": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1.00 k"),
        (1234, "1.23 k"),
        (45_600, "45.6 k"),
        (999_400, "999 k"),
        (999_600, "1.00 M"),
        (2.5e9, "2.50 G"),
        (3e15, "3000 T"),
    ],
)
def test_a_figure_has_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


@given(st.floats(0, 1e14))
def test_a_figure_is_short(value: float) -> None:
    assert len(figure(value)) <= 7


def test_a_sparkline_is_as_high_as_its_highest_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert spark([0, 1, 4, 8], 10) == " ▁▄█"
    assert spark([9, 0, 1], 2) == " █"
    assert spark([], 5) == spark([1], 0) == ""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert spark([1, 8], 10).isascii()


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("height", [1, 5, 24])
def test_the_display_fits_its_terminal(sort: str, height: int) -> None:
    rates = Rates()
    many = [entry(f"a-tunnel-with-a-long-name-{n}", n) for n in range(40)]
    rates.take([entry(each["name"]) for each in many], 1.0)
    now = rates.take(many, 2.0)
    assert now is not None
    lines = screen_lines(rates, now, sort, 0, (80, height))
    assert len(lines) <= max(height, 5)
    assert max(map(len, lines)) <= 80
    if height == 24:
        assert "q:quit" in lines[-1]
        assert "20 more" in lines[-1]
    assert lines[0].startswith("40 tunnels, 6.24 Mbit/s out, 3.12 Mbit/s in")


def order(sort: str) -> list[str]:
    now = [
        rate("b", bits_out=5.0, bits_in=1.0, state="quiet"),
        rate("a", bits_out=1.0, bits_in=9.0, packets_in=3.0),
        rate("c", drops=1.0, state="failing"),
        rate("d", state="down"),
    ]
    lines = screen_lines(Rates(), now, sort, 0, (80, 24))
    return [line.split()[0] for line in lines[3:7]]


def test_tunnels_are_sorted_by_what_the_key_names() -> None:
    assert order("n") == ["a", "b", "c", "d"]
    assert order("t") == ["c", "d", "a", "b"]
    assert order("o") == ["b", "a", "c", "d"]
    assert order("i") == ["a", "b", "c", "d"]
    assert order("p") == ["a", "b", "c", "d"]
    assert order("d") == ["c", "a", "b", "d"]


def test_the_display_begins_at_a_row() -> None:
    now = [rate(f"t{number:02}") for number in range(30)]
    lines = screen_lines(Rates(), now, "n", 25, (80, 24))
    assert [line.split()[0] for line in lines[3:8]] == ["t25", "t26", "t27", "t28", "t29"]


def test_a_line_for_a_pipe_has_the_whole_name_and_no_control_character() -> None:
    name = "ike:" + "x" * 60 + "\x1b[2J"
    line = row_line(rate(name, bits_out=2e6))
    assert "x" * 60 + "\\x1b[2J" in line
    assert "2.00 M" in line
    assert "\x1b" not in line
