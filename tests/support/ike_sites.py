"""Two hosts, each with charon and the gateway that carries its children."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.pair import GatewayPair
from tests.support.charon import Charon, Installation
from tests.support.ike_rig import child, connection
from tests.support.labtools import (
    Capture,
    answers,
    edit,
    esp_packets,
    ping,
    sas,
    start_pings,
    until,
)

TARGET = "10.2.0.1"


@dataclass
class Site:
    """A host with charon and the gateway that carries its children."""

    charon: Charon
    gateway: LabGateway
    number: int

    def configure(self, children: dict[str, Any], **fields: Any) -> None:
        """Give charon another connection, and load it."""
        self.charon.configure(
            {"peer": connection(self.number, children, **fields)},
            {"ike-peer": {"secret": '"a secret of the test"'}},
            {"guests": {"addrs": "10.99.0.0/24"}},
        )
        if self.charon.is_running:
            self.charon.load()

    def rekey(self) -> None:
        """Rekey the child; the other end may be quicker."""
        self.charon.swanctl("--rekey", "--child", "net", check=False)

    def policy_sa(self) -> str:
        """Return the name of the SA that the only policy uses."""
        (policy,) = self.gateway.call("ListPolicies")["policies"]
        (name,) = policy["sas"]
        return str(name)

    def carries_by_another(self, former: str) -> bool:
        """Return True if the only policy's SA is not `former`, and has sent packets."""
        name = self.policy_sa()
        return name != former and sas(self.gateway)[name]["packets"] > 0

    def spis(self) -> set[int]:
        return {sa["spi"] for sa in self.gateway.call("ListSas")["sas"]}


def start_sites(
    pair: GatewayPair,
    folder: Path,
    installed: tuple[Installation, Installation],
    stack: contextlib.ExitStack,
    of_connection: dict[str, Any] | None = None,
    **fields: object,
) -> list[Site]:
    """Start the gateways of a pair without tunnels, and charons whose child `net` has `fields`."""
    sites = []
    for number, gateway in enumerate((pair.a, pair.b)):
        edit(gateway, lambda document: document.pop("tunnels"))
        place = folder / "ab"[number]
        place.mkdir()
        charon = Charon(gateway.namespace, place, installed[number], gateway.socket)
        stack.callback(charon.close)
        # Messages are repeated for longer than a gateway takes to start, and its session after it.
        charon.settings = {"delete_rekeyed_delay": 1, "retransmit_tries": 5}
        site = Site(charon, gateway, number)
        site.configure({"net": child(number, **fields)}, **(of_connection or {}))
        sites.append(site)
    pair.start()
    for site in sites:
        site.charon.start()
    return sites


def initiate(sites: list[Site]) -> None:
    sites[0].charon.initiate()
    until(lambda: ping(sites[0].gateway.namespace, TARGET, count=1), "the tunnel carries")


def no_iv_twice(wire: Capture) -> set[int]:
    """Check that no SA used an IV twice, and return the SPIs of protocol 50."""
    packets = [packet for packet in esp_packets(wire.stop()) if packet.frame[23] == 50]
    seen = Counter((packet.spi, packet.iv) for packet in packets)
    assert [key for key, count in seen.items() if count > 1] == []
    return {spi for spi, _ in seen}


def encapsulations(site: Site) -> set[str]:
    return {sa["encapsulation"] for sa in sas(site.gateway).values()}


def replace_child(sites: list[Site], rekeying: int) -> None:
    """Rekey the child; return when both ends carry packets by the new SA."""
    before = [site.policy_sa() for site in sites]
    sites[rekeying].charon.swanctl("--rekey", "--child", "net")
    host = sites[0].gateway.namespace

    def carries(site: Site, former: str) -> bool:
        # A rekey whose message is repeated may outlast the traffic around it.
        return bool(ping(host, TARGET, count=1)) and site.carries_by_another(former)

    for site, former in zip(sites, before, strict=True):
        until(lambda site=site, former=former: carries(site, former), "a new SA", 60)


def replace_ike(site: Site, rekey: Callable[[], object] | None = None) -> None:
    """Rekey the IKE SA, by default from this site; return when the former one is gone."""
    former = re.search("initiator-spi=[0-9a-f]+", site.charon.swanctl("--list-sas", "--raw").stdout)
    assert former is not None
    if rekey is None:
        site.charon.swanctl("--rekey", "--ike", "peer")
    else:
        rekey()

    def is_new() -> bool:
        listed = site.charon.swanctl("--list-sas", "--raw").stdout
        return listed.count("initiator-spi=") == 1 and former[0] not in listed

    until(is_new, "a new IKE SA", 60)


def replace_child_under_pings(sites: list[Site]) -> None:
    """Rekey the child once from each end; no ping may get lost."""
    pings = start_pings(sites[0].gateway.namespace, TARGET, 400, interval=0.005)
    for rekeying in (0, 1):
        replace_child(sites, rekeying)
    assert answers(pings) == 400
