"""Later fragments have the verdict on the first one, for a bounded number of packets."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, UDP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet, Raw

from esp_gw.engine.python.fragments import MAX_DATAGRAMS, Fragment, Fragments, fragment_of
from esp_gw.engine.python.wire import parse


def of(packet: Packet) -> Fragment | None:
    data = memoryview(bytearray(bytes(packet)))
    return fragment_of(data, parse(data, len(data)))


def pieces(version: int, ident: int) -> list[Packet]:
    upper = UDP(sport=1, dport=7001) / Raw(bytes(3000))
    if version == 4:
        return list(fragment(IP(src="10.1.0.1", dst="10.2.0.1", id=ident) / upper, 1000))
    whole = IPv6(src="fd00:1::1", dst="fd00:2::1") / IPv6ExtHdrFragment(id=ident) / upper
    return list(fragment6(whole, 1280))


@pytest.mark.parametrize("version", [4, 6])
def test_all_fragments_of_a_packet_are_of_one_datagram_and_the_first_is_known(version: int) -> None:
    found = [of(piece) for piece in pieces(version, 7)]
    assert len(found) > 2
    assert all(each is not None for each in found)
    assert {each.datagram for each in found if each} == {found[0].datagram if found[0] else None}
    assert [each.is_first for each in found if each] == [True] + [False] * (len(found) - 1)
    other = of(pieces(version, 8)[0])
    assert other is not None
    assert found[0] is not None
    assert other.datagram != found[0].datagram


def test_a_whole_packet_is_no_fragment() -> None:
    assert of(IP(src="10.1.0.1", dst="10.2.0.1") / UDP()) is None
    assert of(IPv6(src="fd00:1::1", dst="fd00:2::1") / UDP()) is None


def test_the_oldest_packets_are_forgotten_first() -> None:
    table: Fragments[int] = Fragments()
    firsts = [of(pieces(4, ident)[0]) for ident in range(MAX_DATAGRAMS + 1)]
    for number, first in enumerate(firsts):
        assert first is not None
        table.remember(first, number)
    known = [table.get(first) for first in firsts if first is not None]
    assert known == [None, *range(1, MAX_DATAGRAMS + 1)]


def test_a_reused_identification_has_the_newest_verdict() -> None:
    table: Fragments[str] = Fragments()
    first, later, *_ = [of(piece) for piece in pieces(4, 7)]
    assert first is not None
    assert later is not None
    assert table.get(later) is None
    table.remember(first, "old")
    table.remember(first, "new")
    assert table.get(later) == "new"
    table.clear()
    assert table.get(later) is None
