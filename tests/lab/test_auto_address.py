"""`local: auto`: the outer address is that of the route to the peer, whenever it changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

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


def test_an_automatic_address_behind_a_nat_is_a_likely_cause_of_silence(
    make_pair_of_one_engine: MakePair,
) -> None:
    pair = make_pair_of_one_engine(liveness=1)
    edit(pair.a, lambda config: tunnel(config).update(local="auto"))
    host = pair.a.namespace
    host.ip("address", "replace", "192.168.7.1/24", "dev", "wan")
    host.ip("address", "del", "192.0.2.1/24", "dev", "wan")
    host.ip("route", "replace", "192.0.2.0/24", "dev", "wan", "src", "192.168.7.1")
    # The NAT of the peer, which nothing passes and which answers nothing.
    host.ip("neighbour", "replace", "192.0.2.2", "lladdr", "02:00:00:00:00:02", "dev", "wan")
    pair.a.start()

    def causes() -> str:
        (entry,) = pair.a.call("ListTunnels")["tunnels"]
        return str(entry["causes"])

    until(lambda: "this end is behind a NAT" in causes(), "the suspicion", 30)


def test_init_writes_an_automatic_address_where_the_peer_has_a_route(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair()
    nets = ("--local-net", "10.1.0.0/24", "--remote-net", "10.2.0.0/24")
    options = ("--local", "auto", *nets, "--out", str(tmp_path / "made"))
    refused = pair.a.cli("init", *options, "--remote", "203.0.113.9", check=False)
    assert refused.returncode == 1
    assert "there is no route to 203.0.113.9 here" in refused.stderr
    assert not (tmp_path / "made").exists()
    pair.a.cli("init", *options, "--remote", "192.0.2.2")
    for gateway in (pair.a, pair.b):
        made = tmp_path / "made" / gateway.config.parent.name
        shutil.copytree(made / "keys", gateway.config.parent / "keys", dirs_exist_ok=True)
        settings = yaml.safe_load(gateway.config.read_text())["gateway"]
        config = yaml.safe_load((made / "gateway.yaml").read_text())
        config["gateway"] = {**config["gateway"], **settings}
        gateway.config.write_text(yaml.safe_dump(config))
    assert tunnel(yaml.safe_load(pair.a.config.read_text()))["local"] == "auto"
    assert tunnel(yaml.safe_load(pair.b.config.read_text()))["remote"] == "192.0.2.1"
    pair.start()
    assert ping(pair.a.namespace, "10.2.0.1", count=3) == 3
