"""Conflicts that are looked for where a state differs from the last one, against all of it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.config.conflicts import find_conflicts
from esp_gw.daemon.checked import Checked
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.model import Action, Direction, Policy, Sa
from tests.support.builders import make_sa, selector

NETS = [selector("10.1.0.0/24", f"10.{number}.0.0/16") for number in range(2, 6)]
NETS.append(selector("10.1.0.0/24", "10.2.0.0/15"))

sas = st.builds(
    lambda number, way, spi, key, net, peer: make_sa(
        f"s{number}", way, 0x1000 + spi, NETS[net], key=key, remote=f"192.0.2.{peer}"
    ),
    st.integers(0, 5),
    st.sampled_from(list(Direction)),
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(0, 4),
    st.integers(2, 3),
)
policies = st.builds(
    lambda number, action, net, sa: Policy(
        f"p{number}", action, (NETS[net],), sas=(f"s{sa}",) if action is Action.PROTECT else ()
    ),
    st.integers(0, 5),
    st.sampled_from([Action.PROTECT, Action.PROTECT, Action.DISCARD, Action.BYPASS]),
    st.integers(0, 4),
    st.integers(0, 5),
)
changes = st.lists(sas | policies | st.text("sp", min_size=1, max_size=1), min_size=1, max_size=3)


@given(st.lists(changes, max_size=12))
@settings(max_examples=200, deadline=None)
def test_a_state_has_a_conflict_if_the_whole_of_it_has_one(
    steps: list[list[Sa | Policy | str]],
) -> None:
    checked, there = Checked(), Desired(GatewaySettings())
    for step in steps:
        wanted = there
        for each in step:
            wanted = _changed(wanted, each)
        found, whole = checked.conflicts(wanted), find_conflicts(wanted.sas, wanted.policies)
        assert bool(found) == bool(whole), whole
        if not whole:
            checked.accept(wanted)
            there = wanted


def _changed(there: Desired, each: Sa | Policy | str) -> Desired:
    """Put an entry in the place of the one of its name, or drop the oldest of a kind."""
    if each == "s":
        return replace(there, sas=there.sas[1:])
    if each == "p":
        return replace(there, policies=there.policies[1:])
    if isinstance(each, Sa):
        others = tuple(sa for sa in there.sas if sa.name != each.name)
        return replace(there, sas=(*others, each))
    assert isinstance(each, Policy)
    names = [policy.name for policy in there.policies]
    if each.name in names:
        swapped = (each if policy.name == each.name else policy for policy in there.policies)
        return replace(there, policies=tuple(swapped))
    return replace(there, policies=(*there.policies, each))
