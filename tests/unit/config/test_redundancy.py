"""Policies that never match are told of, with the policy that takes their packets."""

from __future__ import annotations

from dataclasses import replace

from esp_gw.config.redundancy import find_redundant
from esp_gw.model import Policy, PortRange
from tests.support.builders import bypass, discard, protect, selector


def told(*policies: Policy) -> dict[str, str]:
    return {each.name: each.message for each in find_redundant(policies)}


def test_a_policy_that_an_earlier_one_covers_never_matches() -> None:
    wide = discard("wide", selector("10.0.0.0/8", "10.2.0.0/16"))
    narrow = protect("narrow", "n/out", selector("10.1.0.0/24", "10.2.3.0/24"))
    assert told(wide, narrow) == {
        "narrow": "never matches: wide before it takes 10.0.0.0/8 to 10.2.0.0/16; narrow wide, or "
        "put narrow in front"
    }
    assert told(narrow, wide) == {}


def test_what_an_earlier_one_covers_in_part_still_matches() -> None:
    for selectors in (
        (selector("10.1.0.0/24", "10.2.0.0/16"),),
        (selector("10.1.0.0/24", "10.2.0.0/24"), selector("10.1.0.0/24", "10.3.0.0/24")),
        (selector("fd00:1::/64", "fd00:2::/64"),),
    ):
        ports = selector("10.1.0.0/24", "10.2.0.0/16", 6, None, PortRange(25, 25))
        first = bypass("first", selector("10.1.0.0/24", "10.2.0.0/24"), ports)
        assert told(first, protect("second", "s/out", *selectors)) == {}


def test_several_earlier_ones_may_cover_it_together() -> None:
    one, other = selector(remote="10.2.0.0/24"), selector(remote="10.3.0.0/24")
    policies = (discard("a", one), discard("b", other), protect("c", "c/out", one, other))
    assert list(told(*policies)) == ["c"]


def test_two_tunnels_with_the_same_prefixes_are_named() -> None:
    first, second = (replace(protect(n, f"{n}/out", selector()), tunnel=n) for n in ("a", "b"))
    assert told(first, second) == {
        "b": "sends nothing: the tunnel a has the same prefixes, 10.1.0.0/24 to 10.2.0.0/24, and "
        "comes first; give each its own, or remove one"
    }


def test_thousands_of_tunnels_are_compared_by_their_prefixes() -> None:
    policies = [
        protect(f"t{n}", f"t{n}/out", selector("10.0.0.0/8", f"11.{n >> 8}.{n & 255}.0/24"))
        for n in range(20_000)
    ]
    assert told(*policies, protect("last", "l/out", selector("10.1.0.0/16", "11.9.9.0/25"))) == {
        "last": "never matches: t2313 before it takes 10.0.0.0/8 to 11.9.9.0/24; narrow t2313, or "
        "put last in front"
    }
