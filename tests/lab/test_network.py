"""The daemon in a real network: sites behind it, and a host that keeps its own settings."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator

import pytest

from esp_gw.demo.netns import Namespace, add_address, end, namespaces
from esp_gw.demo.pair import GatewayPair
from esp_gw.model import Encapsulation, Mode
from tests.support.labtools import (
    MakePair,
    StartTap,
    carry_tcp,
    carry_tcp_both_ways,
    edit,
    forwarding,
    guard,
    network,
    ping,
    running,
    send_tcp,
    site_host,
    tunnel,
    until,
    write,
)

# Settings of a user, some of them in our tables and at our priorities.
OF_A_USER = [
    ("address", "add", "10.66.0.1/24", "dev", "wan"),
    ("route", "add", "10.77.0.0/24", "dev", "wan", "table", "4500", "proto", "static"),
    ("route", "add", "10.78.0.0/24", "via", "192.0.2.2", "table", "4501", "proto", "229"),
    ("-6", "route", "add", "fd00:77::/64", "dev", "wan", "table", "4500"),
    ("rule", "add", "from", "10.66.0.0/24", "table", "4500", "priority", "4499"),
    ("rule", "add", "from", "10.67.0.0/24", "table", "4500", "priority", "4300"),
    ("-6", "rule", "add", "to", "fd00:77::/64", "table", "4500", "priority", "4499"),
]


def test_settings_of_others_stay_and_those_of_the_daemon_can_be_removed(
    make_pair: MakePair,
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    host = pair.a.namespace
    empty = network(host)
    for command in OF_A_USER:
        host.ip(*command)
    before = network(host)
    pair.start()
    during = network(host)
    for name, lines in before.items():
        assert set(lines) <= set(during[name]), name
    assert during != before
    pair.a.kill()
    pair.a.start()
    # The kernel adds the routes of a new device's own addresses a moment later.
    until(lambda: network(host) == during, "the network is as it was")
    pair.a.cli("policy", "add", "x", "--action", "discard", "--remote-ts", "10.9.0.0/24")
    pair.a.cli("policy", "delete", "x")
    pair.a.cli("reload")
    assert network(host) == during
    assert ping(host, pair.plan.inner(1), count=2) == 2
    assert pair.a.stop() == 0
    guard(pair.a, "down")
    assert network(host) == before
    assert before != empty


def _refused(pair: GatewayPair) -> str:
    """Start a, which must end with a one-line error; return that line."""
    before = len(pair.a.log.read_text()) if pair.a.log.exists() else 0
    pair.a.launch()
    process = pair.a.process
    assert process is not None
    assert process.wait(15) == 1
    text = pair.a.log.read_text()[before:]
    (line,) = [line for line in text.splitlines() if "error" in line]
    assert "Traceback" not in text
    return line


@pytest.mark.parametrize(
    "device",
    [
        ("link", "add", "esp0", "type", "veth"),
        ("tuntap", "add", "esp0", "mode", "tun"),
        ("tuntap", "add", "esp0", "mode", "tun", "multi_queue", "vnet_hdr"),
    ],
)
def test_an_existing_interface_is_left_alone(make_pair: MakePair, device: tuple[str, ...]) -> None:
    pair = make_pair()
    pair.a.namespace.ip(*device)
    before = network(pair.a.namespace)
    assert "esp0: can't make the TUN device: a device of this name exists; " in _refused(pair)
    guard(pair.a, "down")
    assert network(pair.a.namespace) == before
    assert not pair.a.socket.exists()


BIND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("192.0.2.1", 4500))
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_port_in_use_is_reported_and_only_the_guard_is_left_behind(make_pair: MakePair) -> None:
    pair = make_pair()
    host = pair.a.namespace
    before = network(host)
    with running(host, BIND):
        assert "192.0.2.1 port 4500/udp: can't open the outer socket" in _refused(pair)
    guard(pair.a, "down")
    assert network(host) == before
    pair.start()
    pair.a.kill()
    with running(host, BIND):
        assert "another program listens there" in _refused(pair)
    # A failed start must not remove the guard of the killed run's prefixes.
    assert "unreachable 10.2.0.0/24" in host.ip("route", "show", "table", "4500")
    pair.a.start()
    assert ping(host, pair.plan.inner(1), count=2) == 2
    pair.a.stop()
    guard(pair.a, "down")
    assert network(host) == before


def test_transport_mode_leaves_bypassed_traffic_in_the_clear(
    make_pair: MakePair, tap: StartTap
) -> None:
    pair = make_pair(mode=Mode.TRANSPORT)
    here, there = {"action": "bypass", "protocol": "tcp"}, {"action": "bypass", "protocol": "tcp"}
    here |= {"name": "ssh", "remote_ts": "192.0.2.2", "remote_port": 22}
    there |= {"name": "ssh", "remote_ts": "192.0.2.1", "local_port": 22}
    edit(pair.a, lambda config: config.update(policies=[here]))
    edit(pair.b, lambda config: config.update(policies=[there]))
    a, b = pair.a.namespace, pair.b.namespace
    pair.start()
    wire = tap(a)
    server = b.start("iperf3", "-s", "-p", "22", "--forceflush", stdout=subprocess.PIPE)
    assert any("listening" in line for line in server.stdout or ())
    send_tcp(a, "192.0.2.2", "-p", "22")
    end(server)
    in_the_clear = wire.finish()
    assert in_the_clear.esp == 0
    assert in_the_clear.cleartext > 100
    wire = tap(a)
    carry_tcp(a, b, "192.0.2.2")
    assert ping(a, "192.0.2.2", count=2) == 2
    report = wire.finish()
    assert (report.cleartext, report.esp > 100) == (0, True), report.examples


@pytest.fixture
def site_hosts(stack: contextlib.ExitStack) -> tuple[Namespace, Namespace]:
    first, second = stack.enter_context(namespaces("host-a", "host-b"))
    return first, second


def _sites(pair: GatewayPair, hosts: tuple[Namespace, Namespace]) -> None:
    """Put a host behind each gateway."""
    forwarding(pair.a.namespace, pair.b.namespace)
    for number, (host, gateway) in enumerate(zip(hosts, (pair.a, pair.b), strict=True), 1):
        site_host(host, gateway.namespace, number)


@pytest.mark.parametrize(
    ("encapsulation", "outer_version"), [(Encapsulation.UDP, 4), (Encapsulation.NONE, 6)]
)
def test_hosts_behind_both_gateways_reach_each_other_and_learn_the_mtu(
    make_pair: MakePair,
    site_hosts: tuple[Namespace, Namespace],
    tap: StartTap,
    encapsulation: Encapsulation,
    outer_version: int,
) -> None:
    pair = make_pair(
        encapsulation=encapsulation, outer_version=outer_version, inner_versions=(4, 6)
    )
    _sites(pair, site_hosts)
    pair.start()
    here, there = site_hosts
    mtu = pair.a.ask("status")["mtu"]
    wire = tap(pair.a.namespace)
    for target, header in (("10.2.0.10", 28), ("fd00:2::10", 48)):
        assert ping(here, target, count=3) == 3
        # The first packet is too big for the tunnel: the gateway answers with its MTU.
        assert f"mtu = {mtu}" in _unfragmented(here, target, 1500 - header).replace(
            "mtu=", "mtu = "
        )
        assert "1 received" in _unfragmented(here, target, mtu - header)
        assert "0 received" in _unfragmented(here, target, mtu - header + 1)
        carry_tcp_both_ways(here, there, target)
    # From the gateway itself, with its address in the local network as the source.
    assert ping(pair.a.namespace, "10.2.0.10", count=3) == 3
    report = wire.finish()
    assert report.cleartext == 0, report.examples


def _unfragmented(host: Namespace, target: str, size: int) -> str:
    arguments = ("-c", "1", "-W", "1", "-M", "do", "-s", str(size), target)
    result = host.run("ping", *arguments, check=False)
    return result.stdout + result.stderr


def test_hosts_learn_of_a_smaller_path_mtu_between_the_gateways(
    make_pair: MakePair, site_hosts: tuple[Namespace, Namespace]
) -> None:
    pair = make_pair()
    _sites(pair, site_hosts)
    pair.start()
    here, there = site_hosts
    assert "1 received" in _unfragmented(here, "10.2.0.10", 1300)
    pair.a.namespace.ip("route", "add", "192.0.2.2/32", "dev", "wan", "mtu", "1300")
    until(lambda: "mtu = 1238" in _unfragmented(here, "10.2.0.10", 1300), "the MTU is reported")
    carry_tcp(here, there, "10.2.0.10")


def _full_tunnel(pair: GatewayPair) -> None:
    edit(pair.a, lambda config: tunnel(config).update(remote_ts=["0.0.0.0/0", "::/0"]))
    edit(pair.b, lambda config: tunnel(config).update(local_ts=["0.0.0.0/0", "::/0"]))


@pytest.fixture
def servers(stack: contextlib.ExitStack) -> Iterator[Namespace]:
    (server,) = stack.enter_context(namespaces("server"))
    return server


SERVER = {4: "203.0.113.10", 6: "2001:db8:5::10"}


def test_all_traffic_of_a_site_goes_through_the_other_one(
    make_pair: MakePair,
    site_hosts: tuple[Namespace, Namespace],
    servers: Namespace,
    tap: StartTap,
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    _full_tunnel(pair)
    a, b = pair.a.namespace, pair.b.namespace
    host, _ = site_hosts
    _sites(pair, site_hosts)
    b.ip("link", "add", "net", "type", "veth", "peer", "name", "eth0", "netns", servers.name)
    for namespace, device, last in ((b, "net", 1), (servers, "eth0", 10)):
        namespace.ip("link", "set", device, "up")
        add_address(namespace, f"203.0.113.{last}/24", device)
        add_address(namespace, f"2001:db8:5::{last}/64", device)
    servers.ip("route", "add", "default", "via", "203.0.113.1")
    servers.ip("-6", "route", "add", "default", "via", "2001:db8:5::1")
    # The default route that traffic would take without the tunnel. For IPv6, as with many
    # providers, the wire has no global address: the gateway's packets have one of its network.
    a.ip("route", "add", "default", "via", "192.0.2.2")
    a.ip("address", "del", "2001:db8::1/64", "dev", "wan")
    a.ip("-6", "route", "add", "default", "via", "fe80::b", "dev", "wan")
    b.ip("address", "add", "fe80::b/64", "dev", "wan", "nodad")
    before = network(a)
    pair.start()
    wire = tap(a)
    lan = {4: ("10.1.0.10", "10.1.0.1"), 6: ("fd00:1::10", "fd00:1::1")}
    for version, server in SERVER.items():
        assert ping(host, server, count=3) == 3, server
        assert ping(servers, lan[version][0], count=3) == 3, server
        carry_tcp(host, servers, server)
        # The gateway and its own network, in both directions, and the gateway's own traffic.
        assert ping(a, lan[version][0], count=2) == 2
        assert ping(host, lan[version][1], count=2) == 2
        assert ping(a, server, count=2) == 2
    inside = pair.a.ask("stats")["packets_out"]
    assert inside > 100
    report = wire.finish()
    assert report.cleartext == 0, report.examples
    pair.a.kill()
    assert ping(host, SERVER[4], count=2) == 0
    assert ping(host, SERVER[6], count=2) == 0
    pair.a.start()
    assert ping(host, SERVER[4], count=2) == 2
    pair.a.stop()
    guard(pair.a, "down")
    assert network(a) == before


@pytest.mark.parametrize("case", ["sites", "hosts", "transport"])
def test_strict_reverse_path_filtering_passes_traffic_or_causes_a_warning(
    make_pair: MakePair, case: str
) -> None:
    pair = make_pair(mode=Mode.TRANSPORT if case == "transport" else Mode.TUNNEL)
    target = pair.plan.inner(1)
    if case == "hosts":
        target = "192.0.2.2"
        for gateway, ends in ((pair.a, "12"), (pair.b, "21")):
            local, remote = (f"192.0.2.{end}" for end in ends)
            fields = {"local_ts": local, "remote_ts": remote}
            edit(gateway, lambda config, fields=fields: tunnel(config).update(fields))
            edit(gateway, lambda config: config["gateway"].pop("address"))
    for gateway in (pair.a, pair.b):
        write(gateway.namespace, {"ipv4/conf/all/rp_filter": 1, "ipv4/conf/wan/rp_filter": 1})
    forwarding(pair.a.namespace)
    pair.start()
    works = ping(pair.a.namespace, target, count=3) == 3
    warnings = pair.a.ask("status")["warnings"]
    assert works is (case == "sites")
    assert works is (warnings == [])
    if warnings:
        (text,) = warnings
        command = re.search(r"'sysctl -w net\.([\w.]+)=(\d)'", text)
        assert command is not None
        for gateway in (pair.a, pair.b):
            write(gateway.namespace, {command[1].replace(".", "/"): command[2]})
        # A strict filter also refuses the peer's ARP requests; the next one comes within a second.
        until(lambda: ping(pair.a.namespace, target, count=3) == 3, "the tunnel carries")
        assert pair.a.ask("status")["warnings"] == []
