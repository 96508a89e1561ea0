"""`esp-gw policy`: the security policy database (RFC 4301 4.4.1)."""

from __future__ import annotations

from typing import Any

import click

from esp_gw.cli import output
from esp_gw.cli.completion import policy_names, sa_names
from esp_gw.cli.options import (
    ACTION,
    NAME,
    PORTS,
    SA_NAME,
    Daemon,
    json_option,
    selector_options,
)
from esp_gw.errors import printable

_PROTOCOL_NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}


@click.group()
def policy() -> None:
    """List, add and delete policies. The first that matches a packet applies."""


@policy.command("list")
@json_option
@click.pass_obj
def list_(daemon: Daemon, as_json: bool) -> None:
    """List the policies in order of precedence."""
    reply = daemon.call("ListPolicies")
    if as_json:
        output.print_json(reply)
    else:
        _print(reply["policies"])


@policy.command()
@click.argument("name", type=NAME)
@click.option("--action", type=ACTION, required=True)
@selector_options
@click.option("--local-port", type=PORTS, metavar="PORTS", help="Our inner ports: 80, 1000-2000.")
@click.option("--remote-port", type=PORTS, metavar="PORTS", help="The peer's inner ports.")
@click.option(
    "--sa",
    type=SA_NAME,
    metavar="NAME",
    help="The protecting outbound SA.",
    shell_complete=sa_names,
)
@click.option(
    "--before",
    type=NAME,
    metavar="NAME",
    help="Insert before this policy.",
    shell_complete=policy_names,
)
@json_option
@click.pass_obj
def add(daemon: Daemon, /, as_json: bool, **options: Any) -> None:
    """Add a policy."""
    reply = daemon.call("AddPolicy", **options)
    if as_json:
        output.print_json(reply)
    else:
        _print([reply["policy"]])


@policy.command()
@click.argument("name", shell_complete=policy_names)
@json_option
@click.pass_obj
def delete(daemon: Daemon, name: str, as_json: bool) -> None:
    """Delete a policy that was added with 'policy add'."""
    reply = daemon.call("DeletePolicy", name=name)
    if as_json:
        output.print_json(reply)
    else:
        click.echo(printable(f"deleted: {name}"))


def _print(policies: list[dict[str, Any]]) -> None:
    rows = []
    for entry in policies:
        name, action, sa = entry["name"], entry["action"], _sas(entry["sas"])
        # One line per selector, with the policy's own columns on the first.
        for selector in entry["selectors"]:
            rows.append(
                (
                    name,
                    action,
                    _side(selector["local"], selector["local_port"]),
                    _side(selector["remote"], selector["remote_port"]),
                    _protocol(selector["protocol"]),
                    sa,
                    entry["origin"] if name else "",
                )
            )
            name = action = sa = ""
    columns = ("NAME", "ACTION", "LOCAL", "REMOTE", "PROTOCOL", "SA", "ORIGIN")
    output.print_table(columns, rows, none="no policies")


def _side(network: str, ports: object) -> str:
    return network if ports is None else f"{network} port {ports}"


def _sas(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return names[0] + more if names else ""


def _protocol(protocol: int | str | None) -> str:
    if isinstance(protocol, int):
        return _PROTOCOL_NAMES.get(protocol, str(protocol))
    return protocol or "any"
