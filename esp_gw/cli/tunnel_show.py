"""One tunnel in full, as `tunnel show`, `add` and `set` print it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from esp_gw.cli.options import Daemon
from esp_gw.cli.output import (
    age,
    drops,
    joined,
    lanes,
    print_block,
    print_json,
    print_table,
    print_wrapped,
    remote,
    size,
    spi,
)
from esp_gw.errors import EspGwError
from esp_gw.model import Direction

_LAST_EVENTS = 5


def find_tunnel(daemon: Daemon, name: str) -> dict[str, Any]:
    """Return a tunnel as listed. Raises EspGwError if there is none."""
    for entry in daemon.call("ListTunnels")["tunnels"]:
        if entry["name"] == name:
            found: dict[str, Any] = entry
            return found
    raise EspGwError(
        f"there is no tunnel {name}", hint="'esp-gw tunnel list' shows the existing ones"
    )


def show_tunnel(daemon: Daemon, name: str, *, as_json: bool) -> None:
    """Print a tunnel with its SAs, policies and last changes. Raises EspGwError without one."""
    entry = find_tunnel(daemon, name)
    own = set(entry["sas"])
    sas = [sa for sa in daemon.call("ListSas")["sas"] if sa["name"].partition("~")[0] in own]
    policies = [
        policy
        for policy in daemon.call("ListPolicies")["policies"]
        if policy["tunnel"] == name or own & set(policy["sas"])
    ]
    events = [each for each in daemon.call("ListEvents")["events"] if each["tunnel"] == name]
    document: dict[str, Any] = {
        "tunnel": entry,
        "sas": sas,
        "policies": policies,
        "events": events[-_LAST_EVENTS:],
    }
    if as_json:
        print_json(document)
    else:
        _print(**document)


def print_silence(entry: Mapping[str, Any], target: str) -> None:
    """Print why nothing may have been answered by an address behind a tunnel."""
    name = entry["name"]
    for cause in entry["causes"]:
        print_wrapped(cause)
    if not entry["causes"]:
        print_wrapped(
            f"{name} is {entry['state']}: {target} may be no host, or answer no pings; try another "
            f"address with 'esp-gw tunnel ping {name} ADDRESS'"
        )


def _print(
    tunnel: Mapping[str, Any],
    sas: Sequence[Mapping[str, Any]],
    policies: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
) -> None:
    fields = {
        "state": f"{tunnel['state']}, heard {age(tunnel['last_in_s'])}, "
        f"sent {age(tunnel['last_out_s'])}",
        "mode": f"{tunnel['mode']}, encapsulation {tunnel['encapsulation']}",
        "suite": tunnel["suite"],
        "local": tunnel["local"],
        "remote": remote(tunnel),
        "local ts": joined(tunnel["local_ts"]),
        "remote ts": joined(tunnel["remote_ts"]),
        "policies": joined(f"{each['name']} ({each['action']})" for each in policies),
        "origin": tunnel["origin"],
        "out": f"{tunnel['packets_out']} packets, {size(tunnel['bytes_out'])}",
        "in": f"{tunnel['packets_in']} packets, {size(tunnel['bytes_in'])}",
        "drops": drops(tunnel["drops"]),
        "flows by lane": joined(lanes(tunnel["lanes"])),
    }
    print_block("tunnel", tunnel["name"], fields)
    for number, cause in enumerate(tunnel["causes"]):
        print_wrapped(f"  {'or' if number else 'likely cause'}: {cause}")
    print_table(
        ("SA", "DIR", "SPI", "SEQ", "PACKETS", "DROPS"),
        [
            (
                each["name"],
                "out" if each["direction"] == Direction.OUTBOUND else "in",
                spi(each["spi"]),
                str(each["seq"]),
                str(each["packets"]),
                drops(each["drops"]),
            )
            for each in sas
        ],
        none="no SAs",
    )
    for event in events:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
        print_wrapped(f"{at} {event['before']} -> {event['state']}")
