"""A tunnel with several SAs: flows spread over all of them, each in order, to a single peer."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from esp_gw.config.keyfile import format_keymat, generate
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, end
from esp_gw.demo.pair import GatewayPair
from esp_gw.model import DEFAULT_SUITE, Encapsulation
from tests.support.labtools import (
    MakePair,
    carry_tcp_both_ways,
    configured_sa,
    drops,
    edit,
    forge,
    packets_by_lane,
    ping,
    sas,
    send_frames,
    tunnel,
    udp_frame,
    until,
)

SAS = 4
FLOWS = 24
PORT = 7000
FIRST = count(0, FLOWS)
"""The numbers of bulk flows that were not there before."""
BULK = 200
"""Datagrams of a flow that is bulk for a while."""
FAR = 5_000_000
INNER = ("10.1.0.1", "10.2.0.1")
FLOWS_PROGRAM = str(Path(__file__).parents[1] / "support" / "flows.py")


@contextmanager
def echo(gateway: LabGateway, address: str) -> Iterator[None]:
    """Answer datagrams to PORT while the block runs."""
    program = (sys.executable, FLOWS_PROGRAM, "echo", address, str(PORT))
    process = gateway.namespace.start(*program, stdout=subprocess.PIPE)
    try:
        assert next(iter(process.stdout or ()), "") == "ready\n"
        yield
    finally:
        end(process)


def send_flows(pair: GatewayPair, datagrams: int) -> None:
    """Send datagrams of each of FLOWS flows from a to b and back, each flow in order."""
    carry(pair, "send", datagrams)


def send_bulk(pair: GatewayPair) -> None:
    """Send BULK datagrams of each of FLOWS new flows, one after the other."""
    carry(pair, "each", BULK, next(FIRST))


def carry(pair: GatewayPair, how: str, datagrams: int, *first: int) -> None:
    with echo(pair.b, INNER[1]):
        arguments = (how, INNER[1], PORT, FLOWS, datagrams, *first)
        result = pair.a.namespace.run(sys.executable, FLOWS_PROGRAM, *map(str, arguments))
    found = json.loads(result.stdout)
    assert found["answered"] == FLOWS * datagrams
    # A flow may be reordered when it moves to a bulk lane: once, in each direction.
    assert found["bursts"] <= 2


def add_nat(host: Namespace, inside: str, outside: str, port: int) -> None:
    """Put a NAT in front of a host's ESP port; drop packets still sent to the inside address."""
    host.run(
        "nft",
        f"""
        add table ip nat
        add chain ip nat out {{ type nat hook postrouting priority srcnat; }}
        add rule ip nat out ip saddr {inside} udp sport 4500 snat to {outside}:{port}
        add chain ip nat in {{ type filter hook prerouting priority raw; }}
        add rule ip nat in ip daddr {inside} udp dport 4500 drop
        """,
    )


def reaches(pair: GatewayPair) -> bool:
    """Send flows from a to b and back; return True if they used all SAs."""
    before = packets_by_lane(pair.a, "in")
    send_bulk(pair)
    return len(packets_by_lane(pair.a, "in") - before) == SAS


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
def test_flows_are_spread_over_all_sas_and_stay_in_order(
    make_pair: MakePair, encapsulation: Encapsulation
) -> None:
    pair = make_pair(sas=SAS, encapsulation=encapsulation, settings={"workers": SAS})
    pair.start()
    send_bulk(pair)
    for gateway in (pair.a, pair.b):
        for direction in ("in", "out"):
            carried = packets_by_lane(gateway, direction)
            # The share of an SA is not checked: some have more flows than others.
            assert carried.keys() == {"", ".2", ".3", ".4"}
            assert carried.total() == FLOWS * BULK
            assert all(carried.values())
        assert drops(gateway) == {}
    assert packets_by_lane(pair.a, "out") == packets_by_lane(pair.b, "in")
    assert packets_by_lane(pair.b, "out") == packets_by_lane(pair.a, "in")


def test_tcp_flows_use_all_sas_both_ways(make_pair: MakePair) -> None:
    pair = make_pair(sas=SAS, settings={"workers": SAS})
    pair.start()
    carry_tcp_both_ways(pair.a.namespace, pair.b.namespace, INNER[1], "-P", str(FLOWS))
    for gateway in (pair.a, pair.b):
        for direction in ("in", "out"):
            assert all(packets_by_lane(gateway, direction).values())
        assert not {"auth-failed", "replay-duplicate", "unknown-spi"} & drops(gateway).keys()


def turns_of_workers(gateway: LabGateway) -> dict[str, int]:
    """Number of times each worker of the native engine was scheduled."""
    turns = {}
    for thread in Path(f"/proc/{gateway.pid}/task").iterdir():
        name = (thread / "comm").read_text().strip()
        if name.startswith("esp-worker-"):
            turns[name] = int((thread / "schedstat").read_text().split()[2])
    return turns


@pytest.mark.parametrize("number", [1, SAS])
def test_each_sa_has_its_own_worker(make_pair: MakePair, number: int) -> None:
    pair = make_pair(sas=number, settings={"workers": SAS})
    pair.start()
    if pair.a.ask("status")["engine"] == "python":
        assert turns_of_workers(pair.b) == {}
        return
    before = turns_of_workers(pair.b)
    send_bulk(pair)
    after = turns_of_workers(pair.b)
    assert len(after) == SAS
    busy = [name for name, turns in after.items() if turns - before[name] >= 20]
    assert len(busy) == number


def test_listings_name_every_sa_and_sum_their_counters(make_pair: MakePair) -> None:
    pair = make_pair(sas=SAS)
    pair.start()
    send_flows(pair, 10)
    (row,) = pair.a.ask("tunnel", "list")["tunnels"]
    assert (row["packets_out"], row["packets_in"]) == (FLOWS * 10, FLOWS * 10)
    assert pair.a.ask("status")["sas"] == 2 * SAS
    lines = pair.a.cli("sa", "list").stdout.splitlines()[1:]
    assert sorted(line.split()[0] for line in lines) == sorted(row["sas"])
    assert len(row["sas"]) == 2 * SAS


def test_all_sas_follow_a_peer_that_moves_behind_a_nat(make_pair: MakePair) -> None:
    pair = make_pair(sas=SAS)
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).update(keepalive=0))
    pair.start()
    assert reaches(pair)
    add_address(pair.b.namespace, "192.0.2.3/24")
    add_nat(pair.b.namespace, "192.0.2.2", "192.0.2.3", 34567)
    # The old address no longer works, and the new one is not known yet.
    assert ping(pair.a.namespace, INNER[1], count=3) == 0
    before = packets_by_lane(pair.a, "in")
    assert ping(pair.b.namespace, INNER[0], count=3) == 3
    assert len(packets_by_lane(pair.a, "in") - before) == 1
    assert {(sa["remote"], sa["remote_port"]) for sa in sas(pair.a).values()} == {
        ("192.0.2.3", 34567)
    }
    assert reaches(pair)
    moved = [line for line in pair.a.log.read_text().splitlines() if "new address" in line]
    assert len(moved) == 1


def test_a_late_packet_of_a_quiet_sa_does_not_redirect_the_tunnel(make_pair: MakePair) -> None:
    pair = make_pair(sas=SAS, settings={"workers": 1})
    pair.start()
    a, b = pair.a.namespace, pair.b.namespace
    reply = IP(src=INNER[1], dst=INNER[0]) / ICMP(type=0) / Raw(b"late")
    moved, late = (forge(configured_sa(pair.b, f"pi-a/out{n}"), FAR, reply) for n in ("", ".2"))
    elsewhere = udp_frame(b, a, moved, src="192.0.2.3", dst="192.0.2.1", sport=4777)
    send_frames(b, [elsewhere, udp_frame(b, a, late, src="192.0.2.2", dst="192.0.2.1")])
    until(lambda: packets_by_lane(pair.a, "in").total() == 2, "both are accepted")
    assert drops(pair.a) == {}
    remotes = {(sa["remote"], sa["remote_port"]) for sa in sas(pair.a).values()}
    assert remotes == {("192.0.2.3", 4777)}


def test_a_reload_adds_and_removes_sas_of_a_tunnel(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.start()
    send_flows(pair, 10)
    seq = sas(pair.a)["pi-b/out"]["seq"]
    folders = [gateway.config.parent for gateway in (pair.a, pair.b)]
    for ways in (("pi-b.out", "pi-a.in"), ("pi-b.in", "pi-a.out")):
        further = "".join(f"{format_keymat(generate(DEFAULT_SUITE))}\n" for _ in range(SAS - 1))
        for folder, way in zip(folders, ways, strict=True):
            with (folder / "keys" / f"{way}.key").open("a") as file:
                file.write(further)
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).update(sas=SAS))
        gateway.cli("reload")
    assert sas(pair.a)["pi-b/out"]["seq"] == seq
    until(lambda: reaches(pair), "the new SAs are used", 30)

    for folder in folders:
        for path in (folder / "keys").iterdir():
            text = path.read_text().splitlines(keepends=True)
            path.write_text("".join(text[: 1 - SAS]))
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).pop("sas"))
        gateway.cli("reload")
    # Retired SAs accept packets on their way.
    assert {name for name in sas(pair.a) if "~" not in name} == {"pi-b/out", "pi-b/in"}
    send_flows(pair, 10)
    assert sas(pair.a)["pi-b/out"]["seq"] > seq
    # The announcements of new lanes, before the other end knew them and after that.
    assert (drops(pair.a) | drops(pair.b)).keys() <= {"dummy", "unknown-spi"}
