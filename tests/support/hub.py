"""A hub with two sites: three namespaces, two wires, two tunnels at the hub.

site-1 [10.1.0.1] --- wan1 192.0.1.0/24 ---+
                                           hub [10.0.0.1]
site-2 [10.2.0.1] --- wan2 192.0.2.0/24 ---+

The IPv6 networks of the wires are 2001:db8:N::/64.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, namespaces, wire
from esp_gw.model import Encapsulation
from tests.support.labtools import edit, ping, write_key

HUB = "10.0.0.1"
SITES = (1, 2)


@dataclass(frozen=True)
class Hub:
    hub: LabGateway
    sites: dict[int, LabGateway]

    def start(self) -> None:
        for gateway in (self.hub, *self.sites.values()):
            gateway.launch()
        for gateway in (self.hub, *self.sites.values()):
            gateway.wait_ready()

    def reaches(self, site: int) -> bool:
        """Return True if a site answers through its tunnel."""
        return ping(self.hub.namespace, inner(site), count=2) == 2


def inner(site: int) -> str:
    return f"10.{site}.0.1"


def outer(site: int, end: int, version: int = 4) -> str:
    """Return the address of an end of a site's wire: 1 is the hub's, 2 the site's."""
    return f"192.0.{site}.{end}" if version == 4 else f"2001:db8:{site}::{end}"


@contextlib.contextmanager
def hub_lab(
    folder: Path,
    version: int = 4,
    encapsulation: Encapsulation = Encapsulation.UDP,
    local: str | None = None,
) -> Iterator[Hub]:
    """Create the namespaces and the configurations; no daemon is started.

    `version` is that of the outer packets. `local` is the hub's address of all tunnels; by default
    each has that of its wire.
    """
    with namespaces("hub", *(f"site-{site}" for site in SITES)) as (host, *site_hosts):
        for site, site_host in zip(SITES, site_hosts, strict=True):
            wire(host, site_host, name=f"wan{site}")
            length = 24 if version == 4 else 64
            for end, namespace in ((1, host), (2, site_host)):
                add_address(namespace, f"{outer(site, end, version)}/{length}", f"wan{site}")
            if local is not None:
                site_host.ip("route", "add", local, "via", outer(site, 1, version))
        if local is not None:
            add_address(host, local, "lo")
        hub = _gateway(host, folder / "hub", HUB)
        sites = {
            site: _gateway(site_host, folder / f"site-{site}", inner(site))
            for site, site_host in zip(SITES, site_hosts, strict=True)
        }
        for site, gateway in sites.items():
            ours, theirs = tunnel_pair(site, folder, version)
            ours["local"] = theirs["remote"] = local or ours["local"]
            for tunnel in (ours, theirs):
                tunnel["encapsulation"] = str(encapsulation)
            _add_tunnel(hub, f"site-{site}", ours)
            _add_tunnel(gateway, "hub", theirs)
        try:
            yield Hub(hub, sites)
        finally:
            for gateway in (hub, *sites.values()):
                if gateway.is_running:
                    gateway.stop()


def tunnel_pair(site: int, folder: Path, version: int = 4) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two ends of the tunnel to a site, the hub's and the site's, with fresh keys."""
    ways = []
    for way in ("to", "from"):
        key = write_key(folder / f"{way}-{site}-{secrets.token_hex(4)}.key")
        ways.append({"spi": 0x1000 + secrets.randbelow(2**31), "key": {"file": str(key)}})
    there, back = ways
    hub_end = (outer(site, 1, version), "10.0.0.0/24")
    site_end = (outer(site, 2, version), f"10.{site}.0.0/24")
    return _tunnel(hub_end, site_end, there, back), _tunnel(site_end, hub_end, back, there)


def _tunnel(
    here: tuple[str, str], there: tuple[str, str], outbound: object, inbound: object
) -> dict[str, Any]:
    return {
        "local": here[0],
        "remote": there[0],
        "local_ts": here[1],
        "remote_ts": there[1],
        "outbound": outbound,
        "inbound": inbound,
    }


def _gateway(host: Namespace, folder: Path, address: str) -> LabGateway:
    folder.mkdir(mode=0o700)
    gateway = LabGateway(host, folder / "gateway.yaml", folder)
    document = {"gateway": {"address": address, **gateway.settings}, "tunnels": {}}
    gateway.config.write_text(yaml.safe_dump(document))
    gateway.create_ledger()
    return gateway


def _add_tunnel(gateway: LabGateway, name: str, tunnel: dict[str, Any]) -> None:
    edit(gateway, lambda config: config["tunnels"].update({name: tunnel}))
