"""The cards by which the gateway's peers are reached, and how the gateway uses the machine."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from esp_gw.cli.options import Daemon
from esp_gw.config.load import load_config, readable_control_socket
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import ConfigError, EspGwError
from esp_gw.model import Encapsulation, IPAddress, Sa
from esp_gw.tune.cards import outgoing_cards
from esp_gw.tune.machine import Use


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The cards to the peers, and how the gateway uses the machine."""

    cards: list[str]
    use: Use


def surroundings(config: Path, daemon: Daemon, root: Path) -> Surroundings:
    """Return what the configuration says, else the running gateway; the default route's without.

    Raises EspGwError for a configuration that is there and wrong.
    """
    desired = _configured(config)
    found = around(desired, root)
    peers = [] if desired is None else _peers(desired)
    if not peers:
        if os.path.lexists(config):
            daemon = daemon.of(readable_control_socket(config))
        with contextlib.suppress(EspGwError):
            tunnels = daemon.call("ListTunnels")["tunnels"]
            remotes = [each["remote"] for each in tunnels]
            peers = [ip_address(each) for each in remotes if _is_address(each)]
            settings = GatewaySettings() if desired is None else desired.settings
            use = replace(found.use, shares_flows=_shares_flows(_running(tunnels)))
            return Surroundings(_cards(peers, settings.interface, root), use)
    return found


def around(desired: Desired | None, root: Path) -> Surroundings:
    """Return what a configuration says; the cards of the default route without one."""
    if desired is None:
        return Surroundings(_cards([], GatewaySettings().interface, root), Use())
    shares_flows = _shares_flows(_configured_ways(desired.sas))
    use = Use(pinned=desired.settings.pin_workers, shares_flows=shares_flows)
    return Surroundings(_cards(_peers(desired), desired.settings.interface, root), use)


def _configured_ways(sas: Iterable[Sa]) -> Iterator[tuple[str, str]]:
    """Yield the outer addresses of each SA in UDP; a peer that may be anywhere is its own."""
    for sa in sas:
        if sa.encapsulation is Encapsulation.UDP:
            anywhere = sa.remote_name or sa.tunnel or sa.name
            yield str(sa.local), anywhere if sa.remote.is_unspecified else str(sa.remote)


def _running(tunnels: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the same of each SA of a running gateway."""
    for each in tunnels:
        if each["encapsulation"] == Encapsulation.UDP:
            remote = each["remote"] if _is_address(each["remote"]) else each["name"]
            yield from [(each["local"], remote)] * len(each["sas"])


def _shares_flows(ways: Iterable[tuple[str, str]]) -> bool:
    """Return True if two addresses have more between them than an SA of each direction."""
    return max(Counter(ways).values(), default=0) > 2


def _configured(config: Path) -> Desired | None:
    if not os.path.lexists(config):
        return None
    try:
        return load_config(config)
    except ConfigError as error:
        # A folder without a file, as an installation leaves it.
        if error.may_pass:
            return None
        raise


def _peers(desired: Desired) -> list[IPAddress]:
    return [sa.remote for sa in desired.sas]


def _cards(peers: Iterable[IPAddress], tun: str, root: Path) -> list[str]:
    try:
        return outgoing_cards(peers, tun, root)
    except OSError as error:
        text = f"the kernel can't be asked for routes: {error.strerror}"
        raise EspGwError(text, where="netlink") from error


def _is_address(text: object) -> bool:
    try:
        ip_address(str(text))
    except ValueError:
        return False
    return True
