"""The last request that succeeded stands, and a change loses only what it must."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from esp_gw.demo.netns import Namespace, end
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import (
    MakePair,
    drops,
    edit,
    lost,
    mac,
    ping,
    running,
    sas,
    start_pings,
    tunnel,
    until,
    write_key,
)

SEND_FOR_EVER = """
import os, socket, struct, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((sys.argv[1], 0))
frames = [bytes.fromhex(frame) for frame in sys.argv[2:]]
print("ready", flush=True)
while True:
    for frame in frames:
        s.send(frame); time.sleep(0.003)
"""
"""Sends frames in turn, some 300 a second."""

SEND_DATAGRAMS = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    s.sendto(b"one way", (sys.argv[1], 9)); time.sleep(0.001)
"""
OTHER_PREFIX = "10.77.0.0/16"


def too_big(pair: GatewayPair, mtu: int) -> bytes:
    """Return a router's report on a packet of gateway A, which any host can forge."""
    a, b = pair.a.namespace, pair.b.namespace
    ether = Ether(src=mac(b), dst=mac(a))
    quoted = UDP(sport=4500, dport=4500, len=1400) / Raw(struct.pack("!II", 0x1000, 1))
    report: Packet
    if pair.plan.outer_version == 4:
        report = IP(src="192.0.2.9", dst="192.0.2.1") / ICMP(type=3, code=4, nexthopmtu=mtu)
        report /= IP(src="192.0.2.1", dst="192.0.2.2", flags="DF", len=1420) / quoted
    else:
        report = IPv6(src="2001:db8::9", dst="2001:db8::1") / ICMPv6PacketTooBig(mtu=mtu)
        report /= IPv6(src="2001:db8::1", dst="2001:db8::2", plen=1400, nh=17) / quoted
    return bytes(ether / report)


def policies(pair: GatewayPair) -> set[str]:
    return {policy["name"] for policy in pair.a.ask("policy", "list")["policies"]}


@pytest.mark.parametrize("version", [4, 6])
def test_a_reload_stands_while_forged_path_mtus_arrive(make_pair: MakePair, version: int) -> None:
    pair = make_pair(outer_version=version)
    pair.start()
    assert ping(pair.a.namespace, pair.plan.inner(1), count=1) == 1
    discard = [{"name": "other", "action": "discard", "remote_ts": [OTHER_PREFIX]}]
    sizes = range(1400, 1300, -7)
    frames = [too_big(pair, mtu).hex() for mtu in sizes]
    with running(pair.b.namespace, SEND_FOR_EVER, "wan", *frames):
        # A report is noticed by the next packet that is too big.
        load = start_pings(pair.a.namespace, pair.plan.inner(1), 5000, size=1350)
        until(lambda: pair.a.ask("status")["mtu"] < 1400 - 60, "a forged path MTU is followed")
        for number in range(12):
            wanted = discard if number % 2 == 0 else []
            edit(pair.a, lambda config, new=wanted: config.update(policies=new))
            pair.a.cli("reload")
            assert ("other" in policies(pair)) == bool(wanted)
            # An event that began before the reload would undo it some moments later.
            ping(pair.a.namespace, pair.plan.inner(1), count=40)
            assert ("other" in policies(pair)) == bool(wanted)
            routes = pair.a.namespace.ip("route", "show", "table", "4500")
            assert (OTHER_PREFIX in routes) == bool(wanted)
        end(load)
    assert "Traceback" not in pair.a.log.read_text()
    # IPv6 goes and comes back with the device's MTU, as the kernel's defaults have it.
    assert "fe80" not in pair.a.namespace.ip("address", "show", "dev", "esp0")
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3


CHANGES: list[dict[str, Any]] = [
    {"replay_window": 2048, "keepalive": 7},
    {"replay_window": 1024, "keepalive": 0},
    {"replay_window": 64, "remote_port": 4500},
    {"local_ts": ["10.1.0.0/24", "10.1.7.0/24"]},
]


@pytest.mark.parametrize("encapsulation", ["udp", "none"])
def test_a_change_with_the_same_keys_loses_no_packet(
    make_pair: MakePair, encapsulation: str
) -> None:
    pair = make_pair(encapsulation=encapsulation)
    pair.start()
    a, b = pair.a.namespace, pair.b.namespace
    before = pair.a.config.read_text()
    loads = [
        start_pings(source, target, 60_000, size=600, interval=0.002)
        for source, target in ((a, pair.plan.inner(1)), (b, pair.plan.inner(0)))
    ]
    only_in_udp = () if encapsulation == "udp" else ("remote_port", "keepalive")
    for fields in CHANGES * 2:
        change = {key: value for key, value in fields.items() if key not in only_in_udp}
        pair.a.config.write_text(before)
        edit(pair.a, lambda config, new=change: tunnel(config).update(new))
        assert pair.a.ask("reload")["changes"]
    assert [lost(load) for load in loads] == [0, 0]
    assert (drops(pair.a), drops(pair.b)) == ({}, {})
    (entry,) = pair.a.ask("tunnel", "list")["tunnels"]
    assert entry["packets_in"] == entry["packets_out"] > 0


def test_a_new_key_under_a_new_spi_leaves_the_old_one_for_a_grace_time(
    pair: GatewayPair,
) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    assert ping(a, pair.plan.inner(1), count=3) == 3
    old = sas(pair.a)["pi-b/in"]
    _rekey(pair)
    said = pair.a.cli("reload").stdout
    assert f"SPI {old['spi']:#x} is accepted for 60 s more" in said
    retired = sas(pair.a)[f"pi-b/in~{old['spi']:#x}"]
    assert 0 < retired["grace_s"] <= 60
    before = _packets_in(pair)
    b.run(sys.executable, "-c", SEND_DATAGRAMS, pair.plan.inner(0), "300")
    until(lambda: _packets_in(pair) >= before + 300, "packets under the old key are accepted")
    assert drops(pair.a) == {}
    pair.b.cli("reload")
    assert ping(a, pair.plan.inner(1), count=3) == 3
    assert ping(b, pair.plan.inner(0), count=3) == 3


def test_a_new_key_under_the_same_spi_says_what_is_lost(pair: GatewayPair) -> None:
    spi = sas(pair.a)["pi-b/in"]["spi"]
    _rekey(pair, spi_step=0)
    said = pair.a.cli("reload").stdout
    assert f"packets under its key to SPI {spi:#x} are lost" in said
    assert set(sas(pair.a)) == {"pi-b/out", "pi-b/in"}
    pair.b.cli("reload")
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3


def test_a_new_spi_or_address_with_the_same_key_leaves_the_old_one_for_a_grace_time(
    pair: GatewayPair,
) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    assert ping(a, pair.plan.inner(1), count=3) == 3
    old = sas(pair.a)["pi-b/in"]["spi"]
    edit(pair.a, lambda config: tunnel(config)["inbound"].update(spi=old + 1))
    assert f"SPI {old:#x} is accepted for 60 s more" in pair.a.cli("reload").stdout
    a.ip("address", "add", "192.0.2.7/24", "dev", "wan")
    edit(pair.a, lambda config: tunnel(config).update(local="192.0.2.7"))
    pair.a.cli("reload")
    before = _packets_in(pair)
    b.run(sys.executable, "-c", SEND_DATAGRAMS, pair.plan.inner(0), "300")
    until(lambda: _packets_in(pair) >= before + 300, "packets to the old address are accepted")
    assert drops(pair.a) == {}
    edit(pair.b, lambda config: tunnel(config)["outbound"].update(spi=old + 1))
    pair.b.cli("reload")
    assert ping(b, pair.plan.inner(0), count=3) == 3


def test_a_removed_tunnel_ends_the_grace_time_of_its_former_key(pair: GatewayPair) -> None:
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3
    _rekey(pair)
    pair.a.cli("reload")
    assert len(sas(pair.a)) == 3
    edit(pair.a, lambda config: config.update(tunnels={}))
    pair.a.cli("reload")
    assert sas(pair.a) == {}
    assert ping(pair.b.namespace, pair.plan.inner(0), count=3) == 0


def test_a_reload_while_the_device_is_down_is_refused_and_changes_nothing(
    pair: GatewayPair,
) -> None:
    before = set(sas(pair.a))
    pair.a.namespace.ip("link", "set", "esp0", "down")
    text = pair.a.config.read_text()
    _rekey(pair)
    done = pair.a.cli("reload", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "ip link set esp0 up" in line
    assert set(sas(pair.a)) == before
    pair.a.config.write_text(text)
    pair.a.namespace.ip("link", "set", "esp0", "up")
    until(lambda: ping(pair.a.namespace, pair.plan.inner(1), count=1), "the tunnel carries again")
    assert "another program removed" not in pair.a.log.read_text()


def test_a_removed_tunnel_has_no_grace_time(pair: GatewayPair) -> None:
    edit(pair.a, lambda config: config.update(tunnels={}))
    pair.a.cli("reload")
    assert sas(pair.a) == {}
    assert ping(pair.b.namespace, pair.plan.inner(0), count=3) == 0


def test_drops_of_a_replaced_key_stay_counted_in_the_tunnel(pair: GatewayPair) -> None:
    _rekey(pair, spi_step=0)
    pair.b.cli("reload")
    assert ping(pair.b.namespace, pair.plan.inner(0), count=4) == 0
    (entry,) = pair.a.ask("tunnel", "list")["tunnels"]
    assert entry["drops"] == {"auth-failed": 4}
    pair.a.cli("reload")
    assert ping(pair.b.namespace, pair.plan.inner(0), count=4) == 4
    (entry,) = pair.a.ask("tunnel", "list")["tunnels"]
    assert entry["drops"]["auth-failed"] == 4
    edit(pair.a, lambda config: config.update(tunnels={}))
    pair.a.cli("reload")
    assert drops(pair.a)["auth-failed"] == 4


def test_the_path_mtu_is_that_to_where_a_peer_is_now(pair: GatewayPair) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    wide = pair.a.ask("status")["mtu"]
    a.ip("route", "add", "192.0.2.3/32", "dev", "wan", "mtu", "1300")
    _move_b(b)
    edit(pair.b, lambda config: tunnel(config).update(local="192.0.2.3"))
    pair.b.cli("reload")
    assert ping(b, pair.plan.inner(0), count=1) == 1
    until(lambda: pair.a.ask("status")["mtu"] < 1300, "the path MTU of the new address is used")
    assert ping(a, pair.plan.inner(1), count=5, size=1400) == 5
    assert drops(pair.a) == {}
    edit(pair.b, lambda config: tunnel(config).update(local="192.0.2.2"))
    pair.b.cli("reload")
    assert ping(b, pair.plan.inner(0), count=1) == 1
    until(lambda: pair.a.ask("status")["mtu"] == wide, "the path MTU of the old address is back")


def _move_b(b: Namespace) -> None:
    b.ip("address", "add", "192.0.2.3/24", "dev", "wan")


def _packets_in(pair: GatewayPair) -> int:
    (entry,) = pair.a.ask("tunnel", "list")["tunnels"]
    return int(entry["packets_in"])


def _rekey(pair: GatewayPair, spi_step: int = 0x100) -> None:
    """Give both files new keys in both directions, and new SPIs."""
    for ours, theirs in (("outbound", "inbound"), ("inbound", "outbound")):
        key = str(write_key(pair.a.folder / f"new-{ours}.key"))
        for gateway, direction in ((pair.a, ours), (pair.b, theirs)):

            def change(config: dict[str, Any], direction: str = direction, key: str = key) -> None:
                part = tunnel(config)[direction]
                part["spi"] += spi_step
                part["key"]["file"] = key

            edit(gateway, change)
