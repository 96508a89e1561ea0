"""Options shared by several commands; an invalid value is a usage error with exit status 2."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from esp_gw import values
from esp_gw.control.client import call
from esp_gw.desired import GatewaySettings
from esp_gw.model import AUTO, ENGINES, SUITES, Action, Direction, Encapsulation, Mode
from esp_gw.values import FieldError

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Daemon:
    """The running daemon, reached through its control socket: `given` on the command line or not.

    `timeout` is in seconds, for a whole call.
    """

    given: Path | None = None
    configured: Path = Path(GatewaySettings().control_socket)
    timeout: float = 10.0

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.given or self.configured

    def of(self, control_socket: Path | str) -> Daemon:
        """The daemon of a configuration, unless the command line names another socket."""
        return replace(self, configured=Path(control_socket))

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a request and return the reply; parameters that are None or empty are left out."""
        given = {name: value for name, value in parameters.items() if value not in (None, (), [])}
        return call(self.socket, method, given, self.timeout)


def _type_of(parse: Callable[[object], object]) -> Callable[[str], Any]:
    """Return a click type for a parser of esp_gw.values; addresses and prefixes stay text."""

    def convert(text: str) -> Any:
        try:
            value = parse(text)
        except FieldError as error:
            raise click.BadParameter(str(error)) from None
        return value if isinstance(value, int) or value is None else str(value)

    return convert


class _Words(click.Choice[str]):
    """A choice of words, refused by the parser of the value."""

    def __init__(self, words: Iterable[str], parse: Callable[[object], object]) -> None:
        super().__init__(list(words))
        self._convert = _type_of(parse)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the word; a usage error if it is none."""
        return str(self._convert(value))


SPI = _type_of(values.parse_spi)
ADDRESS = _type_of(values.parse_address)
OUTER_ADDRESS = _type_of(values.parse_outer_address)


REMOTE = _type_of(values.parse_remote)


def local_address(text: str) -> str:
    """Return an outer address of this host, or `auto`; a usage error if it is neither."""
    return text if text == AUTO else str(OUTER_ADDRESS(text))


PREFIX = _type_of(values.parse_prefix)
PORT = _type_of(values.parse_udp_port)
REPLAY_WINDOW = _type_of(values.parse_window)
KEEPALIVE = _type_of(values.parse_keepalive)
LIVENESS = _type_of(values.parse_liveness)
SA_COUNT = _type_of(values.parse_sa_count)
SECONDS = _type_of(values.integer(1, 3600))
NAME = _type_of(values.parse_name)
PROTOCOL = _type_of(values.parse_protocol)
PORTS = _type_of(values.parse_ports)
PING_COUNT = _type_of(values.integer(1, 10_000))
INNER_PORT = _type_of(values.integer(0, 65535))
SA_NAME = _type_of(values.parse_sa_name)
SUITE = _Words(SUITES, values.parse_suite)
MODE = _Words(Mode, values.parse_mode)
ENCAPSULATION = _Words(Encapsulation, values.parse_encapsulation)
DIRECTION = _Words(Direction, values.parse_direction)
ACTION = _Words(Action, values.parse_action)
ENGINE = _Words(ENGINES, values.parse_engine)
# That one can't be read is no fault of the command line: the command says what to do.
FILE = click.Path(dir_okay=False, readable=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, readable=False, path_type=Path)
CONFIG = click.Path(readable=False, path_type=Path)
DEFAULT_CONFIG = Path("/etc/esp-gw")

config_option = click.option(
    "--config",
    type=CONFIG,
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Configuration file, or a directory of *.yaml files.",
)
log_level_option = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def selector_options(command: Command) -> Command:
    """Add the options that select inner traffic, as seen from this gateway."""
    for option in (
        click.option(
            "--protocol", type=PROTOCOL, metavar="NAME|N", help="Inner: tcp, udp, 47, ..."
        ),
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
