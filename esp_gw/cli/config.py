"""`esp-gw config`: the configuration, before a gateway runs with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from esp_gw.cli import output
from esp_gw.cli.gateway import tell_difference
from esp_gw.cli.options import CONFIG, DEFAULT_CONFIG, Daemon, config_option, json_option
from esp_gw.errors import Problem, printable


@click.group()
def config() -> None:
    """Check, compare and show the configuration."""


@config.command()
@click.argument("files", nargs=-1, metavar="[FILE]...", type=CONFIG)
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> int:
    """Check configuration files, /etc/esp-gw by default, without touching anything.

    Root looks at the files of the service as its user, and with its credentials.
    """
    from esp_gw.cli.checks import check_file  # noqa: PLC0415 - imports pydantic, which is slow

    results = [check_file(path) for path in files or (DEFAULT_CONFIG,)]
    failed = not all(result["ok"] for result in results)
    if as_json:
        output.print_json({"files": results})
        return int(failed)
    for result in results:
        for text in _described(result):
            click.echo(printable(text), err=not result["ok"])
    for who, todo in dict.fromkeys((result["as"], result["todo"]) for result in results):
        click.echo(printable(f"looked {who}; {todo}" if todo else f"looked {who}"), err=failed)
    return int(failed)


def _described(result: Mapping[str, Any]) -> list[str]:
    if not result["ok"]:
        return [str(Problem(**problem)) for problem in result["problems"]]
    path = result["file"]
    sizes = output.counted(result["tunnels"], "tunnel"), output.counted(result["sas"], "SA")
    warnings = [f"{path}: warning: {warning}" for warning in result["warnings"]]
    return [*warnings, f"{path}: ok, {', '.join(sizes)}"]


@config.command()
@click.option("--config", "path", type=CONFIG, help="The configuration of the daemon.")
@json_option
@click.pass_obj
def diff(daemon: Daemon, path: Path | None, as_json: bool) -> None:
    """Say what a reload would change, as 'reload --dry-run' does."""
    tell_difference(daemon, path, as_json=as_json)


@config.command()
@config_option
@json_option
def show(config: Path, as_json: bool) -> None:
    """Show settings, tunnels and policies as the files have them, defaults included; no keys."""
    from esp_gw.config.load import load_protection  # noqa: PLC0415 - imports pydantic, which is slow
    from esp_gw.config.overview import overview  # noqa: PLC0415 - likewise

    found = overview(load_protection(config))
    if as_json:
        output.print_json(found)
        return
    output.print_table(
        ("SETTING", "VALUE"),
        [(name, entry["shown"]) for name, entry in found["settings"].items()],
        none="no settings",
    )
    for tunnel in found["tunnels"]:
        click.echo()
        fields = {name.replace("_", " "): _text(value) for name, value in tunnel.items()}
        output.print_block("tunnel", fields.pop("name"), fields)
    for number, policy in enumerate(found["policies"], 1):
        output.print_text(f"policy {number}: {policy}")


@config.command()
@json_option
def reference(as_json: bool) -> None:
    """List every field of the configuration with its default."""
    from esp_gw.config.overview import reference as fields  # noqa: PLC0415 - imports pydantic

    if as_json:
        output.print_json({"fields": fields()})
        return
    output.print_table(
        ("FIELD", "DEFAULT", "CHANGES AT"),
        [(entry["field"], entry["default"], entry["changes_at"]) for entry in fields()],
        none="no fields",
    )


@config.command()
def example() -> None:
    """Print a configuration of one tunnel; 'esp-gw init' writes such a pair, with keys."""
    from esp_gw.config.example import example as text  # noqa: PLC0415 - needed here alone

    click.echo(text(), nl=False)


def _text(value: Any) -> str:
    return output.joined(value) if isinstance(value, list) else str(value)
