"""Two peers that have chosen the same SPI: each gets its own packets, over a crash, too."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from tests.support.hub import SITES, Hub, hub_lab, inner, outer
from tests.support.labtools import edit, until
from tests.support.owner_client import Child, Session

SPI = 0xC0000777
NUMBERS = {1: 0, 2: 7}


def children() -> dict[int, Child]:
    """Return the child of each site, whose inbound SPI is the same at both."""
    return {
        site: Child(
            f"site{{{site}}}",
            (outer(site, 1), outer(site, 2)),
            ("10.0.0.0/24", f"10.{site}.0.0/24"),
            (0xC0000100 + site, SPI),
        )
        for site in SITES
    }


@pytest.fixture(params=["python", "native"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, stack: contextlib.ExitStack) -> Hub:
    hub = stack.enter_context(hub_lab(tmp_path))
    for gateway in (hub.hub, *hub.sites.values()):
        edit(gateway, lambda document: document.pop("tunnels"))
        edit(gateway, lambda document: document["gateway"].update(engine=request.param))
    hub.start()
    return hub


def test_each_peer_gets_its_own_packets(lab: Hub, stack: contextlib.ExitStack) -> None:
    each = children()
    session = Session(lab.hub.socket)
    stack.callback(session.close)
    for site, child in each.items():
        peer = Session(lab.sites[site].socket)
        stack.callback(peer.close)
        peer.call("InstallChild", sas=child.sas(1), policies=[child.policy(1)])
        into, out = child.sas(0)
        number = NUMBERS[site]
        policy = child.policy(0, child.name, sa_number=number)
        session.call("InstallChild", sas=[into, out | {"number": number}], policies=[policy])

    def all_reached() -> bool:
        return all(lab.reaches(site) for site in SITES)

    assert all_reached()
    lab.hub.kill()
    lab.hub.start()
    until(all_reached, "both carry after a crash")
    session = Session(lab.hub.socket, take_over=True)
    stack.callback(session.close)
    session.call("RemoveSas", sas=[{"direction": "outbound", "spi": SPI}])
    assert not lab.reaches(1)
    assert lab.reaches(2)
    dropped = {site: gateway.call("GetStats")["drops"] for site, gateway in lab.sites.items()}
    for site, drops in dropped.items():
        assert not drops.get("auth-failed") and not drops.get("replay-old"), (site, inner(site))
