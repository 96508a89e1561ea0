"""`esp-gw monitor`: the rates of the tunnels, each second."""

from __future__ import annotations

import json
import time

import click

from esp_gw.cli.options import Daemon, json_option
from esp_gw.cli.output import print_wrapped
from esp_gw.errors import ControlError, EspGwError

INTERVAL = 1.0
"""Seconds between two looks, at least."""
REST_FACTOR = 10
"""A look is followed by a pause of this many times its duration: many tunnels take longer."""


@click.command()
@json_option
@click.pass_obj
def monitor(daemon: Daemon, as_json: bool) -> None:
    """Show the rates of the tunnels, live: q ends it, other keys sort.

    In a pipe it is a line a second for each tunnel, with --json one document a second.
    """
    from esp_gw.cli.screen import is_screen  # noqa: PLC0415 - needed by live displays alone

    if as_json or not is_screen():
        _follow(daemon, as_json=as_json)
    else:
        _display(daemon)


def _follow(daemon: Daemon, *, as_json: bool) -> None:
    """Print the rates until the gateway ends, or nobody reads them any more."""
    from esp_gw.cli.rates import Rates, row_line  # noqa: PLC0415 - likewise

    rates = Rates()
    while True:
        began = time.monotonic()
        tunnels = daemon.call("ListTunnels")["tunnels"]
        due = _due(began)
        found = rates.take(tunnels, began)
        if found is not None and as_json:
            document = {
                "time": round(time.time(), 3),
                "tunnels": [each.as_json() for each in found],
            }
            click.echo(json.dumps(document))
        elif found is not None:
            at = time.strftime("%H:%M:%S")
            for rate in found:
                click.echo(f"{at} {row_line(rate)}")
        time.sleep(max(due - time.monotonic(), 0))


def _display(daemon: Daemon) -> None:
    """Show the rates on the terminal until q; while no gateway answers, that it does not."""
    from esp_gw.cli.rates import SORTS, Rates, no_rates, screen_lines  # noqa: PLC0415 - likewise
    from esp_gw.cli.screen import QUIT, drawn, screen  # noqa: PLC0415 - likewise

    # That nobody may ask, or that no gateway runs, is an error at the start.
    tunnels = daemon.call("ListTunnels")["tunnels"]
    rates, now, sort, first = Rates(), no_rates(tunnels), "n", 0
    rates.take(tunnels, time.monotonic())
    with screen() as terminal:
        due = time.monotonic() + INTERVAL
        fault: EspGwError | None = None
        while True:
            if time.monotonic() >= due:
                began = time.monotonic()
                due = began + INTERVAL
                try:
                    reply = daemon.call("ListTunnels")
                    due = _due(began)
                    now, fault = rates.take(reply["tunnels"], time.monotonic()) or now, None
                except ControlError:
                    raise
                except EspGwError as error:
                    fault = error
            told = [] if fault is None else drawn(print_wrapped, str(fault))
            first = max(0, min(first, len(now) - 1))
            terminal.draw(told or screen_lines(rates, now, sort, first, terminal.size))
            key = terminal.key(due)
            if key == QUIT:
                return
            sort = key if key in SORTS else sort
            first += {"down": 1, "up": -1}.get(key, 0)


def _due(began: float) -> float:
    """Return the time of the next look after one that began at a time."""
    now = time.monotonic()
    return max(began + INTERVAL, now + REST_FACTOR * (now - began))
