"""`esp-gw tune`: the settings of this machine that are better for a gateway."""

from __future__ import annotations

from pathlib import Path

import click

from esp_gw.cli.denial import SUDO, is_ordinary_user
from esp_gw.cli.options import Daemon, config_option, json_option
from esp_gw.errors import EspGwError


@click.command()
@click.option("--apply", is_flag=True, help="Make them, and again at each boot.")
@click.option("--undo", is_flag=True, help="Take back exactly what --apply made.")
@click.option("--measure", is_flag=True, help="Run traffic with and without them, in turn.")
@click.option("--reapply", is_flag=True, help="Make what is on record, as the unit does at a boot.")
@config_option
@json_option
@click.pass_obj
def tune(
    daemon: Daemon,
    apply: bool,
    undo: bool,
    measure: bool,
    reapply: bool,
    config: Path,
    as_json: bool,
) -> int:
    """Show the settings of this machine that are better for a gateway, and why. Needs root.

    It looks at the cards by which the peers are reached, and needs no running gateway. Without an
    option nothing is changed.
    """
    if undo + reapply + (apply or measure) > 1:
        raise click.UsageError("--undo and --reapply stand alone; --measure may have --apply")
    if is_ordinary_user():
        raise EspGwError("it reads and sets what belongs to root", where="tune", hint=SUDO)
    from esp_gw.cli import tuning  # noqa: PLC0415 - reads the configuration: pydantic is slow to import

    if undo:
        return tuning.undo(as_json)
    if reapply:
        return tuning.reapply(as_json)
    if measure:
        from esp_gw.demo import comparison  # noqa: PLC0415 - imports what the demo needs

        return tuning.measure(config, daemon, comparison.compare, keep=apply, as_json=as_json)
    return tuning.apply(config, daemon, as_json) if apply else tuning.show(config, daemon, as_json)
