"""`local: auto`: the outer address is that of the route to the peer, whenever it changes."""

from __future__ import annotations

import pytest

from esp_gw.demo.netns import add_address
from esp_gw.demo.traffic import iperf, iperf_server
from esp_gw.model import Encapsulation
from tests.support.labtools import MakePair, edit, ping, tunnel, until

NEW = {4: "192.0.2.77", 6: "2001:db8::77"}
LENGTH = {4: 24, 6: 64}


@pytest.mark.parametrize("version", [4, 6])
def test_a_tunnel_goes_on_from_a_new_address_without_a_reload(
    make_pair: MakePair, version: int
) -> None:
    pair = make_pair(outer_version=version, liveness=1)
    edit(pair.a, lambda config: tunnel(config).update(local="auto"))
    pair.start()
    host = pair.a.namespace
    assert ping(host, "10.2.0.1", count=3) == 3
    with iperf_server(pair.b.namespace, "10.2.0.1"):
        assert iperf(host, "10.2.0.1", 1).gbit_s > 0
    old = str(pair.plan.outer[0])
    assert pair.a.call("ListTunnels")["tunnels"][0]["local"] == old
    add_address(host, f"{NEW[version]}/{LENGTH[version]}")
    host.ip("address", "del", f"{old}/{LENGTH[version]}", "dev", "wan")
    # Deleting the first address of a subnet takes the others with it.
    host.run("ip", "address", "replace", f"{NEW[version]}/{LENGTH[version]}", "dev", "wan")

    def moved() -> bool:
        return bool(pair.b.call("ListTunnels")["tunnels"][0]["remote"] == NEW[version])

    until(moved, "the peer follows the keepalives from the new address")
    until(lambda: ping(host, "10.2.0.1", count=1) == 1, "an answer")
    assert ping(pair.b.namespace, "10.1.0.1", count=3) == 3
    assert pair.a.call("ListTunnels")["tunnels"][0]["local"] == NEW[version]
    assert "is on no interface" not in str(pair.a.call("GetStatus")["warnings"])


def test_protocol_50_leaves_from_the_address_of_the_route(make_pair: MakePair) -> None:
    pair = make_pair(encapsulation=Encapsulation.NONE)
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).update(local="auto"))
    pair.start()
    assert ping(pair.a.namespace, "10.2.0.1", count=3) == 3
    assert ping(pair.b.namespace, "10.1.0.1", count=3) == 3


def test_without_a_route_the_tunnel_waits_closed_for_one(make_pair: MakePair) -> None:
    pair = make_pair()
    edit(pair.a, lambda config: tunnel(config).update(local="auto"))
    host = pair.a.namespace
    host.ip("link", "set", "wan", "down")
    pair.start()
    (warning, *_) = pair.a.call("GetStatus")["warnings"]
    assert "there is no route to 192.0.2.2" in warning
    assert ping(host, "10.2.0.1", count=1) == 0
    host.ip("link", "set", "wan", "up")
    until(lambda: ping(host, "10.2.0.1", count=1) == 1, "an answer once there is a route")
    assert "no route" not in str(pair.a.call("GetStatus")["warnings"])


def test_an_address_becomes_auto_and_the_other_way_round(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    edit(pair.a, lambda config: tunnel(config).update(local="auto"))
    pair.a.cli("reload")
    assert ping(pair.a.namespace, "10.2.0.1", count=3) == 3
    edit(pair.a, lambda config: tunnel(config).update(local="192.0.2.1"))
    pair.a.cli("reload")
    assert ping(pair.a.namespace, "10.2.0.1", count=3) == 3
