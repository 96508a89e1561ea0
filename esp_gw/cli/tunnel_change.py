"""`esp-gw tunnel add`, `set`, `delete`: whole tunnels beside the configuration, in one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from esp_gw.cli.completion import policy_names, tunnel_names
from esp_gw.cli.options import (
    ENCAPSULATION,
    KEEPALIVE,
    LIVENESS,
    NAME,
    PORT,
    PORTS,
    PREFIX,
    REMOTE,
    REPLAY_WINDOW,
    SPI,
    SUITE,
    Daemon,
    json_option,
    local_address,
    selector_options,
)
from esp_gw.cli.output import print_json
from esp_gw.cli.sa import read_key
from esp_gw.cli.tunnel_show import show_tunnel
from esp_gw.errors import printable
from esp_gw.model import DEFAULT_SUITE, SUITES

Command = TypeVar("Command", bound=Callable[..., Any])


def _ends(*, required: bool) -> Callable[[Command], Command]:
    """Return a decorator with the options of both ends and of what may change without new keys."""
    options = (
        click.option(
            "--local",
            type=local_address,
            required=required,
            metavar="IP|auto",
            help="Our outer address; auto: that of the route to the peer.",
        ),
        click.option(
            "--remote",
            type=REMOTE,
            required=required,
            metavar="IP|NAME|any",
            help="The peer's, or its name; any: learned from its first authentic packet.",
        ),
        click.option("--remote-port", type=PORT, metavar="N", help="The peer's UDP port."),
        click.option("--encapsulation", type=ENCAPSULATION),
        click.option(
            "--esn/--no-esn", default=None, help="64-bit sequence numbers (RFC 4303 2.2.1)."
        ),
        click.option("--replay-window", type=REPLAY_WINDOW, metavar="N"),
        click.option("--keepalive", type=KEEPALIVE, metavar="S", help="Seconds; 0 sends none."),
        click.option(
            "--liveness",
            type=LIVENESS,
            metavar="S",
            help="Seconds between authentic keepalives; 0: none.",
        ),
    )

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@click.command()
@click.argument("name", type=NAME)
@_ends(required=True)
@selector_options
@click.option("--local-ts-port", type=PORTS, metavar="PORTS", help="Our inner ports.")
@click.option("--remote-ts-port", type=PORTS, metavar="PORTS", help="The peer's inner ports.")
@click.option("--suite", type=SUITE, metavar="NAME", help=f"One of {', '.join(SUITES)}.")
@click.option("--outbound-spi", type=SPI, required=True, metavar="N", help="The peer's inbound.")
@click.option("--inbound-spi", type=SPI, required=True, metavar="N", help="The peer's outbound.")
@click.option(
    "--outbound-key",
    required=True,
    metavar="FILE|-",
    help="Key and salt as hex, the peer's inbound; - reads them from stdin.",
)
@click.option(
    "--inbound-key", required=True, metavar="FILE|-", help="The same, the peer's outbound."
)
@click.option(
    "--before",
    type=NAME,
    metavar="NAME",
    help="Insert its policy before this one.",
    shell_complete=policy_names,
)
@json_option
@click.pass_obj
def add(
    daemon: Daemon,
    /,
    as_json: bool,
    outbound_spi: int,
    inbound_spi: int,
    outbound_key: str,
    inbound_key: str,
    **options: Any,
) -> None:
    """Add a tunnel: a pair of SAs and their policy, all of it or nothing.

    It is beside the configuration, and survives a restart.
    """
    if outbound_key == inbound_key == "-":
        raise click.UsageError("only one of the two keys can come from stdin")
    suite = SUITES[options["suite"] or DEFAULT_SUITE.name]
    halves = {
        "outbound": {"spi": outbound_spi, "key": read_key(outbound_key, suite, "--outbound-key")},
        "inbound": {"spi": inbound_spi, "key": read_key(inbound_key, suite, "--inbound-key")},
    }
    daemon.call("AddTunnel", **options, **halves)
    show_tunnel(daemon, options["name"], as_json=as_json)


@click.command("set")
@click.argument("name", shell_complete=tunnel_names)
@_ends(required=False)
@click.option(
    "--local-ts", type=PREFIX, multiple=True, metavar="NET", help="Prefix behind us. Repeatable."
)
@click.option(
    "--remote-ts",
    type=PREFIX,
    multiple=True,
    metavar="NET",
    help="Prefix behind the peer. Repeatable.",
)
@json_option
@click.pass_obj
def set_(daemon: Daemon, /, name: str, as_json: bool, **options: Any) -> None:
    """Change a tunnel of 'tunnel add' while it runs; its keys and numbers go on."""
    changes = {key: value for key, value in options.items() if value not in (None, ())}
    if not changes:
        raise click.UsageError("nothing to change: give an option")
    daemon.call("SetTunnel", name=name, **changes)
    show_tunnel(daemon, name, as_json=as_json)


@click.command()
@click.argument("name", shell_complete=tunnel_names)
@json_option
@click.pass_obj
def delete(daemon: Daemon, name: str, as_json: bool) -> None:
    """Delete a tunnel of 'tunnel add': what it protected is not protected by it any more."""
    reply = daemon.call("DeleteTunnel", name=name)
    if as_json:
        print_json(reply)
    else:
        click.echo(printable(f"deleted: {name}"))
