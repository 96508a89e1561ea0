"""The commonest mistakes, each made on purpose: `status` names the right cause first.

Many mistakes share a pair of gateways, each in a tunnel with outer addresses of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, namespaces
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import (
    MakePair,
    edit,
    forwarding,
    ping,
    site_host,
    start_pings,
    tunnel,
    until,
    write_key,
)

pytestmark = pytest.mark.either_engine

LIVENESS = 2
SOON = 25.0
"""Seconds within which a cause is named: a state takes up to ten, a loaded machine more."""

Fields = dict[str, Any]
Mistake = Callable[[Fields], object]


def other_key(fields: Fields) -> None:
    key = fields["inbound"]["key"]["file"]
    fields["inbound"]["key"]["file"] = key.replace(".key", ".other.key")


def swapped_spis(fields: Fields) -> None:
    ours, theirs = fields["outbound"], fields["inbound"]
    ours["spi"], theirs["spi"] = theirs["spi"], ours["spi"]


MISTAKES: dict[str, tuple[Mistake, str]] = {
    "key": (other_key, "the key, the suite (with its ICV) or ESN differ"),
    "esn": (lambda fields: fields.update(esn=False), "the key, the suite (with its ICV) or ESN"),
    "icv": (lambda fields: fields.update(suite="aes256gcm8"), "suite (with its ICV)"),
    "swap": (swapped_spis, "which is the SPI of our outbound SA"),
    "spi": (lambda fields: fields["inbound"].update(spi=0x7777), "SPIs of no SA here (0x"),
    "udp": (lambda fields: fields.update(encapsulation="none"), "takes no ESP as IP protocol 50"),
}
"""Changes of b's side of a tunnel, and what b says of it."""


def add_tunnels(pair: GatewayPair, names: list[str], **more: object) -> None:
    """Configure a tunnel for each name, with its own outer addresses 192.0.2.1NN and .2NN."""
    sides = ((pair.a, "outbound", "inbound", 100, 200), (pair.b, "inbound", "outbound", 200, 100))
    for number, name in enumerate(names, 1):
        keys = [pair.a.folder / f"{name}{end}.key" for end in (1, 2)]
        for key in keys:
            write_key(key)
            write_key(key.with_name(key.name.replace(".key", ".other.key")))
        for gateway, first, second, own, far in sides:
            add_address(gateway.namespace, f"192.0.2.{own + number}/24")
            ends: list[Fields] = [
                {"spi": 0x2000 + 16 * number + end, "key": {"file": str(keys[end])}}
                for end in (0, 1)
            ]
            fields: Fields = {
                "local": f"192.0.2.{own + number}",
                "remote": f"192.0.2.{far + number}",
                "local_ts": f"10.{own + number}.0.0/24",
                "remote_ts": f"10.{far + number}.0.0/24",
                "liveness": LIVENESS,
                first: ends[0],
                second: ends[1],
                **more,
            }
            edit(gateway, lambda config, f=fields, n=name: config["tunnels"].update({n: f}))


def causes(gateway: LabGateway) -> dict[str, str]:
    """Return the likeliest cause of each tunnel that has one."""
    tunnels = gateway.call("ListTunnels")["tunnels"]
    return {each["name"]: each["causes"][0] for each in tunnels if each["causes"]}


def states(gateway: LabGateway) -> dict[str, str]:
    return {each["name"]: each["state"] for each in gateway.call("ListTunnels")["tunnels"]}


def says(gateway: LabGateway, text: str) -> None:
    """Wait until `status` has a text in its first warning, and an exit status of 1."""

    def first() -> bool:
        warnings = gateway.call("GetStatus")["warnings"]
        return bool(warnings) and text in warnings[0]

    until(
        first, f"{text!r} as the first warning, not {gateway.call('GetStatus')['warnings']}", SOON
    )
    done = gateway.cli("status", check=False)
    assert done.returncode == 1
    (line, *_) = [line for line in done.stdout.splitlines() if "warning:" in line]
    assert text in line


def test_each_mistake_in_a_configuration_is_named_by_the_end_that_can_see_it(
    make_pair: MakePair,
) -> None:
    pair = make_pair(liveness=LIVENESS)
    add_tunnels(pair, list(MISTAKES))
    for name, (mistake, _) in MISTAKES.items():
        edit(pair.b, lambda config, n=name, m=mistake: m(config["tunnels"][n]))
    pair.start()
    until(
        lambda: all(text in causes(pair.b).get(name, "") for name, (_, text) in MISTAKES.items()),
        "the right cause of each mistake",
        SOON,
    )
    assert "nothing takes UDP port" in causes(pair.a)["udp"]
    assert set(causes(pair.b)) == set(MISTAKES), "the tunnel without a mistake has no cause"
    assert {states(pair.b)[name] for name in MISTAKES} <= {"failing", "down"}
    assert states(pair.a)["pi-b"] == states(pair.b)["pi-a"] == "up"
    log = pair.b.log.read_text()
    for name in MISTAKES:
        lines = [line for line in log.splitlines() if "a tunnel is" in line and name in line]
        assert 1 <= len(lines) <= 4, lines
    assert pair.b.cli("log").stdout.count("failing") >= len(MISTAKES) - 1
    # Everything is mended by a reload, and the causes go.
    for name in ("esn", "icv"):
        edit(pair.b, lambda config, n=name: config["tunnels"][n].pop("esn", None))
        edit(pair.b, lambda config, n=name: config["tunnels"][n].pop("suite", None))
    pair.b.cli("reload")
    until(lambda: states(pair.b)["esn"] == states(pair.b)["icv"] == "up", "a mended tunnel", SOON)
    assert not {"esn", "icv"} & set(causes(pair.b))


def test_a_healthy_pair_has_the_exit_status_0_and_a_stopped_one_3(make_pair: MakePair) -> None:
    pair = make_pair(liveness=LIVENESS)
    pair.start()
    until(lambda: states(pair.a) == {"pi-b": "up"}, "an authentic keepalive", SOON)
    assert pair.a.cli("status", check=False).returncode == 0
    pair.b.stop()
    says(pair.a, "nothing takes UDP port 4500")
    assert pair.b.cli("status", check=False).returncode == 3
    pair.b.start()
    until(lambda: pair.a.cli("status", check=False).returncode == 0, "all is well again", SOON)


BLOCKED = {
    "drop": "nothing comes from 192.0.2.1",
    "reject with icmp type admin-prohibited": "a firewall at 192.0.2.2 refuses our ESP",
    "reject with icmp type port-unreachable": "or a firewall rejects it",
}


@pytest.mark.parametrize("verdict", BLOCKED)
def test_a_blocked_port_is_named(make_pair: MakePair, verdict: str) -> None:
    pair = make_pair(liveness=LIVENESS)
    rule = f"add rule inet t c udp dport 4500 {verdict}"
    for command in ("add table inet t", "add chain inet t c {type filter hook input priority 0;}"):
        pair.b.namespace.run("nft", command)
    pair.b.namespace.run("nft", rule)
    pair.start()
    # The end that hears nothing is b, whose own firewall it is; a learns of a rejection.
    says(pair.b if verdict == "drop" else pair.a, BLOCKED[verdict])


def test_two_ends_behind_a_nat_are_suspected(make_pair: MakePair) -> None:
    pair = make_pair()
    add_address(pair.a.namespace, "192.168.7.2/24")
    add_address(pair.b.namespace, "198.51.100.9/32")
    pair.a.namespace.ip("route", "add", "198.51.100.9", "via", "192.0.2.2")
    for command in ("add table ip t", "add chain ip t c {type filter hook input priority 0;}"):
        pair.b.namespace.run("nft", command)
    pair.b.namespace.run("nft", "add rule ip t c ip daddr 198.51.100.9 drop")
    ends = {"local": "192.168.7.2", "remote": "198.51.100.9", "liveness": LIVENESS}
    edit(pair.a, lambda config: tunnel(config).update(ends))
    pair.a.start()
    says(pair.a, "if the peer is, too, let one of the two routers forward UDP port 4500")


def test_networks_that_do_not_mirror_each_other_are_named(make_pair: MakePair) -> None:
    pair = make_pair()
    edit(pair.a, lambda config: tunnel(config).update(remote_ts=["10.2.0.0/24", "10.9.0.0/24"]))
    pair.start()
    pings = start_pings(pair.a.namespace, "10.9.0.1", 200, interval=0.1)
    says(pair.b, "(10.1.0.1 to 10.9.0.1)")
    pings.kill()
    pings.wait()
    # The far side's network is right for other traffic.
    assert ping(pair.a.namespace, "10.2.0.1", count=2) == 2


def test_a_source_outside_of_local_ts_is_named(make_pair: MakePair) -> None:
    pair = make_pair()
    add_address(pair.a.namespace, "172.17.0.2/32", "lo")
    pair.start()
    script = "for i in $(seq 20); do ping -q -c 1 -W 0.2 -I 172.17.0.2 10.2.0.1; sleep 0.3; done"
    pings = pair.a.namespace.start("sh", "-c", script)
    says(pair.a, "source outside of local_ts (172.17.0.2 to 10.2.0.1)")
    pings.kill()
    pings.wait()


def test_a_local_address_that_is_gone_is_named(make_pair: MakePair) -> None:
    pair = make_pair(liveness=LIVENESS)
    add_address(pair.a.namespace, "192.0.2.77/24")
    edit(pair.a, lambda config: tunnel(config).update(local="192.0.2.77"))
    edit(pair.b, lambda config: tunnel(config).update(remote="192.0.2.77"))
    pair.start()
    until(lambda: states(pair.a) == {"pi-b": "up"}, "an authentic keepalive", SOON)
    pair.a.namespace.ip("address", "del", "192.0.2.77/24", "dev", "wan")
    says(pair.a, "its local address 192.0.2.77 is on no interface")
    add_address(pair.a.namespace, "192.0.2.77/24")
    until(lambda: states(pair.a) == {"pi-b": "up"}, "the tunnel after the address is back", SOON)


def with_host(pair: GatewayPair, host: Namespace) -> None:
    """Start the gateways with a host behind b."""
    edit(pair.b, lambda config: config["gateway"].pop("address"))
    site_host(host, pair.b.namespace, 2)
    forwarding(pair.b.namespace)
    pair.start()


def test_a_forward_chain_that_drops_is_named(make_pair: MakePair) -> None:
    pair = make_pair()
    with namespaces("h") as (host,):
        with_host(pair, host)
        assert ping(pair.a.namespace, "10.2.0.10", count=2) == 2
        pair.b.namespace.run("nft", "add table ip filter")
        chain = "{type filter hook forward priority 0; policy drop;}"
        pair.b.namespace.run("nft", f"add chain ip filter FORWARD {chain}")
        pings = start_pings(pair.a.namespace, "10.2.0.10", 600, interval=0.1)
        says(pair.b, "chain FORWARD of table ip filter drops what it has no rule for")
        pings.kill()
        pings.wait()


def test_a_host_without_a_route_back_is_named(make_pair: MakePair) -> None:
    pair = make_pair()
    with namespaces("h") as (host,):
        with_host(pair, host)
        host.ip("route", "del", "default")
        pings = start_pings(pair.a.namespace, "10.2.0.10", 600, interval=0.1)
        says(pair.b, "packets for 10.2.0.10 get no answer: it is off, or has no route back")
        pings.kill()
        pings.wait()


def test_a_peer_network_that_this_host_has_too_is_named(make_pair: MakePair) -> None:
    pair = make_pair()
    add_address(pair.a.namespace, "10.2.0.200/24", "lo")
    pair.a.namespace.ip("link", "add", "lan", "type", "dummy")
    pair.a.namespace.ip("link", "set", "lan", "up")
    add_address(pair.a.namespace, "10.2.0.201/24", "lan")
    pair.start()
    says(pair.a, "10.2.0.0/24 is behind pi-b and also a network of this host")


def test_an_uplink_inside_the_other_side_is_named(make_pair: MakePair) -> None:
    pair = make_pair()
    edit(pair.a, lambda config: tunnel(config).update(remote_ts=["192.0.0.0/16", "10.2.0.0/24"]))
    pair.start()
    says(pair.a, "192.0.2.0/24, the network of 192.0.2.1, lies inside 192.0.0.0/16")
