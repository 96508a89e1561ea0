"""`esp-gw status --watch`: the state of the gateway, drawn again, or a line for each change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from esp_gw.cli.options import Daemon
from esp_gw.cli.output import joined, print_text
from esp_gw.cli.screen import QUIT, drawn, is_screen, screen
from esp_gw.errors import ControlError, EspGwError

INTERVAL = 1.0
"""Seconds between two looks."""

Reply = Mapping[str, Any]


def watch(daemon: Daemon, show: Callable[[Reply], object], *, as_json: bool) -> None:
    """Follow the status until q or SIGINT; `show` prints a reply of the daemon.

    A gateway that ends is waited for; one that isn't there at the start is an error.
    """
    first = daemon.call("GetStatus")
    if as_json or not is_screen():
        _follow(daemon, first, as_json=as_json)
    else:
        _display(daemon, show)


def _display(daemon: Daemon, show: Callable[[Reply], object]) -> None:
    with screen() as terminal:
        while True:
            due = time.monotonic() + INTERVAL
            reply, fault = _asked(daemon)

            told = drawn(print_text, fault) if reply is None else drawn(show, reply)
            at = time.strftime("%Y-%m-%d %H:%M:%S")
            # Warnings come last.
            room = max(terminal.size[1] - 2, 1)
            terminal.draw([f"{at}  q:quit", "", *told[-room:]])
            while key := terminal.key(due):
                if key == QUIT:
                    return


def _follow(daemon: Daemon, first: Reply, *, as_json: bool) -> None:
    """Print a line for each change: of the gateway, of the tunnels' states, of the warnings."""
    before: Reply | None = None
    reply: Reply | None = first
    fault = ""
    while True:
        if as_json and _essence(reply) != _essence(before):
            click.echo(json.dumps(reply))
        elif not as_json:
            at = time.strftime("%Y-%m-%d %H:%M:%S")
            for line in changes(before, reply, fault):
                print_text(f"{at} {line}")
        before = reply
        time.sleep(INTERVAL)
        reply, fault = _asked(daemon)


def changes(before: Reply | None, now: Reply | None, fault: str = "") -> Iterator[str]:
    """Yield a line for each difference of two replies; None stands for no gateway, by `fault`."""
    if now is None:
        if before is not None:
            yield fault
        return
    if before is None or before["pid"] != now["pid"]:
        yield f"esp-gw {now['version']} runs, pid {now['pid']}"
        before = {"states": {}, "warnings": []}
    if before["states"] != now["states"]:
        counts = joined(f"{count} {name}" for name, count in now["states"].items() if count)
        yield f"tunnels: {counts or 'none'}"
    for warning in now["warnings"]:
        if warning not in before["warnings"]:
            yield f"warning: {warning}"
    for warning in before["warnings"]:
        if warning not in now["warnings"]:
            yield f"no longer: {warning}"


def _essence(reply: Reply | None) -> object:
    """Return the part of a reply that makes a line when it changes."""
    return None if reply is None else (reply["pid"], reply["states"], reply["warnings"])


def _asked(daemon: Daemon) -> tuple[Reply | None, str]:
    """Return the status, or None and the reason that there is none."""
    try:
        return daemon.call("GetStatus"), ""
    except ControlError:
        raise
    except EspGwError as error:
        return None, str(error)
