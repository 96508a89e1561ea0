"""`esp-gw tunnel`: the tunnels of the configuration."""

from __future__ import annotations

import click

from esp_gw.cli.options import Daemon, json_option
from esp_gw.cli.output import (
    age,
    drops,
    joined,
    lanes,
    print_json,
    print_listed,
    print_table,
    print_wrapped,
    remote,
    size,
)


@click.group()
def tunnel() -> None:
    """List tunnels."""


@tunnel.command("list")
@json_option
@click.pass_obj
def list_(daemon: Daemon, as_json: bool) -> None:
    """List the tunnels with their counters, the flows of their lanes, and causes of losses."""
    reply = daemon.call("ListTunnels")
    if as_json:
        print_json(reply)
        return
    print_table(
        (
            "NAME",
            "STATE",
            "HEARD",
            "SENT",
            "MODE",
            "SUITE",
            "SAS",
            "LOCAL",
            "REMOTE",
            "TRAFFIC",
            "OUT",
            "IN",
            "DROPS",
        ),
        [
            (
                entry["name"],
                entry["state"],
                age(entry["last_in_s"]),
                age(entry["last_out_s"]),
                f"{entry['mode']}/{entry['encapsulation']}",
                entry["suite"],
                str(len(entry["sas"])),
                entry["local"],
                remote(entry),
                f"{joined(entry['local_ts'])} - {joined(entry['remote_ts'])}",
                size(entry["bytes_out"]),
                size(entry["bytes_in"]),
                drops(entry["drops"]),
            )
            for entry in reply["tunnels"]
        ],
        none="no tunnels",
    )
    for entry in reply["tunnels"]:
        if flows := lanes(entry["lanes"]):
            print_listed(f"flows of {entry['name']} by lane", flows)
        for cause in entry["causes"]:
            print_wrapped(f"{entry['name']}: {cause}")
