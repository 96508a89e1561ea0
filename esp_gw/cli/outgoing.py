"""The cards by which the gateway's peers are reached, and how the gateway uses the machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from esp_gw.cli.options import Daemon
from esp_gw.config.load import load_config, readable_control_socket
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import ConfigError, EspGwError
from esp_gw.model import Encapsulation, IPAddress
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
            remotes = [each["remote"] for each in daemon.call("ListTunnels")["tunnels"]]
            peers = [ip_address(each) for each in remotes if _is_address(each)]
            settings = GatewaySettings() if desired is None else desired.settings
            return Surroundings(_cards(peers, settings.interface, root), found.use)
    return found


def around(desired: Desired | None, root: Path) -> Surroundings:
    """Return what a configuration says; the cards of the default route without one."""
    if desired is None:
        return Surroundings(_cards([], GatewaySettings().interface, root), Use())
    # An SA of each direction.
    several = any(
        tunnel.encapsulation is Encapsulation.UDP and len(tunnel.sas) > 2
        for tunnel in desired.tunnels
    )
    use = Use(pinned=desired.settings.pin_workers, shares_flows=several)
    return Surroundings(_cards(_peers(desired), desired.settings.interface, root), use)


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
