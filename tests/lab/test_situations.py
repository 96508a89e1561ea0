"""Situations that operators ran into, at a gateway beside other software and in other networks.

docs/explanation/situations.md has their sources.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from esp_gw.demo.netns import Namespace, add_address, namespaces
from tests.support.labtools import (
    MakePair,
    StartCapture,
    drops,
    edit,
    forwarding,
    frames,
    network,
    ping,
    sas,
    tunnel,
    until,
)

FAR = ("10.2.0.1", "fd00:2::1")
OWN = ("10.1.0.1", "fd00:1::1")


def dummy(host: Namespace, name: str, *addresses: str) -> None:
    """Add an interface with addresses that leads nowhere."""
    host.ip("link", "add", name, "type", "veth", "peer", "name", f"{name}-peer")
    for device in (name, f"{name}-peer"):
        host.ip("link", "set", device, "up")
    for address in addresses:
        add_address(host, address, name)


def reaches(host: Namespace, *targets: str) -> dict[str, int]:
    """Return the number of answers of three from each target."""
    return {target: ping(host, target, count=3) for target in targets}


ALL = dict.fromkeys(FAR, 3)


def gateway_of(config: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = config["gateway"]
    return fields


@pytest.mark.either_engine
def test_the_gateways_own_packets_have_a_source_inside_any_of_the_local_prefixes(
    make_pair: MakePair,
) -> None:
    pair = make_pair(inner_versions=(4, 6))
    both = ["10.1.0.0/24", "fd00:1::/64", "10.3.0.0/24", "fd00:3::/64"]
    edit(pair.a, lambda config: tunnel(config).update(local_ts=both))
    edit(pair.b, lambda config: tunnel(config).update(remote_ts=both))
    edit(pair.a, lambda config: gateway_of(config).pop("address"))
    host = pair.a.namespace
    dummy(host, "lan3", "10.3.0.1/24", "fd00:3::1/64")
    pair.start()
    assert reaches(host, *FAR) == ALL
    host.ip("link", "del", "lan3")
    addresses = ["10.3.0.9", "fd00:3::9"]
    edit(pair.a, lambda config: gateway_of(config).update(address=addresses))
    pair.a.ask("reload")
    assert reaches(host, *FAR) == ALL


@pytest.mark.either_engine
def test_containers_that_are_masqueraded_reach_the_other_side(make_pair: MakePair) -> None:
    """By docker's and libvirt's rules, with the gateway's address on its LAN and on its TUN."""
    pair = make_pair(inner_versions=(4, 6))
    host = pair.a.namespace
    forwarding(host)
    dummy(host, "lan", "10.1.0.1/24", "fd00:1::1/64")
    with namespaces("box") as (box,):
        bridge(host, box)
        before = network(host)
        pair.start()
        assert reaches(box, *FAR) == ALL
        assert reaches(host, *FAR) == ALL
        assert sorted(lan_and_tun(host)) == ["esp0", "lan"]
        # It goes from the LAN: the TUN has it alone. It comes back.
        for address in ("10.1.0.1/24", "fd00:1::1/64"):
            host.ip("address", "del", address, "dev", "lan")
        until(lambda: lan_and_tun(host) == ["esp0"], "the address is on the TUN alone")
        assert reaches(box, *FAR) == ALL
        for address in ("10.1.0.1/24", "fd00:1::1/64"):
            add_address(host, address, "lan")
        assert reaches(box, *FAR) == ALL
        # The last address of the TUN takes no route along.
        edit(pair.a, lambda config: tunnel(config).update(local_ts=["0.0.0.0/0", "::/0"]))
        edit(pair.a, lambda config: gateway_of(config).pop("address"))
        pair.a.ask("reload")
        assert lan_and_tun(host) == ["lan"]
        assert "10.2.0.0/24 dev esp0" in host.ip("route", "show", "table", "4500")
        assert pair.a.ask("status")["warnings"] == []
        pair.a.stop()
        pair.a.cli("guard", "down", "--config", str(pair.a.config))
        assert network(host) == before


def bridge(host: Namespace, box: Namespace) -> None:
    """Connect a container as docker does, and masquerade what leaves by another interface."""
    host.ip("link", "add", "docker0", "type", "veth", "peer", "name", "eth0", "netns", box.name)
    networks = (
        ("ip", "172.17.0.0/16", "172.17.0.1", "172.17.0.2"),
        ("ip6", "2001:db8:17::/64", "2001:db8:17::1", "2001:db8:17::2"),
    )
    for namespace, device in ((host, "docker0"), (box, "eth0")):
        namespace.ip("link", "set", device, "up")
    for family, prefix, ours, theirs in networks:
        length = prefix.rpartition("/")[2]
        add_address(host, f"{ours}/{length}", "docker0")
        add_address(box, f"{theirs}/{length}", "eth0")
        box.ip("-6" if family == "ip6" else "-4", "route", "add", "default", "via", ours)
        for command in (
            f"add table {family} docker",
            f"add chain {family} docker p {{ type nat hook postrouting priority srcnat; }}",
            f"add rule {family} docker p {family} saddr {prefix} oifname != docker0 masquerade",
        ):
            host.run("nft", command)


def lan_and_tun(host: Namespace) -> list[str]:
    """Return the interfaces that have the gateway's IPv4 address."""
    lines = host.ip("-o", "-4", "address").splitlines()
    return [line.split()[1] for line in lines if f" {OWN[0]}/" in line]


EVERYTHING = ["0.0.0.0/0", "::/0"]
OSPF = """
import socket, sys
source, group = sys.argv[1:]
family = socket.AF_INET6 if ":" in group else socket.AF_INET
s = socket.socket(family, socket.SOCK_RAW, 89)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"esp0")
s.bind((source, 0))
if family == socket.AF_INET:
    s.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
else:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
s.sendto(b"hello", (group, 0))
"""
LISTENER = """
import socket, struct
index = socket.if_nametoindex("esp0")
four = socket.socket(socket.AF_INET, socket.SOCK_RAW, 89)
member = socket.inet_aton("224.0.0.5") + bytes(4) + struct.pack("=i", index)
four.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 89)
member = socket.inet_pton(socket.AF_INET6, "ff02::5") + struct.pack("=i", index)
six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, member)
print("ready", flush=True)
for s in (four, six):
    s.settimeout(20)
    print(s.recv(100)[-5:].decode(), flush=True)
"""


def test_a_tunnel_of_everything_at_both_ends_loops_nothing_and_takes_multicast(
    make_pair: MakePair, capture: StartCapture
) -> None:
    """As routing protocols need it; the network of the uplink stays near."""
    pair = make_pair(inner_versions=(4, 6))
    a, b = pair.a.namespace, pair.b.namespace
    for gateway, peer in ((pair.a, "192.0.2.2"), (pair.b, "192.0.2.1")):
        edit(gateway, lambda config: tunnel(config).update(local_ts=EVERYTHING))
        edit(gateway, lambda config: tunnel(config).update(remote_ts=EVERYTHING))
        gateway.namespace.ip("route", "add", "default", "via", peer)
    forwarding(a, b)
    pair.start()
    assert reaches(a, *FAR) == ALL
    wire = capture(a)
    assert ping(a, "192.0.2.2", count=2) == 2
    icmp = [
        frame for frame in frames(wire.stop()) if frame[12:14] == b"\x08\x00" and frame[23] == 1
    ]
    assert len(icmp) == 4
    for number, nowhere in enumerate(("10.2.0.77", "8.8.8.8", "fd00:2::77", "2001:db8:9::1"), 1):
        before = sum(each["packets"] for each in sas(pair.b).values())
        assert ping(a, nowhere, count=1) == 0
        until(lambda number=number: drops(pair.b)["loop"] == number, f"{nowhere} is dropped")
        # Without it, as many as the hop limit of 64 allows.
        assert sum(each["packets"] for each in sas(pair.b).values()) - before < 5
    routed = b.start(sys.executable, "-c", LISTENER, stdout=subprocess.PIPE)
    assert routed.stdout is not None
    assert routed.stdout.readline() == "ready\n"
    for source, group in zip(OWN, ("224.0.0.5", "ff02::5"), strict=True):
        a.run(sys.executable, "-c", OSPF, source, group)
        assert routed.stdout.readline() == "hello\n"
    assert routed.wait(10) == 0
