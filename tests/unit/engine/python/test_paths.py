"""The packet paths between two gateways with real keys, packet by packet."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption, fragment
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    fragment6,
)
from scapy.packet import Packet, Raw

from esp_gw.engine.base import HardExpired, LeaseLow, SoftExpired
from esp_gw.engine.python import inbound, outbound, too_big
from esp_gw.model import SUITES, Direction, DropReason, Encapsulation, Lease, Mode, PortRange, Suite
from tests.support.builders import OUTER, bypass, discard, make_sa, protect, selector
from tests.support.esp import encap
from tests.support.rig import (
    HEADS,
    HOST_HEADS,
    HOSTS,
    V4,
    V6,
    Pair,
    Side,
    packet,
    pair,
)

WHOLE = {4: IP(src="10.1.0.1", dst="10.2.0.1", flags="DF"), 6: HEADS[6]}
"""Heads of packets that may not be fragmented."""
both_versions = pytest.mark.parametrize("version", [4, 6])
encapsulations = pytest.mark.parametrize("encapsulation", Encapsulation)


@pytest.fixture
def tunnel() -> Iterator[Pair]:
    with pair(V4, V6) as gateways:
        yield gateways


@pytest.fixture(params=[4, 6])
def transport(request: pytest.FixtureRequest) -> Iterator[Pair]:
    version = request.param
    with pair(HOSTS[version], mode=Mode.TRANSPORT, version=version) as gateways:
        yield gateways


def version_of(gateways: Pair) -> int:
    return gateways.a_out.sa.local.version


# Round trips


@both_versions
@encapsulations
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("suite", SUITES.values(), ids=str)
def test_a_tunnel_carries_packets_of_both_versions_unchanged(
    suite: Suite, outer: int, encapsulation: Encapsulation, version: int
) -> None:
    with pair(V4, V6, version=outer, encapsulation=encapsulation, suite=suite) as gateways:
        for size in (0, 1, 2, 3, 1400):
            octets = packet(HEADS[version], bytes(size))
            assert gateways.a_to_b(octets) == [octets]
        assert gateways.a_out.packets == gateways.b_in.packets == 5
        assert (
            gateways.a_out.bytes
            == gateways.b_in.bytes
            == 5 * (len(packet(HEADS[version])) - 5) + 1406
        )
        assert gateways.b_to_a(packet(IP(src="10.2.0.1", dst="10.1.0.1"))) != []


@encapsulations
@both_versions
@pytest.mark.parametrize(
    "payload",
    [UDP(sport=1, dport=2) / b"data", TCP(sport=1, dport=2) / b"odd"],
    ids=["udp", "tcp"],
)
def test_transport_mode_rebuilds_the_header_so_that_every_checksum_holds(
    payload: Packet, version: int, encapsulation: Encapsulation
) -> None:
    head = HOST_HEADS[version].copy()
    setattr(head, "tos" if version == 4 else "tc", 0xB8)
    octets = bytes(head / payload)
    with pair(
        HOSTS[version], mode=Mode.TRANSPORT, version=version, encapsulation=encapsulation
    ) as gateways:
        (arrived,) = gateways.a_to_b(octets)
        assert gateways.a_out.bytes == gateways.b_in.bytes == len(octets)
    received = type(head)(arrived)
    assert (received.src, received.dst) == (head.src, head.dst)
    assert (received.tos if version == 4 else received.tc) == 0xB8
    assert bytes(received.payload) == bytes(type(head)(octets).payload)
    rebuilt = received.copy()
    for layer in (rebuilt, rebuilt.payload):
        if hasattr(layer, "chksum"):
            del layer.chksum
    assert bytes(rebuilt) == arrived, "a checksum is wrong"


def test_the_addresses_of_transport_mode_are_the_sas_and_not_the_datagrams() -> None:
    with pair(HOSTS[4], mode=Mode.TRANSPORT) as gateways:
        (sent,) = gateways.a.forward(packet(HOST_HEADS[4]))
        (arrived,) = gateways.b.receive(sent.packet, address=("203.0.113.77", 61000))
        assert IP(arrived).src == OUTER[4][0]


@pytest.mark.parametrize("tos", [0, 0xB9, 0x02])
def test_the_traffic_class_is_copied_to_the_outer_packet(tunnel: Pair, tos: int) -> None:
    head = HEADS[4].copy()
    head.tos = tos
    assert [sent.tos for sent in tunnel.a.forward(packet(head))] == [tos]


def test_padding_behind_the_inner_packet_is_trimmed(tunnel: Pair) -> None:
    """TFC padding (RFC 4303 2.7)."""
    octets = packet()
    assert tunnel.b.receive(encap(tunnel.a_out.esp, octets + bytes(500))) == [octets]
    assert tunnel.b_in.bytes == len(octets)


# Outbound: policies and drops


def test_a_packet_that_matches_no_policy_is_dropped(tunnel: Pair) -> None:
    assert tunnel.a.forward(packet(IP(src="10.1.0.1", dst="10.3.0.1"))) == []
    assert tunnel.a.drops_out() == {DropReason.NO_POLICY: 1}


def test_a_new_spd_is_in_force_for_the_next_packet(tunnel: Pair) -> None:
    spds = {
        DropReason.POLICY_DISCARD: [discard("d", V4), tunnel.policy],
        DropReason.POLICY_BYPASS: [bypass("b", V4), tunnel.policy],
        DropReason.NO_SA: [protect("p", "gone", V4)],
        DropReason.NO_POLICY: [],
    }
    assert len(tunnel.a.forward(packet())) == 1
    for number, (reason, spd) in enumerate(spds.items()):
        tunnel.a.outbound.replace_policies(spd)
        assert tunnel.a.forward(packet()) == []
        assert tunnel.a.drops_out()[reason] == 1
        assert tunnel.a.drops_out().total() == number + 1
    tunnel.a.outbound.replace_policies([tunnel.policy])
    assert len(tunnel.a.forward(packet())) == 1


def test_an_old_policy_does_not_send_into_a_new_sa(tunnel: Pair) -> None:
    """While a reload replaces SAs, the SA that a policy names may lead to another peer."""
    assert len(tunnel.a.forward(packet())) == 1
    other = make_sa("ab", Direction.OUTBOUND, 0x3000, selector("10.1.0.0/24", "10.9.0.0/24"))
    tunnel.a.install_outbound(other)
    assert tunnel.a.forward(packet()) == []
    assert tunnel.a.drops_out() == {DropReason.SELECTOR_MISMATCH: 1}


def test_the_flow_cache_is_bounded_and_correct_after_it_is_cleared(
    tunnel: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "MAX_FLOWS", 4)
    monkeypatch.setattr(inbound, "MAX_FLOWS", 4)
    for port in range(20):
        octets = packet(dport=port)
        assert tunnel.a_to_b(octets) == [octets]
        assert len(tunnel.a.outbound._flows) <= 4
        assert len(tunnel.b_in.flows) <= 4
    assert tunnel.a.forward(packet(IP(src="10.1.0.1", dst="10.3.0.1"))) == []


@pytest.mark.parametrize("size", [0, 1, 19])
def test_what_is_no_packet_is_malformed(tunnel: Pair, size: int) -> None:
    if size:
        tunnel.a.forward(packet()[:size])
    tunnel.a.forward(packet()[:-1], packet() + b"x")
    assert tunnel.a.drops_out() == {DropReason.MALFORMED_INNER: 2 + bool(size)}


@pytest.mark.parametrize(
    "reason", [DropReason.QUEUE_FULL, DropReason.SEND_ERROR, DropReason.TOO_BIG]
)
def test_a_packet_that_the_socket_refuses_counts_only_as_a_drop(
    tunnel: Pair, reason: DropReason, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_big, "path_mtu", lambda *_: None)
    tunnel.a.outer.verdicts.append(reason)
    assert tunnel.a.forward(packet(WHOLE[4])) == []
    assert (tunnel.a_out.packets, tunnel.a_out.bytes) == (0, 0)
    assert tunnel.a_out.drops == {reason: 1}
    assert tunnel.a_out.esp.next_seq == 2, "the number was spent"


def test_a_packet_that_is_too_big_reports_the_path_mtu(
    tunnel: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_big, "path_mtu", lambda *_: 1400)
    tunnel.a.outer.verdicts.append(DropReason.TOO_BIG)
    tunnel.a.forward(packet(WHOLE[4]))
    (event,) = tunnel.a.events
    assert (event.remote, event.mtu) == (ip_address("192.0.2.2"), 1400)


@pytest.mark.parametrize(("size", "passes"), [(1280 - 48, True), (1281 - 48, False)])
def test_an_ipv6_packet_up_to_the_minimum_mtu_is_fragmented_outside(
    tunnel: Pair, size: int, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(too_big, "path_mtu", lambda *_: None)
    tunnel.a.outer.verdicts.append(DropReason.TOO_BIG)
    octets = packet(HEADS[6], bytes(size))
    sent = tunnel.a.forward(octets)
    assert [s.may_fragment for s in sent] == [True] * passes
    assert tunnel.a_out.esp.next_seq == 2
    assert [tunnel.b.receive(s.packet) for s in sent] == [[octets]] * passes
    assert tunnel.a.drops_out() == ({} if passes else {DropReason.TOO_BIG: 1})


# Leases and lifetimes


def lengths(side: Side, count: int) -> list[int]:
    return [len(side.forward(packet())) for _ in range(count)]


def test_a_low_lease_is_reported_once_and_again_after_an_extension(tunnel: Pair) -> None:
    state = tunnel.a.install_outbound(tunnel.a_out.sa, Lease(1, 11))
    lengths(tunnel.a, 4)
    assert tunnel.a.events == []
    assert lengths(tunnel.a, 8) == [1] * 6 + [0] * 2
    assert tunnel.a.events == [LeaseLow("ab")]
    assert state.drops == {DropReason.LEASE_EXHAUSTED: 2}
    state.esp.extend(Lease(50, 60))
    state.watch()
    assert lengths(tunnel.a, 11) == [1] * 10 + [0]
    assert tunnel.a.events == [LeaseLow("ab")] * 2


@pytest.mark.parametrize("low_first", [True, False])
def test_each_sequence_number_threshold_is_reported_once(low_first: bool) -> None:
    """2**32 - 1 numbers without ESN: soft at seven eighths, hard after the last number."""
    with pair(V4, esn=False) as gateways:
        side = gateways.a
        soft = 2**32 - 1 - (2**32 - 1) // 8
        first = soft - 6 if low_first else soft - 2
        state = side.install_outbound(gateways.a_out.sa, Lease(first, first + 10))
        assert lengths(side, 12) == [1] * 10 + [0] * 2
        events = [LeaseLow("ab"), SoftExpired("ab")]
        assert side.events == (events if low_first else events[::-1])
        state.esp.extend(Lease(2**32 - 4, 2**32))
        state.watch()
        side.events.clear()
        assert lengths(side, 7) == [1] * 4 + [0] * 3
        assert side.events == [LeaseLow("ab"), HardExpired("ab")]
        assert state.drops == {DropReason.LEASE_EXHAUSTED: 2, DropReason.SEQ_EXHAUSTED: 3}


# Transport mode: fragments and headers


def fragments(head: Packet, payload: bytes, size: int = 800) -> list[bytes]:
    body = UDP(sport=1000, dport=2000) / Raw(payload)
    if head.version == 4:
        return [bytes(part) for part in fragment(IP(bytes(head / body)), size)]
    whole = IPv6(bytes(head / body))
    with_header = head / IPv6ExtHdrFragment(id=9) / whole.payload
    return [bytes(part) for part in fragment6(with_header, size)]


def test_reassembled_fragments_are_sent_as_one_packet_that_may_be_fragmented(
    transport: Pair,
) -> None:
    version = version_of(transport)
    parts = fragments(HOST_HEADS[version], bytes(3000))
    for order in itertools.islice(itertools.permutations(parts), 0, None, 7):
        sent = transport.a.forward(*order)
        assert [s.may_fragment for s in sent] == [True]
        (arrived,) = transport.b.receive(sent[0].packet)
        assert type(HOST_HEADS[version])(arrived)[UDP].payload.load == bytes(3000)
    assert [s.may_fragment for s in transport.a.forward(packet(HOST_HEADS[version]))] == [False]
    assert transport.a.drops_out() == {}


def test_overlapping_fragments_are_dropped_and_counted(transport: Pair) -> None:
    first, second, *_ = fragments(HOST_HEADS[version_of(transport)], bytes(3000))
    assert transport.a.forward(first, second, second) == []
    assert transport.a_out.drops == {DropReason.FRAGMENT: 3}


def test_a_reassembled_packet_goes_where_its_ports_say() -> None:
    """Later fragments have no ports and match a wider policy than the whole packet."""
    with pair(HOSTS[4], mode=Mode.TRANSPORT) as gateways:
        narrow = selector("192.0.2.1/32", "192.0.2.2/32", 17, None, PortRange(2000, 2000))
        special = replace(gateways.a_out.sa, name="special", spi=0x3000, selectors=(narrow,))
        state = gateways.a.install_outbound(special)
        gateways.a.outbound.replace_policies(
            [protect("special", "special", narrow), gateways.policy]
        )
        for order in itertools.permutations(fragments(HOST_HEADS[4], bytes(1200))):
            assert len(gateways.a.forward(*order)) == 1
        assert (state.packets, gateways.a_out.packets) == (2, 0)


@both_versions
def test_fragments_are_reassembled_before_ports_are_matched(version: int) -> None:
    """Only the first fragment has the ports that the policy names."""
    ends = HOSTS[version]
    for port, passes in ((2000, True), (2001, False)):
        with_port = replace(ends, protocol=17, remote_port=PortRange(port, port))
        with pair(with_port, mode=Mode.TRANSPORT, version=version) as gateways:
            orders = list(itertools.permutations(fragments(HOST_HEADS[version], bytes(1200))))
            for order in orders:
                sent = gateways.a.forward(*order)
                assert [s.may_fragment for s in sent] == [True] * passes
                for s in sent:
                    (arrived,) = gateways.b.receive(s.packet)
                    assert type(HOST_HEADS[version])(arrived)[UDP].payload.load == bytes(1200)
            assert gateways.b.drops_in() == {}
            assert gateways.a.drops_out() == ({} if passes else {DropReason.NO_POLICY: len(orders)})


def test_a_policy_without_ports_decides_for_every_fragment_before_any_waits() -> None:
    with_port = replace(HOSTS[4], protocol=17, remote_port=PortRange(2000, 2000))
    parts = fragments(HOST_HEADS[4], bytes(1200))
    with pair(with_port, mode=Mode.TRANSPORT) as gateways:
        gateways.a.outbound.replace_policies([discard("d", HOSTS[4]), gateways.policy])
        assert gateways.a.forward(*parts) == []
        assert gateways.a.drops_out() == {DropReason.POLICY_DISCARD: len(parts)}


def test_a_tunnel_with_ports_carries_the_fragments_behind_the_one_that_has_them() -> None:
    """RFC 4301 7.3: a later fragment, without ports, goes where the first one went."""
    with_port = replace(V4, protocol=17, remote_port=PortRange(2000, 2000))
    first, *later = fragments(HEADS[4], bytes(1800))
    with pair(with_port) as gateways:
        assert gateways.a_to_b(*later) == []
        assert gateways.a.drops_out() == {DropReason.NO_POLICY: len(later)}
        assert gateways.a_to_b(first, *later) == [first, *later]
        assert gateways.a.drops_out() == {DropReason.NO_POLICY: len(later)}


def test_a_tunnel_carries_fragments_as_they_are(tunnel: Pair) -> None:
    parts = fragments(HEADS[4], bytes(1200))
    assert tunnel.a_to_b(*parts) == parts


@pytest.mark.parametrize(
    ("head", "supported"),
    [
        (IP(src=OUTER[4][0], dst=OUTER[4][1], options=[IPOption(b"\x94\x04\x00\x00")]), False),
        (HOST_HEADS[6] / IPv6ExtHdrHopByHop(), False),
        (HOST_HEADS[6] / IPv6ExtHdrRouting(addresses=["fd00::9"]), False),
        (HOST_HEADS[6] / IPv6ExtHdrDestOpt() / IPv6ExtHdrFragment(m=1), False),
        (HOST_HEADS[6] / IPv6ExtHdrDestOpt(), True),
    ],
    ids=["options", "hop-by-hop", "routing", "fragment behind another", "destination"],
)
def test_headers_that_no_socket_can_put_before_esp_are_not_supported(
    head: Packet, supported: bool
) -> None:
    with pair(HOSTS[head.version], mode=Mode.TRANSPORT, version=head.version) as gateways:
        octets = packet(head, bytes(11))
        arrived = gateways.a_to_b(octets)
        if supported:
            assert arrived == [octets]
        else:
            assert gateways.a_out.drops == {DropReason.UNSUPPORTED_HEADER: 1}
            assert gateways.a_out.esp.next_seq == 1, "no number is spent on it"
