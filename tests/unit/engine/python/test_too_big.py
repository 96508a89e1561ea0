"""ICMP errors on packets that exceed the path MTU, against scapy's view of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.packet import Packet, Raw

from esp_gw.engine.base import PathMtuChanged
from esp_gw.engine.python import too_big
from esp_gw.model import DropReason, Mode
from tests.support.builders import OUTER, protect, selector
from tests.support.rig import HEADS, HOST_HEADS, HOSTS, V4, V6, Pair, pair

EVERYTHING = (selector("0.0.0.0/0", "0.0.0.0/0"), selector("::/0", "::/0"))
PATH = 1400
# Of ESP in UDP over IPv4 with AES-GCM and an ICV of 16 bytes, tunnel mode.
INNER = 1338


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(too_big.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(too_big, "path_mtu", lambda *_: PATH)
    return now


@pytest.fixture
def tunnel(clock: list[float]) -> Iterator[Pair]:
    with pair(V4, V6) as gateways:
        yield gateways


def whole(head: Packet, upper: Packet | None = None, size: int = 1400) -> bytes:
    """Return a packet of `size` bytes that may not be fragmented."""
    packet = head.copy() / (upper or UDP(sport=1000, dport=2000))
    if packet.version == 4:
        packet[IP].flags = "DF"
    return bytes(packet / Raw(random.randbytes(size - len(packet))))


def refused(gateways: Pair, *packets: bytes) -> list[bytes]:
    """Return what comes back into the TUN for packets that the path doesn't take."""
    for octets in packets:
        gateways.a.outer.verdicts.append(DropReason.TOO_BIG)
        assert gateways.a.forward(octets) == []
        assert not gateways.a.outer.verdicts
    return gateways.a.from_tun()


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [1399, 1400])
def test_the_first_packet_that_is_too_big_is_answered_with_the_mtu_of_the_tunnel(
    tunnel: Pair, version: int, size: int
) -> None:
    octets = whole(HEADS[version], size=size)
    (answer,) = refused(tunnel, octets)
    head = HEADS[version]
    if version == 4:
        error = IP(answer)
        assert (error[ICMP].type, error[ICMP].code, error[ICMP].nexthopmtu) == (3, 4, INNER)
        assert len(answer) == 576
        assert octets.startswith(answer[28:])
    else:
        error = IPv6(answer)
        assert (error[ICMPv6PacketTooBig].code, error[ICMPv6PacketTooBig].mtu) == (0, INNER)
        assert len(answer) == 1280
        assert octets.startswith(answer[48:])
    assert (error.src, error.dst) == (head.dst, head.src)
    assert answer == checked(answer)
    assert tunnel.a_out.drops == {DropReason.TOO_BIG: 1}
    assert [type(event) for event in tunnel.a.events] == [PathMtuChanged]


def checked(answer: bytes) -> bytes:
    """Return a message with the lengths and checksums that scapy computes."""
    if answer[0] >> 4 == 4:
        error = IP(answer)
        error.len = error.chksum = error[ICMP].chksum = None
        return bytes(error)
    whole = IPv6(answer)
    whole.plen = whole[ICMPv6PacketTooBig].cksum = None
    return bytes(whole)


@pytest.mark.parametrize("version", [4, 6])
def test_transport_mode_counts_the_ip_header(clock: list[float], version: int) -> None:
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        (answer,) = refused(gateways, whole(HOST_HEADS[version]))
    head = 20 if version == 4 else 40
    expected = (PATH - 28 - 32) // 4 * 4 - 2 + head
    assert int.from_bytes(answer[head + 4 : head + 8]) == expected
    assert answer[head - 8 : head - 4 if version == 4 else head].count(0) < 8
    assert str((IP if version == 4 else IPv6)(answer).dst) == OUTER[version][0]


def test_ipv6_is_never_told_less_than_any_link_takes(
    tunnel: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_big, "path_mtu", lambda *_: 1300)
    (answer,) = refused(tunnel, whole(HEADS[6], size=1281))
    assert IPv6(answer)[ICMPv6PacketTooBig].mtu == 1280


def test_a_report_below_min_mtu_is_not_passed_on(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_big, "path_mtu", lambda *_: 552)
    with pair(V4) as gateways:
        gateways.a.outbound._too_big._min_mtu = PATH
        (answer,) = refused(gateways, whole(HEADS[4], size=1400))
    assert IP(answer)[ICMP].nexthopmtu == INNER


def test_an_ipv4_packet_without_df_is_fragmented_outside(tunnel: Pair) -> None:
    octets = bytes(HEADS[4] / UDP() / Raw(bytes(1372)))
    tunnel.a.outer.verdicts.append(DropReason.TOO_BIG)
    (sent,) = tunnel.a.forward(octets)
    assert sent.may_fragment
    assert tunnel.a.from_tun() == []
    # The routes follow nevertheless.
    assert [type(event) for event in tunnel.a.events] == [PathMtuChanged]
    assert tunnel.b.receive(sent.packet) == [octets]


def test_answers_are_few_until_the_path_mtu_is_asked_for_again(
    tunnel: Pair, clock: list[float]
) -> None:
    octets = whole(HEADS[4])
    assert len(refused(tunnel, *[octets] * 30)) == too_big.MAX_ANSWERS
    clock[0] += too_big.QUERY_INTERVAL * 0.9
    assert refused(tunnel, octets) == []
    clock[0] += too_big.QUERY_INTERVAL
    assert len(refused(tunnel, octets)) == 1
    assert tunnel.a_out.drops == {DropReason.TOO_BIG: 32}


def test_what_fits_the_path_by_now_and_what_has_no_path_is_not_answered(
    tunnel: Pair, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused(tunnel, whole(HEADS[4], size=INNER)) == []
    clock[0] += 1
    monkeypatch.setattr(too_big, "path_mtu", lambda *_: None)
    assert refused(tunnel, whole(HEADS[4])) == []


QUOTE4, QUOTE6 = bytes(HEADS[4] / UDP()), bytes(HEADS[6] / UDP())
UNANSWERED = {
    "ICMP error": whole(HEADS[4], ICMP(type=3, code=1) / Raw(QUOTE4)),
    "redirect": whole(HEADS[4], ICMP(type=5, code=1) / Raw(QUOTE4)),
    "time exceeded": whole(HEADS[4], ICMP(type=11) / Raw(QUOTE4)),
    "later fragment": whole(IP(src="10.1.0.1", dst="10.2.0.1", frag=9, proto=17), Raw(b"x")),
    "multicast": whole(IP(src="10.1.0.1", dst="224.0.0.5")),
    "broadcast": whole(IP(src="10.1.0.1", dst="255.255.255.255")),
    "no source": whole(IP(src="0.0.0.0", dst="10.2.0.1")),
    "loopback source": whole(IP(src="127.0.0.1", dst="10.2.0.1")),
    "ICMPv6 error": whole(HEADS[6], ICMPv6DestUnreach() / Raw(QUOTE6)),
    "ICMPv6 redirect": whole(HEADS[6], ICMPv6ND_Redirect()),
    "later fragment of IPv6": whole(HEADS[6], IPv6ExtHdrFragment(nh=17, offset=9) / Raw(b"x")),
    "multicast of IPv6": whole(IPv6(src="fd00:1::1", dst="ff0e::5")),
    "no source of IPv6": whole(IPv6(src="::", dst="fd00:2::1")),
    "multicast source": whole(IPv6(src="ff02::1", dst="fd00:2::1")),
}
ANSWERED = {
    "echo request": whole(HEADS[4], ICMP(type=8)),
    "first fragment": whole(IP(src="10.1.0.1", dst="10.2.0.1", flags="MF"), UDP()),
    "ICMPv6 echo request": whole(HEADS[6], ICMPv6EchoRequest()),
    "first fragment of IPv6": whole(HEADS[6], IPv6ExtHdrFragment(nh=17, m=1) / UDP()),
    "TCP": whole(HEADS[6], TCP(flags="PA")),
}


@pytest.mark.parametrize("kind", UNANSWERED)
def test_no_error_is_sent_on_what_must_not_have_one(clock: list[float], kind: str) -> None:
    with pair(*EVERYTHING) as gateways:
        assert refused(gateways, UNANSWERED[kind]) == []
        assert gateways.a_out.drops == {DropReason.TOO_BIG: 1}


@pytest.mark.parametrize("kind", ANSWERED)
def test_anything_else_is_answered(clock: list[float], kind: str) -> None:
    with pair(*EVERYTHING) as gateways:
        assert len(refused(gateways, ANSWERED[kind])) == 1


def test_a_full_tun_loses_the_answer_alone(tunnel: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(too_big.os, "write", full)
    assert refused(tunnel, whole(HEADS[4])) == []
    tunnel.a.outbound.replace_policies([protect("ab", "ab", V4, V6)])
    tunnel.a.install_outbound(replace(tunnel.a_out.sa, spi=0x1003))
    assert len(tunnel.a.forward(whole(HEADS[4]))) == 1
