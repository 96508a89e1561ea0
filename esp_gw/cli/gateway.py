"""`esp-gw run`, `check`, `status`, `stats`, `reload`: the gateway as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from esp_gw.cli import output
from esp_gw.cli.options import Daemon, config_option, json_option
from esp_gw.errors import ConfigError


@click.command()
@config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def run(config: Path, log_level: str) -> int:
    """Run the gateway in the foreground, as systemd does."""
    from esp_gw import daemon  # noqa: PLC0415 - the daemon's libraries are slow to import

    return daemon.run(config, log_level)


@click.command()
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> int:
    """Check configuration files without touching anything."""
    from esp_gw.config import load_config  # noqa: PLC0415 - pydantic is slow to import

    results: list[dict[str, Any]] = []
    for path in files:
        result: dict[str, Any] = {"file": str(path), "ok": True, "problems": []}
        try:
            desired = load_config(path)
        except ConfigError as error:
            problems = [
                {"file": p.file, "line": p.line, "field": p.field, "message": p.message}
                for p in error.problems
            ]
            result |= {"ok": False, "problems": problems}
            texts = [str(problem) for problem in error.problems]
        else:
            result |= {
                "tunnels": len(desired.tunnels),
                "sas": len(desired.sas),
                "policies": len(desired.policies),
                "warnings": list(desired.warnings),
            }
            texts = [f"{path}: warning: {warning}" for warning in desired.warnings]
            tunnels = output.counted(len(desired.tunnels), "tunnel")
            texts.append(f"{path}: ok, {tunnels}, {output.counted(len(desired.sas), 'SA')}")
        results.append(result)
        if not as_json:
            for text in texts:
                click.echo(output.printable(text), err=not result["ok"])
    if as_json:
        output.print_json({"files": results})
    return 0 if all(result["ok"] for result in results) else 1


@click.command()
@json_option
@click.pass_obj
def status(daemon: Daemon, as_json: bool) -> None:
    """Show whether the gateway runs, and what it found wrong."""
    reply = daemon.call("GetStatus")
    if as_json:
        output.print_json(reply)
        return
    output.print_block(
        "esp-gw",
        reply["version"],
        {
            "running": f"for {output.span(reply['uptime_s'])}, pid {reply['pid']}",
            "engine": reply["engine"],
            "interface": f"{reply['interface']}, mtu {reply['mtu']}",
            "config": str(reply["config"]),
            "ledger": str(reply["ledger"]),
            "tunnels": str(reply["tunnels"]),
            "sas": str(reply["sas"]),
            "policies": str(reply["policies"]),
        },
    )
    for warning in reply["warnings"]:
        click.echo(f"  warning: {output.printable(str(warning))}")


@click.command()
@json_option
@click.pass_obj
def stats(daemon: Daemon, as_json: bool) -> None:
    """Show the counters since the start."""
    reply = daemon.call("GetStats")
    if as_json:
        output.print_json(reply)
        return
    output.print_block(
        "traffic",
        "inner packets",
        {
            "out": f"{reply['packets_out']} packets, {output.size(reply['bytes_out'])}",
            "in": f"{reply['packets_in']} packets, {output.size(reply['bytes_in'])}",
            "keepalives": f"{reply['keepalives_out']} out, {reply['keepalives_in']} in",
        },
    )
    dropped = {reason: str(count) for reason, count in reply["drops"].items() if count}
    if dropped:
        output.print_block("drops", f"{sum(map(int, dropped.values()))} packets", dropped)


@click.command()
@json_option
@click.pass_obj
def reload(daemon: Daemon, as_json: bool) -> None:
    """Read the configuration again and apply what has changed, nothing else."""
    reply = daemon.call("Reload")
    if as_json:
        output.print_json(reply)
        return
    for change in reply["changes"] or ["nothing has changed"]:
        click.echo(output.printable(str(change)))
