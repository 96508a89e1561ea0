"""`esp-gw ledger`: the record of the sequence numbers that each key has used."""

from __future__ import annotations

from pathlib import Path

import click

from esp_gw.cli import output
from esp_gw.cli.options import DIRECTORY, json_option
from esp_gw.errors import EspGwError
from esp_gw.model import GatewaySettings

LEDGER_FILE = "ledger.db"

state_dir_option = click.option(
    "--state-dir",
    type=DIRECTORY,
    default=Path(GatewaySettings().state_dir),
    show_default=True,
    help="State directory of the gateway.",
)


@click.group()
def ledger() -> None:
    """Look at the ledger of sequence numbers, or make one."""


@ledger.command()
@state_dir_option
@click.option(
    "--replace",
    is_flag=True,
    help="Replace a ledger that can't be used; those of its keys that can be read stay refused.",
)
def create(state_dir: Path, replace: bool) -> None:
    """State that no key of this machine was ever used before, by making an empty ledger.

    A key that is used a second time from its beginning gives its traffic away. The gateway
    therefore never makes a ledger by itself: where one is lost, make new keys on both ends first.
    """
    from esp_gw.ledger import Ledger  # noqa: PLC0415 - imports sqlite3
    from esp_gw.machine import machine_identity  # noqa: PLC0415

    path = state_dir / LEDGER_FILE
    if replace:
        retired = Ledger.replace(path, machine_identity())
        keys = output.counted(retired, "key")
        click.echo(f"made {path}; refused from now on: {keys} of the old ledger")
        click.echo("start with new keys only: what a damaged ledger no longer tells is not refused")
        return
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EspGwError(
            f"can't be made: {error.strerror}", where=str(state_dir), hint="use sudo"
        ) from None
    Ledger.create(path, machine_identity())
    click.echo(f"made {path}")


@ledger.command()
@state_dir_option
@json_option
def show(state_dir: Path, as_json: bool) -> None:
    """Show how far each key is used; the daemon must not be running."""
    from esp_gw.ledger import Ledger  # noqa: PLC0415 - imports sqlite3
    from esp_gw.machine import machine_identity  # noqa: PLC0415

    opened = Ledger.open(state_dir / LEDGER_FILE, machine_identity())
    try:
        entries = opened.entries()
    finally:
        opened.close()
    if as_json:
        keys = [
            {
                "fingerprint": entry.fingerprint,
                "role": entry.role.value,
                "seq": entry.seq,
                "first_use": entry.first_use.isoformat(),
            }
            for entry in entries
        ]
        output.print_json({"keys": keys})
        return
    output.print_table(
        ("KEY", "USED", "SEQ", "SINCE"),
        [
            (
                entry.fingerprint,
                entry.role.value,
                str(entry.seq),
                entry.first_use.astimezone().strftime("%Y-%m-%d %H:%M"),
            )
            for entry in entries
        ],
        none="no keys: none was used yet",
    )
