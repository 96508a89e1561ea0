"""Policies that stay closed after a session of the owner."""

from __future__ import annotations

from dataclasses import replace

from esp_gw.daemon.left_policies import LEFT, left_behind, uncovered
from esp_gw.model import Action, Policy
from tests.support.builders import protect, selector

NET = selector("10.1.0.0/16", "10.2.0.0/16")
INSIDE = selector("10.1.1.0/24", "10.2.1.0/24")
BESIDE = selector("10.1.0.0/16", "10.3.0.0/16")


def test_what_protects_or_discards_stays_closed_and_a_bypass_is_gone() -> None:
    policies = (
        Policy("ike:lan", Action.BYPASS, (INSIDE,)),
        protect("ike:net", "ike:00000100/out", NET),
        Policy("ike:no", Action.DISCARD, (BESIDE,)),
    )
    left = left_behind(policies)
    assert [(each.action, each.selectors, each.sas) for each in left] == [
        (Action.PROTECT, (NET,), ()),
        (Action.DISCARD, (BESIDE,), ()),
    ]
    assert all(each.name.startswith(LEFT) for each in left)
    # A second session that ends at once leaves the same, once.
    assert left_behind((*left, *left)) == left


def test_a_standing_policy_stays_one() -> None:
    child = protect("ike:a", "s/out", NET)
    trap = replace(child, name="ike:b", standing=True)
    for policies in ((child, trap), (trap, child)):
        (found,) = left_behind(policies)
        assert found.standing and not found.sas


def test_only_what_closes_all_of_it_takes_its_place() -> None:
    left = left_behind((protect("ike:a", "s/out", NET), protect("ike:b", "s/out", BESIDE)))
    assert uncovered(left, [(Action.PROTECT, INSIDE)]) == left
    assert uncovered(left, [(Action.BYPASS, NET)]) == left
    assert uncovered(left, [(Action.DISCARD, NET)]) == left[1:]
    assert uncovered(left, [(Action.PROTECT, NET), (Action.PROTECT, BESIDE)]) == ()
    assert uncovered(left, [(Action.PROTECT, selector("0.0.0.0/0", "10.2.0.0/15"))]) == ()
    assert uncovered(left, []) == left


def test_a_source_that_is_not_known_is_for_the_new_policies_to_tell() -> None:
    left = left_behind(
        (
            protect("left closed: a", "", selector("0.0.0.0/0", "10.2.0.0/16")),
            protect("left closed: b", "", selector("0.0.0.0/0", "0.0.0.0/0")),
        )
    )
    assert uncovered(left, [(Action.PROTECT, INSIDE)]) == left
    assert uncovered(left, [(Action.PROTECT, NET)]) == left[1:]
    # A default route is closed for the sources alone that its policy has.
    assert uncovered(left, [(Action.PROTECT, selector("10.1.0.0/16", "0.0.0.0/0"))]) == left
    assert uncovered(left, [(Action.PROTECT, selector("0.0.0.0/0", "0.0.0.0/0"))]) == ()
