"""Checksums of transport mode behind a NAT, against those that scapy computes."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from esp_gw.engine.python.esp import OutboundEsp
from esp_gw.engine.python.inbound import InboundPath
from esp_gw.model import Lease, Mode, Sa
from tests.support.esp import encap
from tests.support.rig import HOSTS, Pair, pair

HERE = {4: "192.0.2.2", 6: "2001:db8::2"}
PEER = {4: "192.0.2.1", 6: "2001:db8::1"}
INSIDE = {4: ("10.0.0.2", "172.16.255.254"), 6: ("fd00:aaaa::2", "fd00:ffff:0:ffff::fffe")}
"""The peer's own address, and the one that it sends to."""


def ip(version: int, source: str, target: str, **fields: Any) -> Packet:
    if version == 4:
        return IP(src=source, dst=target, flags="DF", id=0, **fields)
    return IPv6(src=source, dst=target, **fields)


def behind_nat(sa: Sa, *, remote: bool, local: bool) -> Sa:
    version = sa.local.version
    own, target = (ip_address(each) for each in INSIDE[version])
    return replace(
        sa,
        remote_original=own if remote else None,
        local_original=target if local else None,
    )


def through(gateways: Pair, sent: Packet, *, remote: bool = True, local: bool = True) -> bytes:
    """Return what arrives of a packet of a peer whose addresses a NAT has changed."""
    octets = bytes(sent)
    version = octets[0] >> 4
    head, next_header = (20, octets[9]) if version == 4 else (40, octets[6])
    inbound = behind_nat(gateways.b_in.sa, remote=remote, local=local)
    gateways.b.install_inbound(inbound)
    esp = OutboundEsp(inbound, Lease(1, 2), gateways.b_in.aead)
    (arrived,) = gateways.b.receive(encap(esp, octets[head:], next_header))
    return arrived


def sent_and_right(
    version: int, upper: Packet, *, remote: bool = True, local: bool = True
) -> tuple[Packet, Packet]:
    """Return a packet as its sender has it, and with the addresses that arrive."""
    own, target = INSIDE[version]
    before = own if remote else PEER[version], target if local else HERE[version]
    return ip(version, *before) / upper, ip(version, PEER[version], HERE[version]) / upper


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("remote", [True, False])
@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("kind", ["tcp", "udp", "icmp"])
def test_a_checksum_is_right_for_the_addresses_that_arrive(
    version: int, remote: bool, local: bool, kind: str
) -> None:
    random.seed(f"{version} {remote} {local} {kind}")
    for size in (0, 1, 2, 700, 1301):
        echo = ICMP() if version == 4 else ICMPv6EchoRequest()
        uppers = {
            "icmp": echo,
            "tcp": TCP(sport=40000, dport=443, seq=7, flags="PA"),
            "udp": UDP(sport=5000, dport=53),
        }
        ends = {"remote": remote, "local": local}
        upper = uppers[kind] / Raw(random.randbytes(size))
        sent, right = sent_and_right(version, upper, **ends)
        with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
            assert through(gateways, sent, **ends) == bytes(right)


@pytest.mark.parametrize("version", [4, 6])
def test_a_udp_checksum_that_is_left_out_stays_out_and_a_sum_of_zero_is_sent_as_ones(
    version: int,
) -> None:
    sent, _ = sent_and_right(version, UDP(sport=1, dport=2, chksum=0) / Raw(b"data"))
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        assert through(gateways, sent)[-6:] == b"\0\0data"
    # Ports for which the sum over the addresses that arrive is 0.
    _, probe = sent_and_right(version, UDP(sport=0, dport=2) / Raw(b"data"))
    port = int.from_bytes(bytes(probe)[-6:-4])
    sent, right = sent_and_right(version, UDP(sport=port, dport=2) / Raw(b"data"))
    assert bytes(right)[-6:] == b"\xff\xffdata"
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        assert through(gateways, sent) == bytes(right)


@pytest.mark.parametrize("version", [4, 6])
def test_a_checksum_that_is_wrong_stays_wrong(version: int) -> None:
    own, target = INSIDE[version]
    whole = bytearray(bytes(ip(version, own, target) / UDP(sport=1, dport=2) / Raw(b"data")))
    whole[-1] ^= 1
    _, right = sent_and_right(version, UDP(sport=1, dport=2) / Raw(b"dat" + whole[-1:]))
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        arrived = through(gateways, (IP if version == 4 else IPv6)(bytes(whole)))
    assert arrived[-6:-4] not in (bytes(right)[-6:-4], whole[-6:-4])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [47, 50, 132])
def test_a_protocol_whose_checksum_covers_no_address_is_left_alone(
    version: int, protocol: int
) -> None:
    own, target = INSIDE[version]
    named = {"proto": protocol} if version == 4 else {"nh": protocol}
    payload = Raw(bytes(range(40)))
    sent = ip(version, own, target, **named) / payload
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        assert through(gateways, sent).endswith(bytes(payload))


def test_behind_extension_headers_and_in_the_first_fragment_alone_it_is_mended() -> None:
    options = IPv6ExtHdrDestOpt() / TCP(sport=1, dport=2) / Raw(b"data")
    sent, right = sent_and_right(6, options)
    with pair(HOSTS[6], mode=Mode.TRANSPORT, version=6) as gateways:
        assert through(gateways, sent) == bytes(right)
    sent, right = sent_and_right(6, TCP(sport=1, dport=2) / Raw(bytes(64)))
    text = [bytes(each)[40:] for each in (sent, right)]
    for offset in (0, 1, 5):
        header = IPv6ExtHdrFragment(nh=6, offset=offset, m=1, id=9)
        here = ip(6, *INSIDE[6]) / header / Raw(text[0])
        with pair(HOSTS[6], mode=Mode.TRANSPORT, version=6) as gateways:
            assert through(gateways, here)[48:] == text[offset == 0]


@pytest.mark.parametrize(("protocol", "size"), [(6, 4), (6, 17), (17, 7), (33, 7), (136, 5)])
def test_what_ends_before_its_checksum_is_left_alone(protocol: int, size: int) -> None:
    own, target = INSIDE[4]
    sent = ip(4, own, target, proto=protocol) / Raw(bytes(size))
    with pair(HOSTS[4], mode=Mode.TRANSPORT) as gateways:
        # Leftovers of an earlier packet.
        gateways.b.inbound._plain[60:80] = bytes(range(20))
        assert through(gateways, sent)[20:] == bytes(size)


def test_without_a_nat_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{InboundPath.__module__}.mend", None)
    _, right = sent_and_right(4, TCP(sport=1, dport=2))
    with pair(HOSTS[4], mode=Mode.TRANSPORT) as gateways:
        assert gateways.a_to_b(bytes(right)) == [bytes(right)]
