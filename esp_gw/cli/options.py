"""Options that several commands share, checked where they are typed: a wrong one exits with 2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, TypeVar

import click

from esp_gw.control.client import call
from esp_gw.model import SUITES
from esp_gw.protocol import MAX_SPI, MIN_SPI

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Daemon:
    """The running daemon, as the commands speak to it."""

    socket: Path

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a request, without those parameters that are None or empty: they were not given."""
        given = {name: value for name, value in parameters.items() if value not in (None, (), [])}
        return call(self.socket, method, given)


def spi(value: str) -> int:
    """An SPI, decimal or with 0x in front. Fails for the reserved ones (RFC 4303 2.1)."""
    try:
        number = int(value, 0)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a number such as 4097 or 0x1001") from None
    if not MIN_SPI <= number <= MAX_SPI:
        raise click.BadParameter(f"{value!r} is not in {MIN_SPI} to {MAX_SPI} (0xffffffff)")
    return number


def address(value: str) -> str:
    """An IPv4 or IPv6 address in its usual form."""
    try:
        return str(ip_address(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not an IPv4 or IPv6 address") from None


def network(value: str) -> str:
    """An IPv4 or IPv6 prefix in its usual form; a bare address is a network of one."""
    try:
        prefix = ip_network(value, strict=False)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a prefix such as 192.168.1.0/24") from None
    if ip_address(value.partition("/")[0]) != prefix.network_address:
        raise click.BadParameter(f"{value!r} has bits outside its prefix; write {prefix}")
    return str(prefix)


SUITE = click.Choice(list(SUITES))
PORT = click.IntRange(1, 65535)
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
    """The options that name inner traffic, seen from this gateway."""
    for option in (
        click.option("--protocol", metavar="NAME|N", help="Inner protocol: tcp, udp, 47, ..."),
        click.option(
            "--remote-ts",
            type=network,
            multiple=True,
            metavar="NET",
            help="Prefix behind the peer. Repeatable.",
        ),
        click.option(
            "--local-ts",
            type=network,
            multiple=True,
            metavar="NET",
            help="Prefix behind us. Repeatable.",
        ),
    ):
        command = option(command)
    return command
