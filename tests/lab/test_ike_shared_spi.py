"""charon with two peers that have chosen the same SPI: a child of each, each with its own life."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tests.support.charon import ESP, IKE, Charon, Installation
from tests.support.control_proxy import ControlProxy
from tests.support.hub import SITES, Hub, hub_lab, inner, outer
from tests.support.labtools import edit, ping, sas, until

HUB_ID = "hub.example"


def name_of(site: int) -> str:
    return f"site-{site}"


def connection(site: int, end: int) -> dict[str, Any]:
    """Return the connection of an end of a site's wire, as `outer` numbers them."""
    ids = (HUB_ID, f"{name_of(site)}.example")
    nets = ("10.0.0.0/24", f"10.{site}.0.0/24")
    ours, theirs = end - 1, 2 - end
    net = {"local_ts": nets[ours], "remote_ts": nets[theirs], "esp_proposals": ESP}
    return {
        "version": 2,
        "local_addrs": outer(site, end),
        "remote_addrs": outer(site, 3 - end),
        "proposals": IKE,
        "mobike": "no",
        "local": {"auth": "psk", "id": ids[ours]},
        "remote": {"auth": "psk", "id": ids[theirs]},
        "children": {name_of(site): net},
    }


def secrets_of(*sites: int) -> dict[str, Any]:
    return {
        f"ike-{site}": {
            "id-1": HUB_ID,
            "id-2": f"{name_of(site)}.example",
            "secret": f'"a secret of site {site}"',
        }
        for site in sites
    }


def out_of(lab: Hub) -> dict[str, dict[str, Any]]:
    """Return the hub's outbound SAs by their remote addresses."""
    found = sas(lab.hub).values()
    return {sa["remote"]: sa for sa in found if sa["direction"] == "outbound"}


def test_each_peer_has_its_child_though_they_chose_one_spi(
    installed: Installation, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    lab = stack.enter_context(hub_lab(tmp_path))
    for gateway in (lab.hub, *lab.sites.values()):
        edit(gateway, lambda document: document.pop("tunnels"))
    lab.start()
    second = lab.sites[2]
    proxy = ControlProxy(second.folder / "proxy.sock", second.socket)
    stack.callback(proxy.close)
    charons: dict[str, Charon] = {}
    for name, gateway, socket in (
        ("hub", lab.hub, lab.hub.socket),
        (name_of(1), lab.sites[1], lab.sites[1].socket),
        (name_of(2), second, proxy.path),
    ):
        (tmp_path / "ike" / name).mkdir(parents=True)
        charons[name] = Charon(gateway.namespace, tmp_path / "ike" / name, installed, socket)
        stack.callback(charons[name].close)
    of_hub = {name_of(site): connection(site, 1) for site in SITES}
    charons["hub"].configure(of_hub, secrets_of(*SITES))
    for site in SITES:
        charons[name_of(site)].configure({"hub": connection(site, 2)}, secrets_of(site))
    for charon in charons.values():
        charon.start()
    hub = lab.hub.namespace

    def reaches(site: int) -> bool:
        return bool(ping(hub, inner(site), count=1))

    charons["hub"].initiate(name_of(1))
    proxy.spi = out_of(lab)[outer(1, 2)]["spi"]
    charons["hub"].initiate(name_of(2))
    both = out_of(lab)
    assert [both[outer(site, 2)]["spi"] for site in SITES] == [proxy.spi] * 2
    for site in SITES:
        until(lambda site=site: reaches(site), "each carries", 30)
    # charon asks for the use of each, and knows it.
    listed = charons["hub"].swanctl("--list-sas").stdout
    assert listed.count(f"{proxy.spi:08x}") == 2
    # They outlive a crash of the gateway, and charon takes them over.
    lab.hub.kill()
    lab.hub.start()
    for site in SITES:
        until(lambda site=site: reaches(site), "each carries after a crash", 30)
    begun = "esp_gw: session with the gateway"
    until(lambda: charons["hub"].log.read_text().count(begun) == 2, "the next session", 30)
    assert {sa["name"] for sa in out_of(lab).values()} == {sa["name"] for sa in both.values()}
    # Another SPI by a rekey of one, under the same name as before of the other.
    proxy.spi = None
    charons["hub"].swanctl("--rekey", "--child", name_of(2))
    until(lambda: out_of(lab)[outer(2, 2)]["spi"] != both[outer(2, 2)]["spi"], "a rekey", 30)
    until(lambda: len(sas(lab.hub)) == 4, "the former child is gone", 30)
    for site in SITES:
        until(lambda site=site: reaches(site), "each carries after a rekey", 30)
    charons["hub"].swanctl("--terminate", "--ike", name_of(1))
    until(lambda: len(sas(lab.hub)) == 2, "the end of one", 30)
    until(lambda: reaches(2), "the other one carries", 30)
    log = charons["hub"].log.read_text()
    faults = ("is refused", "could not be")
    assert [line for line in log.splitlines() if any(words in line for words in faults)] == []
