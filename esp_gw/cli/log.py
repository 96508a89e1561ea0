"""`esp-gw log`: the changes of the tunnels' states that the gateway remembers."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from esp_gw.cli.options import Daemon, json_option
from esp_gw.cli.output import print_text

INTERVAL = 1.0
"""Seconds between two requests of --follow."""


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Show further changes as they come.")
@json_option
@click.pass_obj
def log(daemon: Daemon, follow: bool, as_json: bool) -> None:
    """Show when tunnels changed their state, and the likely causes; with --json one a line.

    The gateway keeps the last 256 changes; the journal has them for longer.
    """
    after = 0
    while True:
        reply = daemon.call("ListEvents", after=after)
        if reply["last"] < after:
            # The gateway was restarted, and counts anew.
            reply = daemon.call("ListEvents", after=0)
        for event in reply["events"]:
            after = event["number"]
            if as_json:
                click.echo(json.dumps(event))
            else:
                print_text(_line(event))
        if not follow:
            return
        time.sleep(INTERVAL)


def _line(event: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    change = event["state"]
    change = f"still {change}" if event["before"] == change else f"{event['before']} -> {change}"
    text = f"{at} {event['tunnel']} {change}"
    drops = f" ({event['drops']})" if event["drops"] else ""
    return f"{text}{drops}: {event['cause']}" if event["cause"] else f"{text}{drops}"
