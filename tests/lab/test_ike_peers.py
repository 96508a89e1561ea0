"""Children in UDP through a NAT, and with a peer that has strongSwan's own ESP."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from esp_gw.demo.netns import Namespace, add_address, namespaces, wire
from esp_gw.demo.pair import OUTER
from tests.support.charon import BASE, Charon, Installation, here, of_libipsec
from tests.support.evidence import trial
from tests.support.ike_rig import child
from tests.support.ike_sites import (
    TARGET,
    Site,
    encapsulations,
    replace_child_under_pings,
    replace_ike,
    start_sites,
)
from tests.support.labtools import (
    MakePair,
    carry_tcp_both_ways,
    edit,
    forwarding,
    lost,
    ping,
    sas,
    start_pings,
    until,
)

# charon and the daemon decide here; the engines carry what they are told.
pytestmark = pytest.mark.either_engine

PUBLIC, INSIDE = "192.0.2.2", "10.9.0.2"


def masquerade(router: Namespace, first: int) -> None:
    """Translate what leaves the router to 1,000 ports from `first` on; forget all mappings."""
    router.run("sh", "-c", "nft delete table ip nat 2>/dev/null || true")
    router.run(
        "nft",
        f"""
        table ip nat {{
            chain out {{
                type nat hook postrouting priority 100
                oifname wan meta l4proto udp masquerade to :{first}-{first + 999} random
            }}
        }}
        """,
    )
    # The kernel forgets the mappings of a device that goes down.
    for state in ("down", "up"):
        router.ip("link", "set", "wan", state)


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP in UDP through a NAT, ESN, PSK, MOBIKE",
    "a NAT that forgets its mapping",
)
def test_traffic_goes_on_when_a_nat_forgets_its_mapping(
    make_pair: MakePair, installed: Installation, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    pair = make_pair()
    inside = pair.b.namespace
    (router,) = stack.enter_context(namespaces("nat"))
    inside.ip("link", "delete", "wan")
    wire(pair.a.namespace, router)
    wire(router, inside, name="lan")
    add_address(pair.a.namespace, f"{OUTER[4][0]}/24")
    add_address(router, f"{PUBLIC}/24")
    add_address(router, "10.9.0.1/24", "lan")
    add_address(inside, f"{INSIDE}/24", "lan")
    inside.ip("route", "add", "default", "via", "10.9.0.1")
    forwarding(router)
    masquerade(router, 20000)
    mobile = {"mobike": "yes"}
    sites = start_sites(pair, tmp_path, (installed,) * 2, stack, mobile)
    outside, behind = sites
    behind.configure({"net": child(1)}, addresses=(str(OUTER[4][0]), INSIDE), **mobile)
    outside.configure({"net": child(0)}, remote_addrs="%any", **mobile)
    behind.charon.initiate()
    until(lambda: ping(inside, "10.1.0.1", count=1), "the tunnel carries")

    def ports() -> set[int]:
        return {int(sa["remote_port"]) for sa in sas(outside.gateway).values()}

    spis = outside.spis()
    for first in (30000, 40000):
        assert not ports() & set(range(first, first + 1000))
        masquerade(router, first)
        until(lambda: ping(inside, "10.1.0.1", count=1), "the tunnel carries again", 30)
        until(lambda first=first: ports() <= set(range(first, first + 1000)), "the new mapping")
        assert ping(pair.a.namespace, TARGET, count=20) == 20
        assert outside.spis() == spis
    # charon follows too: what it begins itself reaches the peer.
    replace_child_under_pings(sites)


@trial(
    of_libipsec,
    "tunnel, IPv4 in IPv4, ESP in UDP, no ESN, PSK",
    "pings and TCP both ways, child and IKE SA rekeyed from both ends under pings, none lost",
)
def test_a_peer_of_another_kind_in_udp(
    make_pair: MakePair, installed: Installation, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    pair = make_pair()
    edit(pair.a, lambda document: document.pop("tunnels"))
    pair.a.start()
    host, peer = pair.a.namespace, pair.b.namespace
    add_address(peer, "10.2.0.1/24", "lo")
    sites = []
    for number, namespace in enumerate((host, peer)):
        folder = tmp_path / "ab"[number]
        folder.mkdir()
        charon = Charon(namespace, folder, installed, pair.a.socket)
        stack.callback(charon.close)
        sites.append(Site(charon, pair.a, number))
    # strongSwan's own ESP in user space.
    libipsec = "kernel-libipsec kernel-netlink socket-default vici updown"
    sites[1].charon.settings = {"load": f"{BASE} {libipsec}", "install_routes": "yes"}
    for site in sites:
        # It has no extended sequence numbers.
        net = child(site.number, esp_proposals="aes256gcm16-x25519")
        site.configure({"net": net})
        site.charon.start()
    sites[0].charon.initiate()
    until(lambda: ping(host, TARGET, count=1), "the tunnel carries")
    assert encapsulations(sites[0]) == {"udp"}
    carry_tcp_both_ways(host, peer, TARGET)
    pings = start_pings(host, TARGET, 60_000, interval=0.005)
    for number in range(4):
        former = sites[0].policy_sa()
        sites[number % 2].charon.swanctl("--rekey", "--child", "net")
        until(lambda former=former: sites[0].carries_by_another(former), "a new SA", 60)
        replace_ike(sites[number % 2])
    assert lost(pings) == 0
