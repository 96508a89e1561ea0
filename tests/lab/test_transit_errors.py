"""ICMP errors of routers behind a gateway, whose own addresses no selector names (RFC 4301 6.2)."""

from __future__ import annotations

from esp_gw.demo.netns import Namespace, add_address, namespaces, wire
from tests.support.labtools import (
    MakePair,
    carry_tcp,
    drops,
    edit,
    forwarding,
    keep_multicast_off,
    ping,
    site_host,
)

TRANSIT = {4: ("172.16.0.1/30", "172.16.0.2/30"), 6: ("2001:db8:16::1/64", "2001:db8:16::2/64")}
ROUTER = {4: "172.16.0.2", 6: "2001:db8:16::2"}
HOST = {4: "10.1.0.200", 6: "fd00:1:0:0:1::200"}
BEHIND = {4: "10.1.0.128/25", 6: "fd00:1:0:0:1::/80"}
PEER_HOST = {4: "10.2.0.10", 6: "fd00:2::10"}
HEADERS = {4: 28, 6: 48}


def router_behind(gateway: Namespace, router: Namespace, host: Namespace) -> None:
    """Connect a host behind a router behind a gateway, over a link with an MTU of 1300."""
    wire(gateway, router, name="tr")
    wire(router, host, name="far", mtu=1300)
    for version, (here, there) in TRANSIT.items():
        family = f"-{version}"
        hop = here.split("/")[0]
        add_address(gateway, here, "tr")
        add_address(router, there, "tr")
        length = BEHIND[version].split("/")[1]
        near = HOST[version].replace("200", "129")
        add_address(router, f"{near}/{length}", "far")
        add_address(host, f"{HOST[version]}/{length}", "far")
        host.ip(family, "route", "add", "default", "via", near)
        router.ip(family, "route", "add", "default", "via", hop)
        gateway.ip(family, "route", "add", BEHIND[version], "via", ROUTER[version])
    forwarding(gateway, router)


def refused(host: Namespace, target: str, *options: str) -> str:
    """Return what ping says of one packet that a router answers with an error."""
    said = host.run("ping", "-n", "-c", "1", "-W", "1", *options, target, check=False)
    return (said.stdout + said.stderr).replace("mtu=", "mtu = ")


def test_a_router_behind_the_gateway_is_seen_and_its_smaller_mtu_is_learned(
    make_pair: MakePair,
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    with namespaces("r", "h", "p") as (router, host, peer_host):
        router_behind(pair.a.namespace, router, host)
        site_host(peer_host, pair.b.namespace, 2)
        forwarding(pair.b.namespace)
        for gateway in (pair.a, pair.b):
            edit(gateway, lambda config: config["gateway"].pop("address"))
        keep_multicast_off(pair.a.namespace, "esp0")
        pair.start()
        for version, target in HOST.items():
            assert ping(peer_host, target, count=3) == 3
            hops = refused(peer_host, target, "-t", "3")
            assert f"From {ROUTER[version]} " in hops, hops
            big = refused(peer_host, target, "-M", "do", "-s", str(1340 - HEADERS[version]))
            assert f"From {ROUTER[version]} " in big, big
            assert "mtu = 1300" in big, big
            carry_tcp(peer_host, host, target)
        before = drops(pair.a)["no-policy"]
        # Nothing else that the router sends is carried.
        assert [ping(router, far, count=2) for far in PEER_HOST.values()] == [0, 0]
        assert drops(pair.a)["no-policy"] == before + 4
        assert drops(pair.b)["selector-mismatch"] == 0
