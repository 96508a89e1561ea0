"""`esp-gw ledger`: the record of the sequence numbers used with each key."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click
from click.core import ParameterSource

from esp_gw.cli import output
from esp_gw.cli.options import DIRECTORY, config_option, json_option
from esp_gw.desired import GatewaySettings
from esp_gw.errors import ConfigError, EspGwError, LedgerBusyError
from esp_gw.model import KeyMaterial

state_dir_option = click.option(
    "--state-dir",
    type=DIRECTORY,
    show_default="that of --config",
    help="State directory of the gateway.",
)


def _state_dir(given: Path | None, config: Path) -> Path:
    """Return the directory that was given, or the configuration's.

    Without any configuration, where none was named, it is the default. Raises ConfigError.
    """
    if given is not None:
        return given
    from esp_gw.config.load import load_state_dir  # noqa: PLC0415 - pydantic is slow to import

    try:
        return load_state_dir(config)
    except ConfigError as error:
        source = click.get_current_context().get_parameter_source("config")
        if error.may_pass and source is ParameterSource.DEFAULT:
            return Path(GatewaySettings().state_dir)
        raise


@click.group()
def ledger() -> None:
    """Show the ledger of sequence numbers, or create one."""


@ledger.command()
@state_dir_option
@config_option
@click.option(
    "--replace",
    is_flag=True,
    help="Replace an unusable ledger, and refuse every existing key.",
)
def create(state_dir: Path | None, config: Path, replace: bool) -> None:
    """Create an empty ledger, which states that no key of this machine was ever used.

    Using the sequence numbers of a key a second time reveals its traffic. The gateway therefore
    never creates a ledger by itself: if one is lost, make new keys on both ends first.

    With --replace the new ledger refuses the keys that can still be read from the old one, those
    of --config, and those of the SAs added by the CLI: any of them may have been used. Make new
    keys afterwards. Nothing is replaced while the configuration or the CLI's SAs can't be read.
    """
    from esp_gw.ledger.identity import machine_identity  # noqa: PLC0415
    from esp_gw.ledger.ledger import LEDGER_NAME, Ledger  # noqa: PLC0415 - imports sqlite3

    state_dir = _state_dir(state_dir, config)
    path = state_dir / LEDGER_NAME
    if replace:
        from esp_gw.config.added import STORE_NAME  # noqa: PLC0415 - pydantic is slow to import

        configured, added = _keys_of_config(config), _keys_of_cli(state_dir / STORE_NAME)
        retired = Ledger.replace(path, machine_identity(state_dir), [*configured, *added])
        keys = output.counted(retired, "key")
        click.echo(f"made {path}; it refuses all keys that were found: {keys}")
        click.echo("make new keys with 'esp-gw keygen' on both ends: the old ones won't work")
        if added:
            click.echo(f"the CLI's SAs have old keys: move {state_dir / STORE_NAME} away")
        return
    make_ledger(state_dir)
    click.echo(f"made {path}")


def make_ledger(state_dir: Path) -> None:
    """Create an empty ledger in a state directory, which may be missing. Raises EspGwError."""
    from esp_gw.ledger.identity import machine_identity  # noqa: PLC0415
    from esp_gw.ledger.ledger import LEDGER_NAME, Ledger  # noqa: PLC0415 - imports sqlite3

    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EspGwError(
            f"can't be created: {error.strerror}", where=str(state_dir), hint="use sudo"
        ) from None
    Ledger.create(state_dir / LEDGER_NAME, machine_identity(state_dir))


def _keys_of_config(config: Path) -> list[KeyMaterial]:
    from esp_gw.config.load import load_config  # noqa: PLC0415 - pydantic is slow to import

    try:
        return [sa.keymat for sa in load_config(config).sas]
    except ConfigError as error:
        raise EspGwError(
            f"the ledger is not replaced, because the keys to be refused can't be read: "
            f"{error.problems[0]}",
            where=str(config),
            hint="correct the configuration, or give the one that was used with --config",
        ) from None


def _keys_of_cli(path: Path) -> list[KeyMaterial]:
    from esp_gw.config.added import Store  # noqa: PLC0415 - pydantic is slow to import

    try:
        return [entry.to_sa().keymat for entry in Store(path).load().sas]
    except EspGwError as error:
        raise EspGwError(
            f"the ledger is not replaced, because the keys to be refused can't be read: "
            f"{error.what}",
            where=str(path),
            hint="restore the file; it holds the keys of the SAs that the CLI added",
        ) from None


@ledger.command()
@state_dir_option
@config_option
@json_option
def show(state_dir: Path | None, config: Path, as_json: bool) -> None:
    """Show the sequence numbers used with each key, or leased to the gateway that runs."""
    from esp_gw.ledger.identity import machine_identity  # noqa: PLC0415
    from esp_gw.ledger.ledger import LEDGER_NAME, Ledger  # noqa: PLC0415 - imports sqlite3
    from esp_gw.ledger.look import look  # noqa: PLC0415 - likewise

    folder = _state_dir(state_dir, config)
    path = folder / LEDGER_NAME
    try:
        with closing(Ledger.open(path, machine_identity(folder))) as opened:
            entries = opened.entries()
    except LedgerBusyError:
        entries = look(path)
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
        none="no key was used yet",
    )
