"""Flow spreading over the SAs of a tunnel: the same in both engines, even, fragments included."""

from __future__ import annotations

import json
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet, Raw

from esp_gw.engine.python.wire import address_key, flow_key, spread

VECTORS = json.loads(
    (Path(__file__).parents[3] / "vectors" / "flow_spread.json").read_text(encoding="utf-8")
)["cases"]


def spread_of(packet: Packet | bytes) -> int:
    octets = memoryview(bytes(packet))
    return spread(flow_key(octets) or address_key(octets))


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_the_spread_is_the_one_of_the_native_engine(case: dict[str, str]) -> None:
    assert f"{spread_of(bytes.fromhex(case['packet'])):016x}" == case["spread"]


@pytest.mark.parametrize("count", [2, 3, 4, 8, 64])
@pytest.mark.parametrize("what", ["ports", "hosts", "IPv6 hosts"])
def test_flows_are_spread_evenly_over_any_number_of_sas(count: int, what: str) -> None:
    keys = []
    for number in range(100 * count):
        number_src, number_dst = divmod(number, 61)
        if what == "ports":
            data = bytes([10, 1, 0, 1, 10, 2, 0, 1, *(33000 + number).to_bytes(2), 1, 187])
        elif what == "hosts":
            data = bytes([10, 1, 0, number_src, 10, 2, 0, number_dst, 0, 80, 0, 80])[:12]
        else:
            hosts = [f"fd00:1::{number_src}", f"fd00:2::{number_dst}"]
            data = b"".join(ip_address(host).packed for host in hosts) + bytes([0, 80, 0, 80])
        keys.append((6, data))
    found = Counter(spread(key) % count for key in keys)
    # Expectation 100 flows per SA, tolerance five standard deviations.
    assert all(50 < found[index] < 150 for index in range(count)), found


@pytest.mark.parametrize("upper", [UDP(sport=5, dport=6), TCP(sport=5, dport=6)])
def test_all_fragments_of_a_packet_have_one_spread(upper: Packet) -> None:
    v4 = fragment(IP(src="10.1.0.1", dst="10.2.0.1") / upper / Raw(bytes(3000)), fragsize=1000)
    head = IPv6(src="fd00:1::1", dst="fd00:2::1") / IPv6ExtHdrFragment()
    v6 = fragment6(head / upper / Raw(bytes(3000)), 1280)
    for fragments in (v4, v6):
        assert len(fragments) >= 3
        assert len({spread_of(part) for part in fragments}) == 1


def test_a_flows_packets_have_one_spread_and_its_neighbours_another() -> None:
    head = IP(src="10.1.0.1", dst="10.2.0.1")
    one = head / UDP(sport=1, dport=2) / b"short"
    later = IP(src="10.1.0.1", dst="10.2.0.1", ttl=3, tos=4) / UDP(sport=1, dport=2) / bytes(300)
    back = IP(src="10.2.0.1", dst="10.1.0.1") / UDP(sport=2, dport=1)
    assert spread_of(one) == spread_of(later) == spread_of(back)
    others = [
        head / UDP(sport=2, dport=1),
        head / TCP(sport=1, dport=2),
        IP(src="10.1.0.2", dst="10.2.0.1") / UDP(sport=1, dport=2),
    ]
    assert len({spread_of(packet) for packet in (one, *others)}) == 4
