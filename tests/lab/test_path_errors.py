"""ICMP errors about the outer packets, and outer packets without a checksum."""

from __future__ import annotations

import struct
import sys

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from esp_gw.demo.pair import GatewayPair
from esp_gw.model import Encapsulation
from tests.support.labtools import (
    MakePair,
    StartCapture,
    carry_tcp,
    drops,
    frames,
    mac,
    ping,
    running,
    until,
)

SEND_FOR_EVER = """
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((sys.argv[1], 0))
frames = [bytes.fromhex(frame) for frame in sys.argv[2:]]
print("ready", flush=True)
while True:
    for frame in frames:
        s.send(frame); time.sleep(0.003)
"""
SEND_UNCHECKED = """
import socket, struct, sys
here, there = sys.argv[1:]
family = socket.AF_INET6 if ":" in here else socket.AF_INET
s = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
s.bind((here, 0))
s.sendto(struct.pack("!HHHH", 4500, 4500, 48, 0) + b"\\x77" * 40, (there, 0))
"""
ESP = Raw(struct.pack("!II", 0x1000, 1) + bytes(40))


def quote(pair: GatewayPair, error4: Packet, error6: Packet) -> str:
    """Return a router's report on an ESP packet of gateway A, which any host can forge."""
    frame = Ether(src=mac(pair.b.namespace), dst=mac(pair.a.namespace))
    if pair.plan.outer_version == 4:
        frame /= IP(src="192.0.2.9", dst="192.0.2.1") / error4
        frame /= IP(src="192.0.2.1", dst="192.0.2.2", flags="DF", len=1420, proto=50) / ESP
    else:
        frame /= IPv6(src="2001:db8::9", dst="2001:db8::1") / error6
        frame /= IPv6(src="2001:db8::1", dst="2001:db8::2", plen=1400, nh=50) / ESP
    return bytes(frame).hex()


# Over IPv4 the kernel learns it for any raw socket.
@pytest.mark.parametrize("version", [pytest.param(4, marks=pytest.mark.either_engine), 6])
def test_protocol_50_learns_a_path_mtu_and_no_other_error_loses_a_packet(
    make_pair: MakePair, version: int
) -> None:
    pair = make_pair(outer_version=version, encapsulation=Encapsulation.NONE)
    pair.start()
    a, target = pair.a.namespace, pair.plan.inner(1)
    errors = (
        # Port and protocol unreachable, no route, administratively prohibited.
        quote(pair, ICMP(type=3, code=3), ICMPv6DestUnreach(code=4)),
        quote(pair, ICMP(type=3, code=2), ICMPv6DestUnreach(code=0)),
        quote(pair, ICMP(type=3, code=13), ICMPv6DestUnreach(code=1)),
    )
    with running(pair.b.namespace, SEND_FOR_EVER, "wan", *errors):
        assert ping(a, target, count=30, size=1350) == 30
    report = quote(pair, ICMP(type=3, code=4, nexthopmtu=1300), ICMPv6PacketTooBig(mtu=1300))
    with running(pair.b.namespace, SEND_FOR_EVER, "wan", report):
        until(
            lambda: ping(a, target, count=1, size=1350) and pair.a.ask("status")["mtu"] < 1300,
            "the path MTU is learned",
        )
        carry_tcp(a, pair.b.namespace, target)
    assert drops(pair.a).keys() <= {"too-big"}


@pytest.mark.parametrize("version", [4, 6])
def test_an_outer_packet_without_a_udp_checksum_is_taken(make_pair: MakePair, version: int) -> None:
    pair = make_pair(outer_version=version)
    pair.start()
    here, there = (str(each) for each in pair.plan.outer)
    pair.b.namespace.run(sys.executable, "-c", SEND_UNCHECKED, there, here)
    until(lambda: drops(pair.a)["unknown-spi"] == 1, "the datagram reaches the engine")


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("version", [4, 6])
def test_the_udp_checksum_is_left_out_over_ipv4_where_there_is_no_gso(
    make_pair: MakePair, capture: StartCapture, version: int, gso: bool
) -> None:
    pair = make_pair(outer_version=version, settings={"offload": {"udp_gso": gso}})
    pair.start()
    native = pair.a.ask("status")["engine"] == "native"
    wire = capture(pair.a.namespace)
    assert ping(pair.a.namespace, pair.plan.inner(1), count=3) == 3
    carry_tcp(pair.a.namespace, pair.b.namespace, pair.plan.inner(1))
    without = []
    for frame in list(frames(wire.stop()))[:200]:
        packet = Ether(frame)
        if UDP not in packet or packet[UDP].dport != 4500:
            continue
        there = packet[UDP].chksum
        without.append(there == 0)
        if there:
            packet[UDP].chksum = None
            assert Ether(bytes(packet))[UDP].chksum == there
    assert len(without) > 6
    left_out = version == 4 and not (native and gso)
    assert without == [left_out] * len(without)


@pytest.mark.parametrize("encapsulation", [Encapsulation.UDP, Encapsulation.NONE])
def test_a_path_mtu_below_min_mtu_is_not_believed_and_loses_nothing(
    make_pair: MakePair, encapsulation: Encapsulation
) -> None:
    pair = make_pair(encapsulation=encapsulation)
    pair.start()
    a, target = pair.a.namespace, pair.plan.inner(1)
    wide = pair.a.ask("status")["mtu"]
    # The state of the kernel after an ICMP "fragmentation needed" with a next-hop MTU of 552.
    a.ip("route", "add", "192.0.2.2/32", "dev", "wan", "mtu", "552")
    ping(a, target, count=1, size=1400)
    until(lambda: pair.a.ask("status")["mtu"] < wide, "the path MTU is noticed")
    assert pair.a.ask("status")["mtu"] >= 1200
    assert ping(a, target, count=5, size=1100) == 5
    assert ping(a, target, count=5, size=1400) == 5
