"""`esp-gw invite` and `esp-gw join`: a tunnel between two boxes by one line of text."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import click

from esp_gw import values
from esp_gw.cli import output
from esp_gw.cli import passphrase as secret
from esp_gw.cli.options import (
    DEFAULT_CONFIG,
    DIRECTORY,
    FILE,
    NAME,
    OUTER_ADDRESS,
    PREFIX,
    REMOTE,
    SA_COUNT,
    SUITE,
    json_option,
)
from esp_gw.errors import EspGwError, printable
from esp_gw.model import (
    ANY,
    DEFAULT_SUITE,
    SUITES,
    Encapsulation,
    IPAddress,
    IPNetwork,
    Mode,
)

SSH = "ssh:"
HOURS = 24
"""Validity of an invitation."""
_SOMEWHERE = {4: ip_address("192.0.2.254"), 6: ip_address("2001:db8::254")}
"""Addresses that only a default route leads to."""

config_folder = click.option(
    "--config",
    type=DIRECTORY,
    default=DEFAULT_CONFIG,
    show_default=True,
    help="Folder of the configuration.",
)
force_option = click.option(
    "--force", is_flag=True, help="Go on where this machine would be cut off from its network."
)
passphrase_option = click.option(
    "--passphrase-file",
    type=FILE,
    metavar="FILE|-",
    help="Seal the invitation: a file whose first line is the passphrase, or - to type it.",
)
# Of both commands; each end sees them from its own side.
local_net_option = click.option(
    "--local-net", type=PREFIX, multiple=True, metavar="NET", help="Prefix behind us. Repeatable."
)
remote_net_option = click.option(
    "--remote-net",
    type=PREFIX,
    multiple=True,
    metavar="NET",
    help="Prefix behind the other. Repeatable.",
)


@click.command()
@click.argument("name", type=NAME)
@local_net_option
@remote_net_option
@click.option(
    "--address",
    type=REMOTE,
    metavar="IP|HOST",
    show_default="--local",
    help="Where the other gateway reaches this one.",
)
@click.option(
    "--local",
    type=OUTER_ADDRESS,
    metavar="IP",
    show_default="that of the default route",
    help="Outer address of this machine.",
)
@click.option(
    "--remote",
    type=REMOTE,
    default=ANY,
    show_default=True,
    metavar="IP|HOST|any",
    help="Outer address of the other gateway, if it has a fixed one.",
)
@click.option("--own-name", type=NAME, metavar="NAME", show_default="the host's name")
@click.option(
    "--suite",
    type=SUITE,
    default=DEFAULT_SUITE.name,
    show_default=True,
    metavar="NAME",
)
@click.option(
    "--sas", type=SA_COUNT, default=1, show_default=True, metavar="N", help="SAs each way."
)
@click.option(
    "--hours",
    type=click.IntRange(1, 168),
    default=HOURS,
    show_default=True,
    help="Time in which it can be joined.",
)
@passphrase_option
@config_folder
@force_option
@json_option
def invite(
    name: str,
    local_net: tuple[str, ...],
    remote_net: tuple[str, ...],
    address: str | None,
    local: str | None,
    remote: str,
    own_name: str | None,
    suite: str,
    sas: int,
    hours: int,
    passphrase_file: Path | None,
    config: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Add a tunnel to the gateway NAME here, and print the line by which it joins.

    The line goes to stdout and holds the keys: it is shown once and stored nowhere. Give it to
    'esp-gw join' on the other machine, and to nobody else.
    """
    from esp_gw.cli import ends  # noqa: PLC0415 - imports netlink and pydantic, which are slow
    from esp_gw.config.invitation import write_invitation  # noqa: PLC0415 - likewise
    from esp_gw.config.offer import End, Terms, draw  # noqa: PLC0415 - likewise

    if not (local_net and remote_net):
        raise click.UsageError("give --local-net and --remote-net: the networks to be joined")
    passphrase = secret.passphrase(passphrase_file)
    ours = ip_address(local) if local is not None else _own_address(address, remote)
    own = own_name or _host_name()
    if own == name:
        raise EspGwError(
            f"both ends have the name {name}", hint="choose another one with --own-name"
        )
    here = End(own, values.parse_remote(address or str(ours)), _nets(local_net), written=ours)
    there = End(name, values.parse_remote(remote), _nets(remote_net))
    terms = Terms(Mode.TUNNEL, Encapsulation.UDP, SUITES[suite], sas)
    offer = draw(here, there, terms)
    added = ends.add(config, offer, force)
    expires = datetime.now(UTC) + timedelta(hours=hours)
    token = write_invitation(offer, expires, passphrase)
    if as_json:
        output.print_json(
            {
                "invitation": token,
                "expires": expires.isoformat(timespec="seconds"),
                "name": name,
                "file": str(added.file),
            }
        )
        return
    ends.tell(added)
    click.echo(
        printable(f"{name} can join until {expires.astimezone():%Y-%m-%d %H:%M}, by this line:"),
        err=True,
    )
    click.echo(token)
    click.echo("there: sudo esp-gw join -    (and paste the line: it holds the keys)", err=True)


@click.command()
@click.argument("invitation", metavar="INVITATION|-|ssh:[USER@]HOST")
@local_net_option
@remote_net_option
@click.option(
    "--name", type=NAME, metavar="NAME", show_default="the host's name", help="With ssh: our name."
)
@passphrase_option
@config_folder
@force_option
def join(
    invitation: str,
    local_net: tuple[str, ...],
    remote_net: tuple[str, ...],
    name: str | None,
    passphrase_file: Path | None,
    config: Path,
    force: bool,
) -> None:
    """Take the tunnel of an invitation that 'esp-gw invite' has printed elsewhere.

    - reads it from stdin, where no list of processes and no history shows it. With ssh:HOST it is
    fetched from there, for the networks of --local-net and --remote-net, and both gateways are
    started or reloaded.
    """
    from esp_gw.cli import ends, ssh  # noqa: PLC0415 - imports netlink and pydantic, which are slow

    if not invitation.startswith(SSH):
        if local_net or remote_net or name:
            raise click.UsageError(
                "the invitation has networks and names already: only with ssh:HOST"
            )
        text = secret.typed("invitation: ") if invitation == "-" else invitation
        ends.tell(ends.take(text, secret.passphrase_of(text, passphrase_file), config, force))
        return
    if not (local_net and remote_net):
        raise click.UsageError("give --local-net and --remote-net: the networks to be joined")
    host = ssh.Host(invitation.removeprefix(SSH))
    own = name or _host_name()
    text = host.invite(own, local_nets=remote_net, remote_nets=local_net)
    ends.tell(ends.take(text, None, config, force))
    host.start()
    ssh.start_here()


def _host_name() -> str:
    """Return the host's name as the name of a tunnel. Raises EspGwError if it is none."""
    name = platform.node().partition(".")[0]
    try:
        return values.parse_name(name)
    except values.FieldError:
        raise EspGwError(
            f"the host's name {printable(name)} can't be that of a tunnel",
            hint="give another with --own-name, or --name of 'join'",
        ) from None


def _nets(texts: Sequence[str]) -> tuple[IPNetwork, ...]:
    return tuple(ip_network(text) for text in texts)


def _own_address(address: str | None, remote: str) -> IPAddress:
    """Return the address of this machine from which the other gateway, or anything, is reached."""
    from esp_gw.cli.here import source_address  # noqa: PLC0415 - imports netlink, which is slow

    written = [values.parse_remote(each) for each in (remote, address) if each is not None]
    version = next((each.version for each in written if not isinstance(each, str)), 4)
    found = source_address(_SOMEWHERE[version])
    if found is None:
        raise EspGwError(
            f"there is no default route for IPv{version}, and so no address of this machine",
            hint="give it with --local",
        )
    return found
