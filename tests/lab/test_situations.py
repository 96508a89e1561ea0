"""Situations that operators ran into, at a gateway beside other software and in other networks.

docs/explanation/situations.md has their sources.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, namespaces
from esp_gw.errors import LabError
from tests.support.labtools import (
    MakePair,
    StartCapture,
    drops,
    edit,
    forwarding,
    frames,
    mac,
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
        mend_forwarding(pair.a, box)
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


def mend_forwarding(gateway: LabGateway, box: Namespace) -> None:
    """Drop what is forwarded, as docker does, and do what `doctor` says of it."""
    host = gateway.namespace
    host.run("nft", "add table inet hosts")
    host.run(
        "nft", "add chain inet hosts passing { type filter hook forward priority 0; policy drop; }"
    )
    assert reaches(box, FAR[0]) == {FAR[0]: 0}
    (finding,) = forwarding_findings(gateway)
    for command in re.findall("'(nft .*?)'", finding["todo"]):
        host.run(*command.split())
    assert forwarding_findings(gateway) == []
    assert reaches(box, *FAR) == ALL
    host.run("nft", "delete table inet hosts")


def forwarding_findings(gateway: LabGateway) -> list[dict[str, str]]:
    done = gateway.cli("doctor", "--config", str(gateway.config), "--json", check=False)
    findings = json.loads(done.stdout)["findings"]
    return [each for each in findings if "chain passing of table inet hosts" in each["found"]]


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


def esp_gw(host: Namespace, *arguments: str, ssh: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command on a host, as somebody who is logged in by ssh or not."""
    program = (sys.executable, "-m", "esp_gw.cli.main")
    return host.run("env", f"SSH_CONNECTION={ssh}", *program, *arguments, check=False)


PI = "192.168.1.10"
ROUTER = "192.168.1.1"
SSH = f"198.51.100.7 51234 {PI} 22"


@pytest.mark.either_engine
def test_a_gateway_behind_the_router_of_its_own_network_leaves_the_router_its_address(
    make_pair: MakePair, tmp_path: Path
) -> None:
    """`init` on a Pi at home: no address is made, and one in the configuration is not taken."""
    pair = make_pair()
    pi, far = pair.a.namespace, pair.b.namespace
    with namespaces("router", "pc") as (router, pc):
        home(router, pi, pc)
        # The far side is behind the router, which translates addresses.
        router.ip("link", "add", "out", "type", "veth", "peer", "name", "in", "netns", far.name)
        for host, device, address in ((router, "out", "203.0.113.1"), (far, "in", "203.0.113.9")):
            host.ip("link", "set", device, "up")
            add_address(host, f"{address}/24", device)
        router.run("nft", "add table ip n")
        router.run("nft", "add chain ip n p { type nat hook postrouting priority srcnat; }")
        router.run("nft", "add rule ip n p oifname out masquerade")
        ends = ("--local", PI, "--remote", "203.0.113.9", "--local-net", "192.168.1.0/24")
        nets = ("--remote-net", "10.2.0.0/24", "--out", str(tmp_path / "made"))
        done = esp_gw(pi, "init", *ends, *nets, ssh=SSH)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        for gateway in (pair.a, pair.b):
            made = tmp_path / "made" / gateway.config.parent.name
            shutil.copytree(made / "keys", gateway.config.parent / "keys", dirs_exist_ok=True)
            settings = yaml.safe_load(gateway.config.read_text())["gateway"]
            config = yaml.safe_load((made / "gateway.yaml").read_text())
            assert config.get("gateway", {}).get("address") == (
                None if gateway is pair.a else ["10.2.0.1"]
            )
            # As an older `init` wrote it, or a person.
            given = {"address": ROUTER} if gateway is pair.a else {"address": "10.2.0.1"}
            config["gateway"] = {**settings, **given}
            gateway.config.write_text(yaml.safe_dump(config))
        assert f"gateway.address {ROUTER} is the address" in check(pair.a)
        pair.start()
        (warning,) = pair.a.ask("status")["warnings"]
        assert f"gateway.address {ROUTER} is the address" in warning
        assert f" {ROUTER}/" not in pi.ip("address")
        assert ping(pi, ROUTER, count=2) == 2
        assert ping(pc, ROUTER, count=2) == 2
        assert mac(router, "br0") in pc.ip("neigh", "show", ROUTER)
        assert ping(pc, PI, count=1) == 1
        assert ping(pi, "10.2.0.1", count=3) == 3


@pytest.mark.either_engine
def test_what_would_cut_off_the_host_or_the_caller_is_refused_until_it_is_allowed(
    make_pair: MakePair, tmp_path: Path
) -> None:
    pair = make_pair()
    pi = pair.a.namespace
    with namespaces("router", "pc") as (router, pc):
        home(router, pi, pc)
        ends = ("--local", PI, "--remote", "203.0.113.9", "--local-net", "10.1.0.0/24")
        for net, what in (("192.168.1.0/28", "default gateway"), ("198.51.100.0/24", "logged in")):
            given = (*ends, "--remote-net", net, "--out", str(tmp_path / "made"))
            done = esp_gw(pi, "init", *given, ssh=SSH)
            assert done.returncode == 1
            assert what in done.stderr
            assert not (tmp_path / "made").exists()
        assert esp_gw(pi, "init", *given, "--force", ssh=SSH).returncode == 0
        assert (
            esp_gw(pi, "config", "check", str(tmp_path / "made" / "pi-a"), ssh=SSH).returncode == 0
        )
        pair.start()
        before = network(pi)
        edit(pair.a, lambda config: tunnel(config).update(local=PI, remote_ts="192.168.1.0/28"))
        done = pair.a.cli("reload", check=False)
        assert done.returncode == 1
        assert f"{ROUTER}, the default gateway of this host" in done.stderr
        assert f"{ROUTER}, the default gateway of this host" in check(pair.a)
        edit(pair.a, lambda config: tunnel(config).update(remote_ts="198.51.100.0/24"))
        for config in ((), ("--config", str(pair.a.config))):
            done = esp_gw(pi, "--socket", str(pair.a.socket), "reload", *config, ssh=SSH)
            assert done.returncode == 1
            assert "you are logged in from 198.51.100.7" in done.stderr
        assert network(pi) == before
        assert ping(pi, "10.2.0.1", count=2) == 2
        edit(pair.a, lambda config: tunnel(config).update(remote_ts="192.168.1.0/28"))
        pair.a.stop()
        pair.a.cli("guard", "down", "--config", str(pair.a.config))
        for plan in pair.a.folder.glob("guard.*"):
            plan.unlink()
        # Neither by the gateway nor by the guard, which holds before it.
        with pytest.raises(LabError, match="default gateway of this host"):
            pair.a.start()
        assert ping(pi, ROUTER, count=2) == 2
        edit(pair.a, lambda config: gateway_of(config).update(allow_cut_off=True))
        assert "warning: 192.168.1.1, the default gateway" in check(pair.a)
        pair.a.start()
        assert ping(pi, ROUTER, count=1) == 0


def check(gateway: LabGateway) -> str:
    """Return what `esp-gw config check` says of a gateway's configuration on its host."""
    done = esp_gw(gateway.namespace, "config", "check", str(gateway.config))
    return done.stdout + done.stderr


def home(router: Namespace, pi: Namespace, pc: Namespace) -> None:
    """Connect two hosts to a home network with its router."""
    router.ip("link", "add", "br0", "type", "bridge")
    router.ip("link", "set", "br0", "up")
    add_address(router, f"{ROUTER}/24", "br0")
    forwarding(router, pi)
    for name, host, address in (("p0", pi, PI), ("p1", pc, "192.168.1.50")):
        ends = ("peer", "name", "eth0", "netns", host.name)
        router.ip("link", "add", name, "type", "veth", *ends)
        router.ip("link", "set", name, "master", "br0", "up")
        host.ip("link", "set", "eth0", "up")
        add_address(host, f"{address}/24", "eth0")
        host.ip("route", "add", "default", "via", ROUTER)
