"""Ranges against a longest match in every address of a small space."""

from __future__ import annotations

import itertools
from ipaddress import IPv4Network, ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.model import IPNetwork
from esp_gw.network.ranges import ranges

# All prefixes of 10.0.0.0/26: small enough to try each address, and one on each side.
LENGTHS = range(26, 33)
SPACE = [int(ip_address("10.0.0.0")) + offset for offset in range(-1, 65)]


@st.composite
def prefixes(draw: st.DrawFn) -> IPNetwork:
    length = draw(st.sampled_from(LENGTHS))
    number = int(ip_address("10.0.0.0")) + draw(st.integers(0, 63))
    return IPv4Network((number, length), strict=False)


sets = st.frozensets(prefixes(), max_size=6)


@given(sets, sets)
@settings(max_examples=300)
def test_an_address_is_covered_if_its_longest_prefix_is_included(
    included: frozenset[IPNetwork], excluded: frozenset[IPNetwork]
) -> None:
    found = ranges(included, excluded)
    for number in SPACE:
        address = ip_address(number)
        around = [prefix for prefix in included | excluded if address in prefix]
        longest = max(around, key=lambda prefix: prefix.prefixlen, default=None)
        covering = [each for each in found if each.first <= address <= each.last]
        assert len(covering) == (longest in included)


@given(sets, sets)
def test_ranges_are_disjoint_ascending_and_not_adjacent(
    included: frozenset[IPNetwork], excluded: frozenset[IPNetwork]
) -> None:
    found = ranges(included, excluded)
    for before, after in itertools.pairwise(found):
        assert int(before.last) + 1 < int(after.first)


def test_the_whole_space_of_both_versions_is_one_range_each() -> None:
    everything = ranges([ip_network("::/0"), ip_network("0.0.0.0/0")])
    assert [(str(each.first), str(each.last)) for each in everything] == [
        ("0.0.0.0", "255.255.255.255"),
        ("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ]


def test_a_hole_inside_a_prefix_has_a_prefix_of_its_own() -> None:
    found = ranges(
        [ip_network("fd00::/16"), ip_network("fd00:1:2::/48")], [ip_network("fd00:1::/32")]
    )
    assert [(str(each.first), str(each.last)) for each in found] == [
        ("fd00::", "fd00:0:ffff:ffff:ffff:ffff:ffff:ffff"),
        ("fd00:1:2::", "fd00:1:2:ffff:ffff:ffff:ffff:ffff"),
        ("fd00:2::", "fd00:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ]
