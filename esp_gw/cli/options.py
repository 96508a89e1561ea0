"""Options shared by several commands; an invalid value is a usage error with exit status 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from esp_gw import values
from esp_gw.control.client import call
from esp_gw.model import SUITES
from esp_gw.values import FieldError

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Daemon:
    """The running daemon, reached through its control socket."""

    socket: Path

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a request and return the reply; parameters that are None or empty are left out."""
        given = {name: value for name, value in parameters.items() if value not in (None, (), [])}
        return call(self.socket, method, given)


def _type_of(parse: Callable[[object], object]) -> Callable[[str], Any]:
    """Return a click type for a parser of esp_gw.values; addresses and prefixes stay text."""

    def convert(text: str) -> Any:
        try:
            value = parse(text)
        except FieldError as error:
            raise click.BadParameter(str(error)) from None
        return value if isinstance(value, int) else str(value)

    return convert


SPI = _type_of(values.parse_spi)
ADDRESS = _type_of(values.parse_address)
OUTER_ADDRESS = _type_of(values.parse_outer_address)
PREFIX = _type_of(values.parse_prefix)
PORT = _type_of(values.parse_udp_port)
REPLAY_WINDOW = _type_of(values.parse_window)
KEEPALIVE = _type_of(values.parse_keepalive)
SA_COUNT = _type_of(values.parse_sa_count)
SUITE = click.Choice(list(SUITES))
FILE = click.Path(dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    default=Path("/etc/esp-gw"),
    show_default=True,
    help="Configuration file, or a directory of *.yaml files.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def selector_options(command: Command) -> Command:
    """Add the options that select inner traffic, as seen from this gateway."""
    for option in (
        click.option("--protocol", metavar="NAME|N", help="Inner protocol: tcp, udp, 47, ..."),
        click.option(
            "--remote-ts",
            type=PREFIX,
            multiple=True,
            metavar="NET",
            help="Prefix behind the peer. Repeatable.",
        ),
        click.option(
            "--local-ts",
            type=PREFIX,
            multiple=True,
            metavar="NET",
            help="Prefix behind us. Repeatable.",
        ),
    ):
        command = option(command)
    return command
