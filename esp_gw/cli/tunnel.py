"""`esp-gw tunnel`: the tunnels of the configuration, of the CLI's SAs and of IKE."""

from __future__ import annotations

from ipaddress import ip_address

import click

from esp_gw.cli.completion import tunnel_names
from esp_gw.cli.options import ADDRESS, PING_COUNT, Daemon, json_option
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
from esp_gw.cli.tunnel_change import add, delete, set_
from esp_gw.cli.tunnel_show import find_tunnel, print_silence, show_tunnel

_NAME = click.argument("name", shell_complete=tunnel_names)


@click.group()
def tunnel() -> None:
    """List, show, ping, add, change and delete tunnels."""


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


@tunnel.command()
@_NAME
@json_option
@click.pass_obj
def show(daemon: Daemon, name: str, as_json: bool) -> None:
    """Show all about one tunnel: its SAs, its policies, its last changes."""
    show_tunnel(daemon, name, as_json=as_json)


@tunnel.command()
@_NAME
@click.argument("address", type=ADDRESS, required=False)
@click.option(
    "--count", type=PING_COUNT, default=5, show_default=True, metavar="N", help="Requests to send."
)
@json_option
@click.pass_obj
def ping(daemon: Daemon, name: str, address: str | None, count: int, as_json: bool) -> int:
    """Ping ADDRESS through a tunnel, from this host's own address in it.

    ADDRESS is the first one behind the peer by default. Says loss, round-trip time and path MTU.
    The exit status is 1 if nothing was answered.
    """
    from esp_gw.cli import ping as echoes  # noqa: PLC0415 - imports netlink, which is slow

    target = None if address is None else ip_address(address)
    entry = find_tunnel(daemon, name)
    result = echoes.ping(daemon, entry, target, count, quiet=as_json)
    if as_json:
        print_json(echoes.as_json(name, result))
    else:
        echoes.print_result(result)
        if not result.times:
            print_silence(find_tunnel(daemon, name), str(result.target))
    return int(not result.times)


tunnel.add_command(add)
tunnel.add_command(set_)
tunnel.add_command(delete)
