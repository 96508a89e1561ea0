"""A peer that may be anywhere is learned, followed, remembered, and not moved by replays."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import GatewayPair
from esp_gw.model import DEFAULT_SUITE, Encapsulation
from tests.support.builders import make_sa
from tests.support.labtools import (
    MakePair,
    StartCapture,
    drops,
    edit,
    forge,
    frames,
    mac,
    ping,
    sas,
    send_frames,
    tunnel,
    udp_frame,
    until,
    write_key,
)

SHAPES = [(way, version) for way in Encapsulation for version in (4, 6)]
MOVED = {4: ("192.0.2.11", 24), 6: ("2001:db8::11", 64)}
ATTACKER = {4: "192.0.2.77", 6: "2001:db8::77"}
INTO_B = "pi-a/in"

shapes = pytest.mark.parametrize(("way", "version"), SHAPES)


def any_pair(make_pair: MakePair, way: Encapsulation, version: int) -> GatewayPair:
    """A pair whose end b has `remote: any`."""
    pair = make_pair(encapsulation=way, outer_version=version)
    edit(pair.b, lambda config: tunnel(config).update(remote="any"))
    return pair


def where(gateway: LabGateway) -> str:
    """Return the address of a gateway's peer."""
    (entry,) = gateway.call("ListTunnels")["tunnels"]
    return str(entry["remote"])


def remembers(gateway: LabGateway, address: str) -> bool:
    path = gateway.folder / "peers.json"
    return path.exists() and f'"{address}"' in path.read_text()


def answers(pair: GatewayPair, side: int, count: int = 1) -> int:
    """Return the answers to pings of one side: 0 for a, 1 for b."""
    sender = (pair.a, pair.b)[side].namespace
    return ping(sender, pair.plan.inner(1 - side), count=count)


def move_a(pair: GatewayPair) -> str:
    """Give a another outer address, which b is not told of; return it."""
    address, length = MOVED[pair.plan.outer_version]
    host = pair.a.namespace
    host.ip("address", "del", f"{pair.plan.outer[0]}/{length}", "dev", "wan")
    add_address(host, f"{address}/{length}")
    edit(pair.a, lambda config: tunnel(config).update(local=address))
    pair.a.cli("reload")
    return address


def to_b(path: Path, pair: GatewayPair) -> list[Packet]:
    """Return the ESP packets to b of a capture, in order."""
    found = []
    for frame in frames(path):
        packet = Ether(frame)
        outer = packet.getlayer(IP) or packet.getlayer(IPv6)
        if outer is None or outer.dst != str(pair.plan.outer[1]):
            continue
        is_esp = pair.plan.encapsulation is Encapsulation.NONE and 50 in (
            getattr(outer, "proto", None),
            getattr(outer, "nh", None),
        )
        if is_esp or (UDP in packet and len(bytes(packet[UDP].payload)) > 16):
            found.append(packet)
    return found


def from_elsewhere(packet: Packet, pair: GatewayPair) -> bytes:
    """Return a captured packet as an attacker sends it: all is the same but its source."""
    outer = packet.getlayer(IP) or packet.getlayer(IPv6)
    copy: Any = type(outer)(src=ATTACKER[pair.plan.outer_version], dst=outer.dst)
    if UDP in packet:
        copy /= UDP(sport=5555, dport=4500) / Raw(bytes(packet[UDP].payload))
    else:
        copy[0].setfieldval("proto" if IP in packet else "nh", 50)
        copy /= Raw(bytes(outer.payload))
    return bytes(Ether(src=mac(pair.a.namespace), dst=mac(pair.b.namespace)) / copy)


def forgery(pair: GatewayPair, spi: int, seq: int) -> bytes:
    """Return a packet with an SPI of b's that nobody has sealed, as it comes from an attacker."""
    version = pair.plan.outer_version
    ends = {"src": ATTACKER[version], "dst": str(pair.plan.outer[1])}
    esp = spi.to_bytes(4) + seq.to_bytes(4) + bytes(range(88))
    if pair.plan.encapsulation is Encapsulation.UDP:
        inside: Any = UDP(sport=5555, dport=4500) / Raw(esp)
        outer: Any = IP(**ends) if version == 4 else IPv6(**ends)
    else:
        inside = Raw(esp)
        outer = IP(**ends, proto=50) if version == 4 else IPv6(**ends, nh=50)
    return bytes(Ether(src=mac(pair.a.namespace), dst=mac(pair.b.namespace)) / outer / inside)


@shapes
def test_a_peer_is_learned_followed_and_remembered(
    make_pair: MakePair, way: Encapsulation, version: int
) -> None:
    pair = any_pair(make_pair, way, version)
    pair.start()
    at_first = str(pair.plan.outer[0])
    assert where(pair.b) == "any"
    assert sas(pair.b)[INTO_B]["remote"] == "any"
    assert answers(pair, 1) == 0
    assert drops(pair.b)["no-peer"] >= 1
    spi = sas(pair.b)[INTO_B]["spi"]
    send_frames(pair.a.namespace, [forgery(pair, spi, seq) for seq in (1, 2, 3)])
    until(lambda: drops(pair.b)["auth-failed"] == 3, "forgeries are refused")
    assert where(pair.b) == "any"
    # An authentic packet teaches, and the answer to it has a way already.
    assert answers(pair, 0) == 1
    assert where(pair.b) == at_first
    assert answers(pair, 1) == 1
    until(lambda: remembers(pair.b, at_first), "the address is kept", 15)
    # A reload keeps what is learned.
    edit(pair.b, lambda config: tunnel(config).update(replay_window=2048))
    assert pair.b.call("Reload")["changes"]
    assert (where(pair.b), answers(pair, 1)) == (at_first, 1)
    # The peer goes elsewhere, and is followed with its next packet.
    moved = move_a(pair)
    assert answers(pair, 0) == 1
    assert where(pair.b) == moved
    until(lambda: remembers(pair.b, moved), "the new address is kept", 20)
    # After a stop and after a crash b is the first to send.
    for end in (pair.b.stop, pair.b.kill):
        end()
        pair.b.start()
        assert where(pair.b) == moved
        assert answers(pair, 1) == 1


@shapes
def test_a_replay_after_a_crash_does_not_move_the_peer_and_a_newer_packet_does(
    make_pair: MakePair, capture: StartCapture, way: Encapsulation, version: int
) -> None:
    pair = any_pair(make_pair, way, version)
    pair.start()
    at_first = str(pair.plan.outer[0])
    ledger = pair.b.folder / "ledger.db"
    before = ledger.stat().st_mtime_ns
    assert answers(pair, 0) == 1
    until(lambda: remembers(pair.b, at_first), "the address is kept")
    until(lambda: ledger.stat().st_mtime_ns != before, "a floor is written", 15)
    wire = capture(pair.b.namespace)
    assert answers(pair, 0, count=5) == 5
    pair.b.kill()
    stolen = to_b(wire.stop(), pair)[-5:]
    assert len(stolen) == 5
    pair.b.start()
    into = sas(pair.b)[INTO_B]
    send_frames(pair.a.namespace, [from_elsewhere(packet, pair) for packet in stolen])
    # They are accepted: the floor on disk was older.
    until(lambda: sas(pair.b)[INTO_B]["seq"] > into["seq"], "replays are accepted")
    until(lambda: sas(pair.b)[INTO_B]["packets"] >= 5, "all of them")
    assert where(pair.b) == at_first
    assert answers(pair, 1) == 1
    # The peer itself has gone elsewhere: numbers up to the ceiling don't say so, later ones do.
    moved = move_a(pair)
    assert answers(pair, 0) == 0
    assert where(pair.b) == at_first
    ping(pair.a.namespace, pair.plan.inner(1), count=300, interval=0.003)
    assert where(pair.b) == moved
    assert answers(pair, 0) == 1


@shapes
def test_a_replay_after_a_crash_teaches_no_peer(
    make_pair: MakePair, capture: StartCapture, way: Encapsulation, version: int
) -> None:
    pair = any_pair(make_pair, way, version)
    pair.start()
    wire = capture(pair.b.namespace)
    assert answers(pair, 0, count=3) == 3
    pair.b.kill()
    stolen = to_b(wire.stop(), pair)
    (pair.b.folder / "peers.json").unlink(missing_ok=True)
    pair.b.start()
    send_frames(pair.a.namespace, [from_elsewhere(packet, pair) for packet in stolen])
    received = ("packets", "drops")
    until(
        lambda: sas(pair.b)[INTO_B]["packets"] or sas(pair.b)[INTO_B]["drops"],
        f"they are counted in {received}",
    )
    assert where(pair.b) == "any"
    assert answers(pair, 0, count=3) == 0
    said = "is up: its peer is heard, and nothing is sent to it yet"
    until(lambda: said in str(pair.b.call("GetStatus")["warnings"]), "status says why")
    ping(pair.a.namespace, pair.plan.inner(1), count=300, interval=0.003)
    assert where(pair.b) == str(pair.plan.outer[0])
    until(lambda: said not in str(pair.b.call("GetStatus")["warnings"]), "and no longer")


def test_a_peer_with_an_address_is_followed_at_once_after_a_crash(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    assert answers(pair, 0, count=5) == 5
    pair.b.kill()
    moved = move_a(pair)
    pair.b.start()
    assert answers(pair, 0) == 1
    assert where(pair.b) == moved


def test_sas_of_the_command_line_learn_their_peer_and_know_it_again(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    common = {
        "mode": "tunnel",
        "local": "192.0.2.2",
        "remote": "any",
        "local_ts": "10.2.0.0/24",
        "remote_ts": "10.9.0.0/24",
    }
    key = make_sa(spi=0x9001, suite=DEFAULT_SUITE)
    ways = {"x-in": ("inbound", 0x9001, None), "x-out": ("outbound", 0x9002, "x-in")}

    def add() -> None:
        for name, (direction, spi, other) in ways.items():
            keymat = make_sa(spi=spi, suite=DEFAULT_SUITE).keymat.to_bytes().hex()
            fields = {"direction": direction, "spi": spi, "key": keymat}
            if other is not None:
                fields["pair"] = other
            pair.b.call("AddSa", name=name, **fields, **common)

    add()
    assert {sas(pair.b)[name]["remote"] for name in ways} == {"any"}
    inner = IP(src="10.9.0.1", dst="10.2.0.1") / UDP(dport=9)
    frame = udp_frame(
        *(pair.a.namespace, pair.b.namespace, forge(key, 1, inner)), src=ATTACKER[4], sport=5555
    )
    send_frames(pair.a.namespace, [frame])
    until(lambda: sas(pair.b)["x-out"]["remote"] == ATTACKER[4], "the pair follows")
    assert sas(pair.b)["x-out"]["remote_port"] == 5555
    pair.b.call("FlushSas")
    add()
    assert {sas(pair.b)[name]["remote"] for name in ways} == {ATTACKER[4]}
    refused = pair.b.cli(
        *("sa", "add", "y", "--direction", "inbound", "--spi", "0x9009", "--local", "auto"),
        *("--remote", "any", "--local-ts", "10.2.0.0/24", "--remote-ts", "10.9.0.0/24"),
        *("--key-file", str(write_key(pair.b.folder / "y.key"))),
        check=False,
    )
    assert refused.returncode != 0
    assert "any needs a written local address" in refused.stderr


@pytest.mark.either_engine
def test_two_peers_that_may_be_anywhere_are_told_apart_by_their_spis(make_pair: MakePair) -> None:
    pair = any_pair(make_pair, Encapsulation.UDP, 4)

    def add_another(config: dict[str, Any]) -> None:
        other = deepcopy(tunnel(config))
        other |= {"remote_ts": "10.3.0.0/24"}
        spis = {"outbound": tunnel(config)["outbound"]["spi"], "inbound": 0x7001}
        for half, spi in spis.items():
            path = write_key(pair.b.folder / f"other-{half}.key")
            other[half] = {"spi": spi, "key": {"file": str(path)}}
        config["tunnels"]["other"] = other

    edit(pair.b, add_another)
    pair.start()
    assert answers(pair, 0) == 1
    there = {entry["name"]: entry["remote"] for entry in pair.b.call("ListTunnels")["tunnels"]}
    assert there == {"pi-a": "192.0.2.1", "other": "any"}
    assert pair.b.cli("tunnel", "list").stdout.count("any") == 1
