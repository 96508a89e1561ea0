"""`esp-gw guard`: what stays closed while the gateway doesn't run."""

from __future__ import annotations

from pathlib import Path

import click

from esp_gw.cli import output
from esp_gw.cli.options import config_option, json_option, log_level_option
from esp_gw.errors import printable


@click.group()
def guard() -> None:
    """Keep protected prefixes closed while the gateway doesn't run."""


@guard.command()
@config_option
@log_level_option
def run(config: Path, log_level: str) -> int:
    """Hold closed what the gateway last protected, in the foreground, as systemd does."""
    from esp_gw.daemon import guard as daemon  # noqa: PLC0415 - the daemon's libraries are slow to import

    return daemon.run(config, log_level)


@guard.command()
@config_option
@click.option("--force", is_flag=True, help="Also while the gateway runs.")
def down(config: Path, force: bool) -> None:
    """Open everything until the next start of the gateway or the guard.

    Without --force, what traps of an IKE daemon have closed is open until these are there again.
    """
    from esp_gw.cli import guarding  # noqa: PLC0415 - pyroute2 and pydantic are slow to import

    opened = guarding.force_open(config) if force else guarding.open_guard(config)
    click.echo(printable(f"open: {opened}" if opened else "nothing was closed"))


@guard.command()
@config_option
@json_option
def status(config: Path, as_json: bool) -> int:
    """Show what is protected, and if it is closed."""
    from esp_gw.cli import guarding  # noqa: PLC0415 - as above

    found = guarding.examine(config)
    if as_json:
        output.print_json(found.as_json())
        return found.exit_status
    output.print_block("guard", found.state, found.lines())
    for warning in found.warnings:
        output.print_text(f"warning: {warning}", indent="  ", hanging="      ")
    return found.exit_status
