"""The networks around this machine, as commands look at them before a gateway runs with them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import click

from esp_gw.cli.login import find_login
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import ConfigError, EspGwError, NetworkError, printable
from esp_gw.model import IPAddress
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.objects import Host
from esp_gw.network.surroundings import ALLOW, Login, clashes, cut_off, cut_off_login

RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
"""Files with the resolvers of this machine: systemd-resolved has the real ones in the second."""


@dataclass(frozen=True, slots=True)
class Here:
    """This machine's network, and the login that doesn't come by a tunnel, if there is one."""

    host: Host
    login: Login | None

    def is_home_of(self, outer: Sequence[IPAddress]) -> bool:
        """Return True if a gateway with these outer addresses belongs to this machine."""
        written = [each for each in outer if not each.is_unspecified]
        return not written or not self.host.addresses.isdisjoint(written)

    def cut_off(self, desired: Desired) -> list[str]:
        """Return a sentence for each path that would be lost: to the router, to the caller."""
        lost = cut_off(desired, self.host)
        return lost if self.login is None else lost + cut_off_login(desired, self.host, self.login)

    def clashes(self, desired: Desired) -> list[str]:
        """Return a sentence for each clash that cuts nobody off."""
        lost = cut_off(desired, self.host)
        return [text for text in clashes(desired, self.host) if text not in lost]


def look(settings: GatewaySettings) -> Here:
    """Look at this machine; it takes no privilege. Raises NetworkError."""
    return asyncio.run(_look(settings, find_login()))


def look_if_home(local: IPAddress) -> Here | None:
    """Look at this machine if it has this outer address; None if it is another's."""
    try:
        here = look(GatewaySettings())
    except NetworkError as error:
        text = f"warning: the networks around this machine were not looked at: {error}"
        click.echo(printable(text), err=True)
        return None
    return here if here.is_home_of([local]) else None


def outer_address(remote: IPAddress) -> IPAddress:
    """Return the address of the route to a peer. Raises EspGwError if there is none."""
    found = source_address(remote)
    if found is None:
        raise EspGwError(
            f"there is no route to {remote} here, and so no address that 'auto' stands for",
            hint="run it on A, or give its address",
        )
    return found


def judge(here: Here, force: bool, desired: Desired) -> None:
    """Warn of clashes. Raises EspGwError for one that would cut off this machine, unless forced."""
    lost = here.cut_off(desired)
    if lost and not force:
        raise EspGwError(lost[0], hint="--force goes on regardless")
    for text in [*lost, *here.clashes(desired)]:
        click.echo(printable(f"warning: {text}"), err=True)


def keep_caller(config: Path) -> None:
    """Raise EspGwError if a configuration would end the session of whoever is logged in by ssh.

    A configuration that can't be read is left to the daemon.
    """
    from esp_gw.config.load import load_protection  # noqa: PLC0415 - pydantic is slow to import

    try:
        desired = load_protection(config)
    except ConfigError:
        return
    here = look(desired.settings)
    if here.login is not None and not desired.settings.allow_cut_off:
        for text in cut_off_login(desired, here.host, here.login):
            raise EspGwError(text, hint=ALLOW)


def nameservers(paths: Iterable[Path]) -> list[IPAddress]:
    """Return the resolvers that files in the form of resolv.conf(5) name."""
    found = []
    for path in paths:
        with contextlib.suppress(OSError):
            for line in path.read_text(errors="replace").splitlines():
                words = line.split()
                if len(words) >= 2 and words[0] == "nameserver":
                    with contextlib.suppress(ValueError):
                        found.append(ip_address(words[1].partition("%")[0]))
    return found


async def _look(settings: GatewaySettings, login: Login | None) -> Here:
    kernel = KernelNetwork(settings.table)
    await kernel.open()
    try:
        # The addresses of a running gateway are no part of the host.
        with contextlib.suppress(NetworkError):
            await kernel.join(settings.interface)
        host = await kernel.host(settings.fwmark)
        if login is not None:
            device = await kernel.device_to(login.peer, login.local)
            # A login by way of the running gateway doesn't count.
            login = None if device == settings.interface else login
        return Here(host, login)
    finally:
        await kernel.close()


def source_address(remote: IPAddress) -> IPAddress | None:
    """Return this machine's address of the route to an address, or None without a route."""
    return asyncio.run(_source(remote))


async def _source(remote: IPAddress) -> IPAddress | None:
    settings = GatewaySettings()
    kernel = KernelNetwork(settings.table)
    await kernel.open()
    try:
        return await kernel.source(remote, settings.fwmark)
    finally:
        await kernel.close()
