"""Arbitrary input from the TUN and the sockets: nothing is raised or lost uncounted."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment
from scapy.packet import Packet, Raw

from esp_gw.engine.base import HardExpired, LeaseLow, SoftExpired
from esp_gw.engine.python import too_big
from esp_gw.model import DropReason, Encapsulation, Lease, Mode
from tests.support.builders import OUTER, discard, protect, selector
from tests.support.rig import (
    HEADS,
    HOST_HEADS,
    HOSTS,
    MSG_TRUNC,
    V4,
    V6,
    FakeOuter,
    Pair,
    packet,
    pair,
)

slow = settings(max_examples=60, deadline=None)
versions = st.sampled_from([4, 6])
modes = st.sampled_from(Mode)
encapsulations = st.sampled_from(Encapsulation)
FAILURES = [DropReason.QUEUE_FULL, DropReason.SEND_ERROR, DropReason.TOO_BIG]


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Packets of the tunnel, of other hosts, damaged packets, and random bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.binary(min_size=1, max_size=100))
    heads = [*HEADS.values(), *HOST_HEADS.values(), IP(src="10.1.0.1", dst="10.2.0.9")]
    head: Packet = draw(st.sampled_from(heads))
    layer = draw(st.sampled_from([UDP, TCP]))
    port = st.integers(0, 3)
    octets = bytearray(bytes(head / layer(sport=draw(port), dport=draw(port)) / Raw(b"payload")))
    for at in draw(st.lists(st.integers(0, len(octets) - 1), max_size=2)):
        octets[at] = draw(st.integers(0, 255))
    return bytes(octets)


def any_pair(
    mode: Mode, version: int, encapsulation: Encapsulation
) -> AbstractContextManager[Pair]:
    selectors = (HOSTS[version],) if mode is Mode.TRANSPORT else (V4, V6, *HOSTS.values())
    return pair(*selectors, mode=mode, version=version, encapsulation=encapsulation)


@given(
    st.lists(packets(), max_size=90),
    st.lists(st.none() | st.sampled_from(FAILURES), max_size=20),
    modes,
    versions,
    encapsulations,
)
@slow
def test_a_packet_from_the_tun_is_sent_dropped_or_a_pending_fragment(
    octets: list[bytes],
    verdicts: list[DropReason | None],
    mode: Mode,
    version: int,
    encapsulation: Encapsulation,
) -> None:
    with any_pair(mode, version, encapsulation) as gateways:
        side = gateways.a
        side.outer.verdicts.extend(verdicts)
        side.outbound.replace_policies(
            [discard("d", selector("10.1.0.0/24", "10.2.0.9/32")), gateways.policy]
        )
        path_mtu, too_big.path_mtu = too_big.path_mtu, lambda *_: 100
        try:
            sent = side.forward(*octets)
        finally:
            too_big.path_mtu = path_mtu
        held = sum(len(d.parts) for d in side.outbound._reassembler._datagrams.values())
        assert len(octets) == gateways.a_out.packets + side.drops_out().total() + held
        assert len(sent) == gateways.a_out.packets


def fragment(version: int, place: int, size: int, more: bool) -> bytes:
    payload = Raw(bytes(size))
    if version == 4:
        flags = int(more)
        head = IP(src=OUTER[4][0], dst=OUTER[4][1], id=7, frag=place, flags=flags, proto=253)
        return bytes(head / payload)
    head = IPv6(src=OUTER[6][0], dst=OUTER[6][1])
    return bytes(head / IPv6ExtHdrFragment(id=7, offset=place, m=int(more), nh=253) / payload)


@given(
    versions,
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 8), st.booleans()), max_size=30),
)
@slow
def test_every_fragment_is_in_a_packet_pending_or_counted(
    version: int, pieces: list[tuple[int, int, bool]]
) -> None:
    """A piece has at most 8 bytes, so that the length of the whole gives the number of pieces."""
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        arrived = []
        for place, size, more in pieces:
            arrived += gateways.a_to_b(fragment(version, place, size, more))
        header = 20 if version == 4 else 40
        taken = sum(-(-(len(whole) - header) // 8) for whole in arrived)
        held = sum(
            len(datagram.parts) for datagram in gateways.a.outbound._reassembler._datagrams.values()
        )
        assert len(pieces) == taken + held + gateways.a.drops_out().total()
        assert set(gateways.a.drops_out()) <= {DropReason.FRAGMENT}


@st.composite
def mangled(draw: st.DrawFn, sealed: list[bytes]) -> bytes:
    """A datagram unchanged, truncated, with flipped bits, with trailing bytes, or random."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        return draw(st.sampled_from([b"\xff", b"", bytes(4), bytes(8), b"\xff\xff"]))
    octets = draw(st.sampled_from(sealed))
    if kind == 2:
        at = draw(st.integers(0, len(octets) - 1))
        return octets[:at] + bytes([octets[at] ^ draw(st.integers(1, 255))]) + octets[at + 1 :]
    if kind == 3:
        return octets[: draw(st.integers(0, len(octets)))] + draw(st.binary(max_size=8))
    return octets


@given(st.data(), modes, versions, encapsulations)
@slow
def test_a_datagram_is_accepted_dropped_or_a_keepalive_and_no_packet_is_forged(
    data: st.DataObject, mode: Mode, version: int, encapsulation: Encapsulation
) -> None:
    head = (HOST_HEADS if mode is Mode.TRANSPORT else HEADS)[version]
    with any_pair(mode, version, encapsulation) as gateways:
        originals = [packet(head, b"%d" % number) for number in range(6)]
        sealed = [sent.packet for sent in gateways.a.forward(*originals)]
        outers = [gateways.b.outer, *(FakeOuter(v, u) for v in (4, 6) for u in (True, False))]
        wire_header = bytes(IP(src=OUTER[4][0], dst=OUTER[4][1], proto=50))
        count, arrived = 0, []
        for _ in range(data.draw(st.integers(1, 25))):
            datagram = data.draw(mangled(sealed))
            outer = data.draw(st.sampled_from([outers[0], outers[0], *outers]))
            if outer.has_ip_header and data.draw(st.integers(0, 4)):
                datagram = wire_header + datagram
            flags = data.draw(st.sampled_from([0, 0, 0, MSG_TRUNC]))
            arrived += gateways.b.receive(datagram, outer=outer, flags=flags)
            count += 1
        accepted = gateways.b_in.packets
        drops = gateways.b.drops_in().total()
        assert count == accepted + drops + gateways.b.inbound.keepalives
        assert len(arrived) == accepted == len(set(arrived))
        payloads = [IPvX(octets).lastlayer().load for octets in arrived]
        assert set(payloads) <= {b"%d" % number for number in range(6)}
        if mode is Mode.TUNNEL:
            assert set(arrived) <= set(originals)
        gateways.b.inbound.sas[gateways.b_in.sa.spi].counters()


def IPvX(octets: bytes) -> Packet:  # noqa: N802 - named like scapy's layers
    return (IP if octets[0] >> 4 == 4 else IPv6)(octets)


@given(st.permutations(range(12)), modes, versions, encapsulations)
@slow
def test_packets_in_any_order_arrive_unchanged(
    order: list[int], mode: Mode, version: int, encapsulation: Encapsulation
) -> None:
    head = (HOST_HEADS if mode is Mode.TRANSPORT else HEADS)[version]
    with any_pair(mode, version, encapsulation) as gateways:
        payloads = [bytes([number]) * number * 7 for number in range(12)]
        sent = gateways.a.forward(*(packet(head, payload) for payload in payloads))
        raw = bytes(IP(proto=50)) if gateways.b.outer.has_ip_header else b""
        arrived = gateways.b.receive(*(raw + sent[number].packet for number in order))
        assert [bytes(IPvX(octets)[UDP].payload) for octets in arrived] == [
            payloads[number] for number in order
        ]
        assert gateways.b.drops_in() == {}


@given(
    st.booleans(),
    st.sampled_from([0, 2**31, 2**32 - 60, 2**32 - 1 - 2**29 - 40]),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 3)), max_size=12),
)
@slow
def test_no_number_is_sent_twice_and_every_threshold_is_reported_once(
    esn: bool, begin: int, turns: list[tuple[int, int, int]]
) -> None:
    """A turn sends packets, then extends the lease by some numbers after a gap."""
    last = 2**64 - 1 if esn else 2**32 - 1
    with pair(V4, esn=esn) as gateways:
        end = begin + 6
        state = gateways.a.install_outbound(gateways.a_out.sa, Lease(begin + 1, end))
        leased = set(range(begin + 1, min(end, last + 1)))
        numbers: list[int] = []
        for count, size, gap in turns:
            before = Counter(gateways.a.events)
            sent = gateways.a.forward(*[packet()] * count)
            numbers += [int.from_bytes(one.packet[8:16]) for one in sent]
            reported = Counter(gateways.a.events) - before
            assert reported[LeaseLow("ab")] <= 1
            first = end + gap
            end = first + size
            state.esp.extend(Lease(first, end))
            state.watch()
            leased |= set(range(first, min(end, last + 1)))
        assert len(set(numbers)) == len(numbers)
        assert numbers == sorted(numbers)
        assert set(numbers) <= leased
        reported = Counter(gateways.a.events)
        assert reported[SoftExpired("ab")] == int(any(n + 1 >= last - last // 8 for n in numbers))
        assert reported[HardExpired("ab")] <= 1
        exhausted = state.drops[DropReason.SEQ_EXHAUSTED]
        assert reported[HardExpired("ab")] == int(exhausted > 0)


@given(st.lists(st.sampled_from(["send", "remove", "install", "policy", "empty"]), max_size=30))
@slow
def test_a_packet_goes_out_exactly_when_the_policy_and_its_sa_are_in_place(
    turns: list[str],
) -> None:
    """Regardless of the contents of the flow cache."""
    with pair(V4) as gateways:
        sa = gateways.a_out.sa
        in_place, installed, spi = True, True, sa.spi
        for turn in turns:
            match turn:
                case "send":
                    sent = gateways.a.forward(packet())
                    assert len(sent) == int(in_place and installed)
                    assert [int.from_bytes(s.packet[:4]) for s in sent] == [spi] * len(sent)
                case "remove":
                    gateways.a.outbound.sas.pop("ab", None)
                    gateways.a.outbound.forget_flows()
                    installed = False
                case "install":
                    spi += 1
                    gateways.a.install_outbound(replace(sa, spi=spi))
                    installed = True
                case "policy":
                    gateways.a.outbound.replace_policies([protect("ab", "ab", V4)])
                    in_place = True
                case "empty":
                    gateways.a.outbound.replace_policies([])
                    in_place = False
