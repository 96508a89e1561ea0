"""Reassembly: fragments of a local kernel become the datagram, or are counted as dropped."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP, IPOption, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, fragment6
from scapy.packet import Packet, Raw

from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.reassembly import MAX_DATAGRAMS, MAX_FRAGMENTS, TIMEOUT, Reassembler
from esp_gw.model import DropReason

V4 = {"src": "192.0.2.1", "dst": "192.0.2.2"}
V6 = {"src": "2001:db8::1", "dst": "2001:db8::2"}


def datagram(version: int, size: int, ident: int = 7) -> Packet:
    payload = UDP(sport=1, dport=2) / Raw(random.Random(size).randbytes(size))
    if version == 4:
        return IP(bytes(IP(**V4, id=ident, tos=0x28) / payload))
    return IPv6(bytes(IPv6(**V6, tc=0x28) / payload))


def fragments_of(packet: Packet, size: int = 800, ident: int = 7) -> list[bytes]:
    if packet.version == 4:
        return [bytes(part) for part in fragment(packet, fragsize=size)]
    with_header = IPv6(**V6, tc=0x28) / IPv6ExtHdrFragment(id=ident) / packet.payload
    return [bytes(part) for part in fragment6(with_header, size + 48)]


def add(reassembler: Reassembler, octets: bytes, now: float = 0.0) -> bytes | None:
    """Add a fragment from a larger buffer."""
    view = memoryview(bytearray(octets + b"\xee" * 16))
    return reassembler.add(view, len(octets), now)


def same(whole: bytes | None, packet: Packet) -> bool:
    """Compare, ignoring the IPv4 checksum, which transport mode doesn't carry."""
    assert whole is not None
    if packet.version == 4:
        expected = bytearray(bytes(packet))
        expected[10:12] = whole[10:12]
        return whole == bytes(expected)
    return whole == bytes(packet)


both_versions = pytest.mark.parametrize("version", [4, 6])


@both_versions
def test_fragments_in_any_order_become_the_datagram(version: int) -> None:
    packet = datagram(version, 2500)
    parts = fragments_of(packet)
    assert len(parts) >= 4
    for order in itertools.permutations(parts):
        reassembler = Reassembler()
        *first, last = [add(reassembler, part) for part in order]
        assert first == [None] * len(first)
        assert same(last, packet)
        assert reassembler.dropped == 0


@both_versions
def test_the_largest_datagram_of_a_local_kernel_is_reassembled(version: int) -> None:
    packet = datagram(version, 65495 - 8)
    reassembler = Reassembler()
    results = [add(reassembler, part) for part in fragments_of(packet, 1400)]
    assert same(results[-1], packet)


@both_versions
def test_interleaved_datagrams_stay_apart(version: int) -> None:
    one, other = datagram(version, 1400, 1), datagram(version, 1500, 2)
    reassembler = Reassembler()
    pairs = zip(fragments_of(one, 800, 1), fragments_of(other, 800, 2), strict=True)
    results = [add(reassembler, part) for pair in pairs for part in pair]
    assert same(results[-2], one)
    assert same(results[-1], other)


@both_versions
def test_a_fragment_that_is_the_whole_needs_no_other(version: int) -> None:
    """An atomic fragment (RFC 6946), and its IPv4 counterpart without fragment fields."""
    packet = datagram(version, 100)
    (part,) = fragments_of(packet)
    if version == 4:
        part = bytes(packet)
    assert same(add(Reassembler(), part), packet)


def piece(version: int, offset: int, payload: bytes, more: bool) -> bytes:
    if version == 4:
        return bytes(IP(**V4, id=7, frag=offset // 8, flags=int(more), proto=17) / Raw(payload))
    header = IPv6ExtHdrFragment(id=7, offset=offset // 8, m=int(more), nh=17)
    return bytes(IPv6(**V6) / header / Raw(payload))


CONTRADICTIONS = {
    "the same twice": [(0, 16, True), (0, 16, True), (16, 8, False)],
    "another of the same place": [(0, 16, True), (0, 8, True), (16, 8, False)],
    "overlap from behind": [(8, 16, True), (0, 16, True), (24, 8, False)],
    "overlap from before": [(0, 16, True), (8, 16, True), (24, 8, False)],
    "inside another": [(0, 24, True), (8, 8, True), (24, 8, False)],
    "around another": [(8, 8, True), (0, 24, True), (24, 8, False)],
    "two ends": [(16, 8, False), (24, 8, False), (0, 16, True)],
    "an end before what is there": [(16, 8, True), (8, 8, False), (0, 8, True)],
    "behind the end": [(8, 8, False), (16, 8, True), (0, 8, True)],
    "more behind the end": [(8, 8, False), (8, 16, True), (0, 8, True)],
    "an odd length before the end": [(0, 15, True), (16, 8, False)],
    "nothing": [(0, 8, True), (8, 0, False)],
    "nothing, and more": [(8, 0, True), (0, 8, True)],
    "too long": [(65488, 800, False), (0, 8, True)],
}


@both_versions
@pytest.mark.parametrize("pieces", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_fragments_that_contradict_each_other_never_become_a_packet(
    version: int, pieces: list[tuple[int, int, bool]]
) -> None:
    reassembler = Reassembler()
    for offset, size, more in pieces:
        assert add(reassembler, piece(version, offset, b"x" * size, more)) is None
    assert reassembler.dropped >= 1


@both_versions
def test_a_contradiction_drops_every_fragment_of_its_datagram_and_no_other(version: int) -> None:
    reassembler = Reassembler()
    packet = datagram(version, 1500, 8)
    first, *rest = fragments_of(packet, 800, 8)
    add(reassembler, first)
    for offset, more in ((0, True), (8, True), (24, True)):
        add(reassembler, piece(version, offset, b"x" * 8, more))
    assert reassembler.dropped == 0
    add(reassembler, piece(version, 8, b"y" * 8, True))
    assert reassembler.dropped == 4
    add(reassembler, piece(version, 16, b"x" * 8, True))
    assert add(reassembler, piece(version, 32, b"x" * 8, False)) is None
    results = [add(reassembler, part) for part in rest]
    assert same(results[-1], packet)


@both_versions
def test_an_incomplete_datagram_is_dropped_after_the_timeout(version: int) -> None:
    first, second = fragments_of(datagram(version, 1200))
    reassembler = Reassembler()
    add(reassembler, first, 100.0)
    assert add(reassembler, second, 100.1 + TIMEOUT) is None
    assert reassembler.dropped == 1
    assert add(reassembler, first, 100.2 + TIMEOUT) is not None


@both_versions
def test_a_late_fragment_still_counts_until_the_timeout(version: int) -> None:
    first, second = fragments_of(datagram(version, 1200))
    reassembler = Reassembler()
    add(reassembler, first, 100.0)
    assert add(reassembler, second, 100.0 + TIMEOUT) is not None


@both_versions
def test_the_oldest_datagram_makes_room_for_a_new_one(version: int) -> None:
    reassembler = Reassembler()
    datagrams = [
        fragments_of(datagram(version, 1200, ident), 800, ident)
        for ident in range(1, MAX_DATAGRAMS + 2)
    ]
    for first, _ in datagrams:
        add(reassembler, first)
    assert reassembler.dropped == 1
    for _, second in datagrams[1:]:
        assert add(reassembler, second) is not None
    assert add(reassembler, datagrams[0][1]) is None


def test_a_datagram_of_too_many_fragments_is_dropped() -> None:
    reassembler = Reassembler()
    for number in range(MAX_FRAGMENTS):
        add(reassembler, piece(4, number * 8, bytes(8), True))
    assert reassembler.dropped == 0
    add(reassembler, piece(4, MAX_FRAGMENTS * 8, bytes(8), False))
    assert reassembler.dropped == MAX_FRAGMENTS + 1


def test_ipv4_datagrams_of_different_protocols_or_addresses_stay_apart() -> None:
    part = IP(**V4, id=7, flags="MF", proto=17) / Raw(bytes(8))
    for field, value in (("proto", 6), ("src", "192.0.2.3"), ("dst", "192.0.2.3"), ("id", 8)):
        other = IP(**V4, id=7, frag=1, proto=17) / Raw(bytes(8))
        setattr(other, field, value)
        reassembler = Reassembler()
        assert (add(reassembler, bytes(part)), add(reassembler, bytes(other))) == (None, None)


def test_an_ipv4_datagram_that_options_make_too_long_is_dropped() -> None:
    reassembler = Reassembler()
    head = IP(**V4, id=7, flags="MF", proto=17, options=[IPOption(b"\x01")] * 40)
    assert add(reassembler, bytes(head / Raw(bytes(65472)))) is None
    assert add(reassembler, piece(4, 65472, bytes(5), False)) is None
    assert reassembler.dropped == 2


def test_a_fragment_header_behind_another_header_is_not_supported() -> None:
    packet = IPv6(**V6) / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1) / Raw(bytes(8))
    with pytest.raises(Drop) as caught:
        add(Reassembler(), bytes(packet))
    assert caught.value.reason is DropReason.UNSUPPORTED_HEADER


PIECES = st.tuples(st.integers(0, 5), st.integers(0, 25), st.booleans())


@given(st.sampled_from([4, 6]), st.lists(PIECES, max_size=12))
@settings(max_examples=300)
def test_arbitrary_fragments_agree_with_a_model_of_octets(
    version: int, pieces: list[tuple[int, int, bool]]
) -> None:
    reassembler = Reassembler()
    octets: dict[int, int] = {}
    count, total, dropped = 0, None, 0
    for number, (place, size, more) in enumerate(pieces):
        start, end = place * 8, place * 8 + size
        whole = add(reassembler, piece(version, start, bytes([number]) * size, more))
        contradicts = (
            size == 0
            or (more and size % 8 != 0)
            or any(at in octets for at in range(start, end))
            or (total is not None and (not more or end > total))
            or (not more and any(at >= end for at in octets))
        )
        count += 1
        octets |= dict.fromkeys(range(start, end), number)
        total = total if more else end
        if contradicts:
            dropped += count
        elif len(octets) == total:
            assert whole is not None
            payload = whole[20 if version == 4 else 40 :]
            assert payload == bytes(octets[at] for at in range(total))
            count, total, octets = 0, None, {}
            continue
        assert whole is None
        assert reassembler.dropped == dropped
        if contradicts:
            count, total, octets = 0, None, {}
