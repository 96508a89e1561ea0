"""Routing beside other programs: the local network, other gateways, and removed settings."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw.config.provision import make_pair as make_configurations
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import end, namespaces
from esp_gw.demo.pair import GatewayPair
from esp_gw.demo.traffic import ping
from esp_gw.errors import LabError
from tests.support.labtools import (
    MakePair,
    StartTap,
    edit,
    guard,
    network,
    running,
    site_host,
    tunnel,
    until,
)

pytestmark = pytest.mark.either_engine


def test_a_spoke_that_protects_a_wide_prefix_reaches_its_own_network(
    make_pair: MakePair, tap: StartTap
) -> None:
    """Hub and spoke: 10.1.0.0/24 is local, all of 10.0.0.0/8 is behind the peer."""
    pair = make_pair(inner_versions=(4, 6))
    edit(pair.a, lambda config: tunnel(config).update(remote_ts=["10.0.0.0/8", "fd00::/16"]))
    edit(pair.b, lambda config: tunnel(config).update(local_ts=["10.0.0.0/8", "fd00::/16"]))
    host = pair.a.namespace
    host.ip("route", "add", "default", "via", "192.0.2.2")
    with namespaces("host-a") as (lan,):
        site_host(lan, host, 1)
        before = network(host)
        pair.start()
        wire = tap(host)
        for near, far in (("10.1.0.10", "10.2.0.1"), ("fd00:1::10", "fd00:2::1")):
            assert ping(host, near, count=2).received == 2, near
            assert ping(host, far, count=2).received == 2, far
        assert pair.a.ask("reload")["changes"] == []
        pair.a.kill()
        assert ping(host, "10.1.0.10", count=1).received == 1
        assert ping(host, "10.2.0.1", count=1).received == 0
        pair.a.start()
        pair.a.stop()
        guard(pair.a, "down")
        assert network(host) == before
        report = wire.finish()
        assert report.cleartext == 0, report.examples


def second_gateway(pair: GatewayPair, folder: Path, table: int) -> LabGateway:
    """Another gateway on the host of `pair.a`, with its own interface and port."""
    run = folder / f"second-{table}"
    run.mkdir(mode=0o700)
    configurations = folder / f"configurations-{table}"
    gateway = LabGateway(pair.a.namespace, configurations / "c" / "gateway.yaml", run)
    make_configurations(
        configurations,
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.9"),
        local_nets=[ip_network("10.20.0.0/24")],
        remote_nets=[ip_network("10.21.0.0/24")],
        names=("c", "d"),
        local_settings={**gateway.settings, "interface": "esp7", "port": 4700, "table": table},
    )
    gateway.create_ledger()
    return gateway


@pytest.mark.parametrize(
    ("table", "idle"), [(4500, False), (4500, True), (4501, False), (4099, False), (4901, True)]
)
def test_a_gateway_with_a_table_too_near_to_anothers_is_refused_and_changes_nothing(
    make_pair: MakePair, tmp_path: Path, table: int, idle: bool
) -> None:
    pair = make_pair()
    host = pair.a.namespace
    if idle:  # it has no route yet, but may add one at any time
        edit(pair.a, lambda config: config.update(tunnels={}))
    pair.start()
    before = network(host)
    second = second_gateway(pair, tmp_path, table)
    with pytest.raises(LabError, match=r"gateway\.table: .* esp0 .* 4500.*at least 402 away"):
        second.start()
    assert second.process is not None
    assert second.process.wait(10) == 1
    assert "Traceback" not in second.log.read_text()
    assert network(host) == before


@pytest.mark.parametrize("table", [4098, 4902])
def test_two_gateways_far_enough_apart_leave_each_other_alone(
    make_pair: MakePair, tmp_path: Path, table: int
) -> None:
    pair = make_pair()
    host, target = pair.a.namespace, pair.plan.inner(1)
    for config in (pair.a, pair.b):
        bypass = {"action": "bypass", "remote_ts": ["10.99.0.0/24"]}
        edit(config, lambda document, bypass=bypass: document.update(policies=[bypass]))
    pair.start()
    alone = network(host)
    second = second_gateway(pair, tmp_path, table)
    bypasses = [{"action": "bypass", "remote_ts": [f"10.98.{n}.0/24"]} for n in range(9)]
    edit(second, lambda document: document.update(policies=bypasses))
    second.start()
    both = network(host)
    assert ping(host, target, count=2).received == 2
    assert pair.a.ask("reload")["changes"] == []
    assert second.ask("reload")["changes"] == []
    pair.a.kill()
    second.stop()
    second.start()
    # The guard of a dead neighbour's prefixes is not ours to remove.
    assert "unreachable 10.2.0.0/24" in host.ip("route", "show", "table", "4500")
    assert ping(host, target, count=1).received == 0
    pair.a.start()
    assert network(host) == both
    second.stop()
    guard(second, "down")
    assert network(host) == alone
    assert ping(host, target, count=2).received == 2


@pytest.mark.parametrize("table", [4501, 6000])
def test_leftovers_of_a_killed_run_in_another_table_are_replaced(
    make_pair: MakePair, tap: StartTap, table: int
) -> None:
    pair = make_pair()
    host, target = pair.a.namespace, pair.plan.inner(1)
    host.ip("route", "add", "default", "via", "192.0.2.2")
    bypass = {"action": "bypass", "remote_ts": ["10.99.0.0/24"]}
    edit(pair.a, lambda config: config.update(policies=[bypass]))
    before = network(host)
    pair.start()
    wire = tap(host)
    pair.a.kill()
    edit(pair.a, lambda config: config["gateway"].update(table=table))
    pings = host.start("ping", "-i", "0.002", "-c", "500", target)
    pair.a.start()
    pings.wait(30)
    assert ping(host, target, count=2).received == 2
    rules, routes = host.ip("rule"), host.ip("route", "show", "table", "all")
    assert f"lookup {table}" in rules
    assert "lookup 4500" not in rules
    assert "table 4500" not in routes
    assert pair.a.stop() == 0
    guard(pair.a, "down")
    assert network(host) == before
    report = wire.finish()
    assert report.cleartext == 0, report.examples


FLOOD = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print("ready", flush=True)
sys.stdin.close()
import time
while True:
    try:
        s.sendto(b"PLAINTEXT", (sys.argv[1], 9))
    except OSError:
        pass
    time.sleep(0.002)
"""


def warned(gateway: LabGateway, text: str) -> bool:
    return any(text in warning for warning in gateway.ask("status")["warnings"])


REMOVALS = [
    (("rule", "del", "pref", "4499"), "rule 4499 (IPv4)"),
    (("-6", "rule", "del", "pref", "4499"), "rule 4499 (IPv6)"),
    (("route", "flush", "table", "4500"), "route 10.2.0.0/24 tun"),
    (("address", "flush", "dev", "esp0"), "address 10.1.0.1"),
    (("link", "set", "esp0", "mtu", "1300"), "mtu 1438"),
]


@pytest.mark.parametrize(("command", "name"), REMOVALS)
def test_settings_removed_by_another_program_are_restored_and_reported(
    make_pair: MakePair, command: tuple[str, ...], name: str
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    host = pair.a.namespace
    pair.start()
    during = network(host)
    host.ip(*command)
    until(lambda: network(host) == during, "the network is as before")
    for target in ("10.2.0.1", "fd00:2::1"):
        until(lambda target=target: ping(host, target, count=2).received == 2, "the tunnel carries")
    assert warned(pair.a, name)
    lines = pair.a.log.read_text().splitlines()
    (line,) = [line for line in lines if "another program removed" in line]
    assert name in line
    pair.a.cli("reload")
    assert pair.a.ask("status")["warnings"] == pair.b.ask("status")["warnings"]


@pytest.mark.parametrize(("firewall", "leaks"), [("auto", False), ("off", True)])
def test_a_removed_rule_leaks_nothing_past_the_packet_filter_and_without_it_for_a_moment(
    make_pair: MakePair, tap: StartTap, firewall: str, leaks: bool
) -> None:
    pair = make_pair(settings={"firewall": firewall})
    pair.start()
    host, target = pair.a.namespace, pair.plan.inner(1)
    host.ip("route", "add", "default", "via", "192.0.2.2")
    wire = tap(host)
    with running(host, FLOOD, target):
        host.ip("rule", "del", "pref", "4499")
        until(lambda: "lookup 4500" in host.ip("rule"), "the rule is back")
    during = wire.finish()
    assert bool(during.cleartext) == leaks, during.examples
    wire = tap(host)
    with running(host, FLOOD, target):
        assert ping(host, target, count=20).received == 20
    report = wire.finish()
    assert report.cleartext == 0, report.examples
    assert warned(pair.a, "rule 4499 (IPv4)")


def test_repairs_are_rate_limited_against_a_program_that_keeps_removing_a_rule(
    pair: GatewayPair,
) -> None:
    host = pair.a.namespace
    loop = "while :; do ip rule del pref 4499 2>/dev/null; sleep 0.05; done"
    fight = host.start("sh", "-c", loop)
    busy = pair.a.usage().cpu_s
    until(lambda: pair.a.log.read_text().count("another program removed") >= 3, "three repairs", 20)
    assert pair.a.log.read_text().count("another program removed") <= 4
    assert pair.a.usage().cpu_s - busy < 1.5
    assert warned(pair.a, "rule 4499 (IPv4)")
    end(fight)
    until(lambda: "lookup 4500" in host.ip("rule"), "the rule is back", 20)
    assert ping(host, pair.plan.inner(1), count=2).received == 2


def test_an_interface_set_down_is_reported_and_works_again_when_up(make_pair: MakePair) -> None:
    pair = make_pair(inner_versions=(4, 6))
    host = pair.a.namespace
    pair.start()
    during = network(host)
    host.ip("link", "set", "esp0", "down")
    until(lambda: warned(pair.a, "esp0 is down"), "the warning")
    # The rules that prevent leaks are repaired even while the interface is down.
    host.ip("rule", "del", "pref", "4499")
    until(lambda: "lookup 4500" in host.ip("rule"), "the rule is back")
    assert ping(host, "10.2.0.1", count=1).received == 0
    host.ip("link", "set", "esp0", "up")
    until(lambda: network(host) == during, "the network is as before")
    assert ping(host, "10.2.0.1", count=2).received == 2
    assert ping(host, "fd00:2::1", count=2).received == 2
    until(lambda: not warned(pair.a, "esp0 is down"), "the warning disappears")


def test_the_path_mtu_to_the_peer_is_followed(pair: GatewayPair) -> None:
    host = pair.a.namespace
    before = pair.a.ask("status")["mtu"]
    host.ip("route", "add", "192.0.2.2/32", "dev", "wan", "mtu", "1400")
    until(lambda: pair.a.ask("status")["mtu"] == before - 100, "the smaller MTU")
    assert f"mtu {before - 100}" in host.ip("link", "show", "esp0")
    assert not warned(pair.a, "another program removed")


def test_addresses_of_others_on_the_tun_stay_and_are_not_reported(pair: GatewayPair) -> None:
    host = pair.a.namespace
    host.ip("address", "add", "10.55.0.1/32", "dev", "esp0")
    host.ip("rule", "del", "pref", "4499")
    until(lambda: "lookup 4500" in host.ip("rule"), "the rule is back")
    assert "10.55.0.1" in host.ip("address", "show", "esp0")
    assert "10.55.0.1" not in pair.a.log.read_text()
