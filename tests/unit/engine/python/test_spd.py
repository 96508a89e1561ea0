"""Selectors and the SPD, compared with a model: containment in prefixes and ranges."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.engine.python.spd import CompiledSelector, Spd
from esp_gw.engine.python.wire import NO_PORT, Inner
from esp_gw.model import Policy, PortRange, Selector
from tests.support.builders import bypass, discard, protect, selector


def packet(
    src: str, dst: str, protocol: int = 17, src_port: int = NO_PORT, dst_port: int = NO_PORT
) -> Inner:
    version = ip_address(src).version
    return Inner(
        version,
        int(ip_address(src)),
        int(ip_address(dst)),
        protocol,
        src_port,
        dst_port,
        0,
        0,
        False,
    )


def in_range(ports: PortRange | None, port: int) -> bool:
    return ports is None or (port != NO_PORT and ports.first <= port <= ports.last)


def model_matches(wanted: Selector, inner: Inner) -> bool:
    """Model of RFC 4301 4.4.1.1 for an outbound packet."""
    make = type(wanted.local.network_address)
    return (
        wanted.local.version == inner.version
        and make(inner.src) in wanted.local
        and make(inner.dst) in wanted.remote
        and (wanted.protocol is None or wanted.protocol == inner.protocol)
        and in_range(wanted.local_port, inner.src_port)
        and in_range(wanted.remote_port, inner.dst_port)
    )


PREFIXES = {
    4: ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/24", "10.1.0.128/25", "10.1.0.1/32", "10.1.1.0/24"],
    6: ["::/0", "fd00::/8", "fd00:1::/64", "fd00:1::1/128", "::a01:0/120", "8000::/1"],
}
ADDRESSES = {
    4: [
        "10.1.0.0",
        "10.1.0.1",
        "10.1.0.127",
        "10.1.0.128",
        "10.1.1.0",
        "9.255.255.255",
        "11.0.0.0",
        "0.0.0.0",
    ],
    6: ["fd00:1::", "fd00:1::1", "fd00:1:0:1::", "fcff::", "::a01:1", "::", "8000::"],
}
port_numbers = st.sampled_from([0, 1, 79, 80, 81, 65534, 65535])
port_ranges = st.none() | st.builds(
    lambda a, b: PortRange(min(a, b), max(a, b)), port_numbers, port_numbers
)
protocols = st.sampled_from([1, 6, 17])


@st.composite
def selectors(draw: st.DrawFn) -> Selector:
    version = draw(st.sampled_from([4, 6]))
    prefixes = st.sampled_from(PREFIXES[version]).map(ip_network)
    return Selector(
        draw(prefixes),
        draw(prefixes),
        draw(st.none() | protocols),
        draw(port_ranges),
        draw(port_ranges),
    )


@st.composite
def inner_packets(draw: st.DrawFn) -> Inner:
    addresses = st.sampled_from(ADDRESSES[draw(st.sampled_from([4, 6]))])
    ports = (NO_PORT, NO_PORT)
    if draw(st.booleans()):
        ports = (draw(port_numbers), draw(port_numbers))
    return packet(draw(addresses), draw(addresses), draw(protocols), *ports)


def reversed_packet(inner: Inner) -> Inner:
    return inner._replace(
        src=inner.dst, dst=inner.src, src_port=inner.dst_port, dst_port=inner.src_port
    )


@given(selectors(), inner_packets())
def test_a_selector_matches_what_its_prefixes_and_ranges_hold(
    wanted: Selector, inner: Inner
) -> None:
    assert CompiledSelector(wanted).matches_outbound(inner) is model_matches(wanted, inner)


@given(selectors(), inner_packets())
def test_inbound_a_selector_matches_the_answer(wanted: Selector, inner: Inner) -> None:
    answer = reversed_packet(inner)
    assert CompiledSelector(wanted).matches_inbound(answer) is model_matches(wanted, inner)


@given(st.lists(st.lists(selectors(), min_size=1, max_size=3), max_size=5), inner_packets())
def test_the_first_policy_in_order_that_matches_is_found(
    entries: list[list[Selector]], inner: Inner
) -> None:
    policies = [Policy(str(n), discard("").action, tuple(s)) for n, s in enumerate(entries)]
    expected = next(
        (p for p in policies if any(model_matches(s, inner) for s in p.selectors)), None
    )
    assert Spd(policies).lookup(inner) is expected


@given(
    st.lists(selectors(), max_size=6),
    inner_packets(),
    st.lists(st.tuples(port_numbers, port_numbers), min_size=1, max_size=5),
)
def test_a_fragment_has_the_candidates_of_its_packet_whatever_the_ports(
    wanted: list[Selector], inner: Inner, ports: list[tuple[int, int]]
) -> None:
    spd = Spd([discard(str(number), entry) for number, entry in enumerate(wanted)])
    candidates = list(spd.candidates(inner))
    for src_port, dst_port in ports:
        whole = inner._replace(src_port=src_port, dst_port=dst_port)
        assert list(spd.candidates(whole)) == candidates
        found = spd.lookup(whole)
        assert found is None or found in candidates
    portless = [p for p in candidates if p.selectors[0].local_port == p.selectors[0].remote_port]
    certain = [p for p in portless if p.selectors[0].local_port is None]
    assert certain in ([], candidates[-1:]), "a policy without ports must be the last candidate"


@given(st.lists(selectors(), max_size=6), inner_packets())
def test_candidates_come_in_order_up_to_the_first_that_needs_no_ports(
    wanted: list[Selector], inner: Inner
) -> None:
    spd = Spd([discard(str(number), entry) for number, entry in enumerate(wanted)])
    expected = []
    for number, entry in enumerate(wanted):
        if model_matches(replace(entry, local_port=None, remote_port=None), inner):
            expected.append(str(number))
            if (entry.local_port, entry.remote_port) == (None, None):
                break
    assert [policy.name for policy in spd.candidates(inner)] == expected


def test_the_order_decides_between_policies_that_both_match() -> None:
    narrow = discard("narrow", selector("10.1.0.0/24", "10.2.0.9/32"))
    wide = protect("wide", "t/out", selector("10.1.0.0/24", "10.2.0.0/24"))
    inner = packet("10.1.0.1", "10.2.0.9")
    assert Spd([narrow, wide]).lookup(inner) is narrow
    assert Spd([wide, narrow]).lookup(inner) is wide


def test_an_empty_spd_matches_no_packet() -> None:
    assert Spd([]).lookup(packet("10.1.0.1", "10.2.0.1")) is None


@pytest.mark.parametrize("ports", [PortRange(), PortRange(0, 0)])
def test_a_port_range_does_not_match_a_packet_without_ports(ports: PortRange) -> None:
    policy = bypass("b", selector("10.0.0.0/8", "10.0.0.0/8", 17, None, ports))
    assert Spd([policy]).lookup(packet("10.1.0.1", "10.2.0.1")) is None
    assert Spd([policy]).lookup(packet("10.1.0.1", "10.2.0.1", 17, 5, 0)) is policy


def test_an_ipv6_packet_with_the_number_of_an_ipv4_address_is_not_the_same() -> None:
    policy = discard("d", selector("0.0.0.0/0", "0.0.0.0/0"))
    assert Spd([policy]).lookup(packet("::10.1.0.1", "::10.2.0.1")) is None
