"""`esp-gw explain`: the way of a packet and what stops it, and why packets were dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import click

from esp_gw.cli import output
from esp_gw.cli.completion import tunnel_names
from esp_gw.cli.options import ADDRESS, INNER_PORT, PROTOCOL, Daemon, json_option
from esp_gw.values import PROTOCOLS

_FORM = "SRC DST [PROTO [[SPORT] DPORT]]"
EXPLAIN_TIMEOUT = 30.0
"""Seconds: the packet filters of a large host take a while to be listed."""
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_VERDICTS = {"clear": "in the clear", "stopped": "stopped"}


def _tunnels(context: click.Context, parameter: click.Parameter, typed: str) -> list[str]:
    return tunnel_names(context, parameter, typed) if context.params.get("drops") else []


@click.command()
@click.argument("words", nargs=-1, metavar=_FORM, shell_complete=_tunnels)
@click.option("--drops", is_flag=True, help="Explain what was dropped, of one TUNNEL or of all.")
@json_option
@click.pass_obj
def explain(daemon: Daemon, words: tuple[str, ...], drops: bool, as_json: bool) -> int:
    """Say which way a packet goes, and what stops it.

    SRC and DST are the addresses of its first packet, as seen here: from this host, forwarded, or
    out of a tunnel. The exit status is 1 if something stops it.
    """
    daemon = replace(daemon, timeout=EXPLAIN_TIMEOUT)
    if drops:
        return _explain_drops(daemon, words, as_json=as_json)
    reply = daemon.call("Explain", **_flow(words))
    if as_json:
        output.print_json(reply)
    else:
        _print(reply)
    return int(reply["verdict"] == "stopped")


def _flow(words: Sequence[str]) -> dict[str, object]:
    """Return the parameters of a flow; a usage error if it is none."""
    if not 2 <= len(words) <= 5:
        raise click.UsageError(f"expected {_FORM}, or --drops")
    source, destination, *rest = words
    found: dict[str, object] = {
        "source": _parsed("SRC", ADDRESS, source),
        "destination": _parsed("DST", ADDRESS, destination),
    }
    if rest:
        found["protocol"] = _parsed("PROTO", PROTOCOL, rest[0])
    if len(rest) == 3:
        found["source_port"] = _parsed("SPORT", INNER_PORT, rest[1])
    if len(rest) > 1:
        found["destination_port"] = _parsed("DPORT", INNER_PORT, rest[-1])
    return found


def _parsed(name: str, parse: Any, text: str) -> Any:
    try:
        return parse(text)
    except click.BadParameter as error:
        _refuse(name, error.message)


def _refuse(name: str, message: str) -> NoReturn:
    raise click.UsageError(f"{name}: {message}")


def _print(reply: Mapping[str, Any]) -> None:
    verdict = _VERDICTS.get(reply["verdict"], f"carried by {reply['tunnel'] or reply['policy']}")
    output.print_text(f"{_title(reply)}: {verdict}")
    for step in reply["steps"]:
        head = f"{step['state']:8} {step['what']:9} "
        output.print_text(step["found"], head, hanging=" " * len(head))
        if step["todo"]:
            output.print_text(step["todo"], " " * len(head), hanging=" " * len(head))


def _title(reply: Mapping[str, Any]) -> str:
    protocol = reply["protocol"]
    words = [f"{reply['source']} -> {reply['destination']}"]
    if protocol is not None:
        words.append(_PROTOCOL_NAMES.get(protocol, f"protocol {protocol}"))
    if reply["source_port"] is not None:
        words.append(f"from port {reply['source_port']}")
    if reply["destination_port"] is not None:
        words.append(f"to port {reply['destination_port']}")
    return " ".join(words)


def _explain_drops(daemon: Daemon, words: Sequence[str], *, as_json: bool) -> int:
    if len(words) > 1:
        raise click.UsageError("expected --drops, and the name of one tunnel at most")
    reply = daemon.call("ExplainDrops", tunnel=words[0] if words else None)
    if as_json:
        output.print_json(reply)
        return 0
    for entry in reply["tunnels"]:
        output.print_text(f"tunnel {entry['tunnel']}, {entry['state']}")
        _print_drops(entry["drops"])
        for cause in entry["causes"]:
            output.print_text(f"likely cause: {cause}", indent="  ", hanging="      ")
    if reply["others"]:
        output.print_text("of no tunnel")
        _print_drops(reply["others"])
    if not reply["tunnels"] and not reply["others"]:
        click.echo("nothing was dropped")
    return 0


def _print_drops(drops: Sequence[Mapping[str, Any]]) -> None:
    for each in drops:
        text = f"{each['reason']} {each['count']}: packets that {each['packets']}"
        output.print_text(text, indent="  ", hanging="      ")
        for name in ("cause", "seen", "todo"):
            if each[name]:
                text = f"{_LABELS[name]}{each[name]}"
                output.print_text(text, indent="    ", hanging="      ")


_LABELS = {"cause": "usually: ", "seen": "last one: ", "todo": ""}
