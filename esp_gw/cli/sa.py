"""`esp-gw sa`: security associations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from esp_gw.cli import output
from esp_gw.cli.completion import sa_names
from esp_gw.cli.kernel import export, import_
from esp_gw.cli.options import (
    DIRECTION,
    ENCAPSULATION,
    KEEPALIVE,
    LIVENESS,
    MODE,
    OUTER_ADDRESS,
    PORT,
    PORTS,
    REMOTE,
    REPLAY_WINDOW,
    SA_NAME,
    SPI,
    SUITE,
    Daemon,
    json_option,
    local_address,
    selector_options,
)
from esp_gw.errors import printable
from esp_gw.model import (
    DEFAULT_SUITE,
    SUITES,
    Direction,
    Suite,
)

MAX_STDIN_KEY = 4096


@click.group()
def sa() -> None:
    """List, show, add and delete SAs."""


@sa.command("list")
@json_option
@click.pass_obj
def list_(daemon: Daemon, as_json: bool) -> None:
    """List the SAs with their counters."""
    reply = daemon.call("ListSas")
    if as_json:
        output.print_json(reply)
        return
    output.print_table(
        (
            "NAME",
            "STATE",
            "DIR",
            "SPI",
            "SUITE",
            "LOCAL",
            "REMOTE",
            "LAST",
            "SEQ",
            "PACKETS",
            "BYTES",
            "DROPS",
        ),
        [
            (
                entry["name"],
                entry["state"],
                {"inbound": "in", "outbound": "out"}.get(entry["direction"], entry["direction"]),
                output.spi(entry["spi"]),
                entry["suite"],
                entry["local"],
                output.remote(entry),
                output.age(_last(entry)),
                str(entry["seq"]),
                str(entry["packets"]),
                output.size(entry["bytes"]),
                output.drops(entry["drops"]),
            )
            for entry in reply["sas"]
        ],
        none="no SAs",
    )


@sa.command()
@click.argument("name", shell_complete=sa_names)
@click.option("--reveal-keys", is_flag=True, help="Print the key too.")
@json_option
@click.pass_obj
def show(daemon: Daemon, name: str, reveal_keys: bool, as_json: bool) -> None:
    """Show all details of one SA."""
    reply = daemon.call("GetSa", name=name, reveal_keys=reveal_keys)
    if as_json:
        output.print_json(reply)
    else:
        _print_sa(reply["sa"])


@sa.command()
@click.argument("name", type=SA_NAME)
@click.option("--direction", type=DIRECTION, required=True)
@click.option("--spi", type=SPI, required=True, metavar="N", help="Decimal, or hex with 0x.")
@click.option(
    "--local",
    type=local_address,
    required=True,
    metavar="IP|auto",
    help="Our outer address; auto: that of the route to the peer.",
)
@click.option(
    "--remote",
    type=REMOTE,
    required=True,
    metavar="IP|NAME|any",
    help="The peer's, or its name; any: learned from its first authentic packet.",
)
@click.option("--remote-port", type=PORT, metavar="N", help="The peer's UDP port.")
@click.option(
    "--local-original",
    type=OUTER_ADDRESS,
    metavar="IP",
    help="Transport mode: our address as the peer has it, before a NAT.",
)
@click.option(
    "--remote-original",
    type=OUTER_ADDRESS,
    metavar="IP",
    help="Transport mode: the peer's own address, before a NAT.",
)
@click.option("--mode", type=MODE)
@click.option("--encapsulation", type=ENCAPSULATION)
@click.option("--suite", type=SUITE, metavar="NAME", help=f"One of {', '.join(SUITES)}.")
@click.option(
    "--key-file",
    required=True,
    metavar="FILE|-",
    help="Key and salt as hex; - reads them from stdin.",
)
@selector_options
@click.option(
    "--local-ts-port", type=PORTS, metavar="PORTS", help="Our inner ports: 80, 1000-2000."
)
@click.option("--remote-ts-port", type=PORTS, metavar="PORTS", help="The peer's inner ports.")
@click.option("--esn/--no-esn", default=None, help="64-bit sequence numbers (RFC 4303 2.2.1).")
@click.option("--replay-window", type=REPLAY_WINDOW, metavar="N")
@click.option("--keepalive", type=KEEPALIVE, metavar="S", help="Seconds; 0 sends none.")
@click.option(
    "--liveness", type=LIVENESS, metavar="S", help="Seconds between authentic keepalives; 0: none."
)
@click.option(
    "--pair",
    type=SA_NAME,
    metavar="NAME",
    help="The SA of the other direction.",
    shell_complete=sa_names,
)
@json_option
@click.pass_obj
def add(daemon: Daemon, /, as_json: bool, key_file: str, **options: Any) -> None:
    """Add an SA. Options that are not given have the daemon's defaults."""
    key = read_key(key_file, SUITES[options["suite"] or DEFAULT_SUITE.name], "--key-file")
    reply = daemon.call("AddSa", key=key, **options)
    if as_json:
        output.print_json(reply)
    else:
        _print_sa(reply["sa"])


@sa.command()
@click.argument("name", shell_complete=sa_names)
@json_option
@click.pass_obj
def delete(daemon: Daemon, name: str, as_json: bool) -> None:
    """Delete an SA that was added with 'sa add'."""
    reply = daemon.call("DeleteSa", name=name)
    if as_json:
        output.print_json(reply)
    else:
        click.echo(printable(f"deleted: {name}"))


@sa.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
@json_option
@click.pass_obj
def flush(daemon: Daemon, yes: bool, as_json: bool) -> None:
    """Delete all SAs that were added with 'sa add'; those of the configuration stay."""
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("stdin is not a terminal to confirm on: add --yes")
        if not click.confirm("Delete all SAs that were added with 'sa add'?", err=True):
            return
    reply = daemon.call("FlushSas")
    if as_json:
        output.print_json(reply)
    else:
        click.echo(f"deleted: {printable(output.joined(reply['deleted'])) or 'none'}")


sa.add_command(import_)
sa.add_command(export)


def read_key(source: str, suite: Suite, option: str) -> str:
    """Return the key as hex for the request, checked before it is sent."""
    from esp_gw.config import keyfile  # noqa: PLC0415 - only needed here

    if keyfile.is_a_key(source):
        raise click.BadParameter(
            "this is a key, and others may have seen it in the process list: "
            "make a new one, and give the name of its file or - for stdin",
            param_hint=option,
        )
    if source == "-":
        keymat = keyfile.parse_keymat(sys.stdin.read(MAX_STDIN_KEY), suite)
    else:
        (keymat,) = keyfile.read_key_file(Path(source), suite)
    return keyfile.format_keymat(keymat)


def _last(entry: dict[str, Any]) -> float | None:
    outbound = entry["direction"] == Direction.OUTBOUND
    seconds: float | None = entry["last_out_s" if outbound else "last_in_s"]
    return seconds


def _print_sa(entry: dict[str, Any]) -> None:
    outbound = entry["direction"] == Direction.OUTBOUND
    keepalive, liveness = (
        f"every {entry[name]} s" if entry[name] else "off" for name in ("keepalive", "liveness")
    )
    lease = f", lease to {entry['lease_end']}" if outbound else ""
    output.print_block(
        "sa",
        entry["name"],
        {
            "direction": entry["direction"],
            "spi": output.spi(entry["spi"]),
            "suite": entry["suite"],
            "mode": f"{entry['mode']}, encapsulation {entry['encapsulation']}",
            "local": entry["local"],
            "remote": output.remote(entry),
            "local original": entry["local_original"] or "",
            "remote original": entry["remote_original"] or "",
            "local ts": output.joined(entry["local_ts"]),
            "remote ts": output.joined(entry["remote_ts"]),
            "esn": "yes" if entry["esn"] else "no",
            "replay window": "" if outbound else str(entry["replay_window"]),
            "keepalive": keepalive if outbound else "",
            "liveness": liveness if outbound else "",
            "origin": entry["origin"],
            "tunnel": entry["tunnel"] or "",
            "pair": entry["pair"] or "",
            "lane": "" if entry["lane"] is None else str(entry["lane"]),
            "state": entry["state"],
            "last packet": output.age(_last(entry)),
            "likely cause": output.joined(entry["causes"][:1]),
            "seq": f"{entry['seq']}{lease}",
            "transferred": f"{entry['packets']} packets, {output.size(entry['bytes'])}",
            "drops": output.drops(entry["drops"]),
            "key": entry.get("key", ""),
        },
    )
