"""A set of prefixes against a look at each."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.model import IPNetwork
from esp_gw.network.prefix_set import PrefixSet


@st.composite
def prefixes(draw: st.DrawFn) -> IPNetwork:
    length = draw(st.sampled_from([0, *range(26, 33)]))
    number = int(ip_address("10.0.0.0")) + draw(st.integers(0, 63))
    return IPv4Network((number, length), strict=False)


SIXES = [ip_network("::/0"), ip_network("fd00::/64")]


@given(st.lists(st.tuples(prefixes() | st.sampled_from(SIXES), st.booleans())))
@settings(max_examples=200)
def test_prefixes_meet_as_networks_overlap(steps: list[tuple[IPNetwork, bool]]) -> None:
    found, there = PrefixSet(), Counter[IPNetwork]()
    for prefix, goes in steps:
        if goes and there[prefix]:
            there[prefix] -= 1
            found.count(prefix, -1)
        else:
            there[prefix] += 1
            found.count(prefix, 1)
        now = [each for each, count in there.items() if count]
        for each, _ in steps:
            assert (each in found) == (each in now)
            assert found.overlaps(each) == any(
                other.version == each.version and other.overlaps(each) for other in now
            )
        for version in (4, 6):
            longer = any(each.version == version and each.prefixlen for each in now)
            assert found.has_longer(version) == longer
