from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from esp_gw.config.conflicts import Conflict, covers, find_conflicts, overlap
from esp_gw.model import (
    DEFAULT_SUITE,
    SUITES,
    Action,
    Direction,
    Encapsulation,
    KeyMaterial,
    Mode,
    Policy,
    PortRange,
    Sa,
    Selector,
)
from tests.support.builders import selector


def keymat(number: int) -> KeyMaterial:
    return KeyMaterial.from_bytes(bytes([number]) * 36)


OUT = Sa(
    name="b/out",
    direction=Direction.OUTBOUND,
    spi=0x1001,
    suite=DEFAULT_SUITE,
    keymat=keymat(1),
    mode=Mode.TUNNEL,
    encapsulation=Encapsulation.UDP,
    local=ip_address("192.0.2.1"),
    remote=ip_address("192.0.2.2"),
    selectors=(selector(),),
    pair="b/in",
)
IN = replace(
    OUT, name="b/in", direction=Direction.INBOUND, spi=0x1002, keymat=keymat(2), pair="b/out"
)
PROTECT = Policy("b", Action.PROTECT, (selector(),), sas=("b/out",))


def only(conflicts: list[Conflict]) -> Conflict:
    assert len(conflicts) == 1, conflicts
    assert "\n" not in conflicts[0].message
    return conflicts[0]


def test_a_sound_pair_has_no_conflict() -> None:
    assert find_conflicts([OUT, IN], [PROTECT]) == []
    assert find_conflicts([], []) == []


def test_two_peers_that_may_be_anywhere_may_choose_one_spi_and_not_share_ours() -> None:
    anywhere = replace(OUT, remote=ip_address("0.0.0.0"))
    other = replace(anywhere, name="c/out", keymat=keymat(3))
    assert find_conflicts([anywhere, other], []) == []
    ours = replace(IN, remote=anywhere.remote)
    conflict = only(find_conflicts([ours, replace(ours, name="c/in", keymat=keymat(4))], []))
    assert "every inbound SA needs its own" in conflict.message


def test_one_spi_in_both_directions_is_fine() -> None:
    assert find_conflicts([OUT, replace(IN, spi=OUT.spi)], [PROTECT]) == []


def test_two_inbound_sas_with_one_spi() -> None:
    other = replace(IN, name="c/in", keymat=keymat(3), remote=ip_address("192.0.2.9"))
    conflict = only(find_conflicts([IN, other], []))
    assert conflict.names == ("b/in", "c/in")
    assert "0x1002" in conflict.message


def test_two_outbound_sas_with_one_spi_to_one_remote() -> None:
    other = replace(OUT, name="c/out", keymat=keymat(3))
    assert only(find_conflicts([OUT, other], [])).names == ("b/out", "c/out")
    assert find_conflicts([OUT, replace(other, remote=ip_address("192.0.2.9"))], []) == []


def test_duplicate_names_even_of_the_same_object() -> None:
    other = replace(OUT, spi=0x2001, keymat=keymat(3))
    assert only(find_conflicts([OUT, other], [])).names == ("b/out", "b/out")
    assert only(find_conflicts([OUT], [PROTECT, PROTECT])).names == ("b", "b")
    assert find_conflicts([OUT, OUT], []) != []


@pytest.mark.parametrize(
    ("first", "second", "between"),
    [
        (OUT, IN, "inbound and outbound"),
        (OUT, replace(OUT, name="c/out", spi=0x2001), "two outbound"),
        (IN, replace(IN, name="c/in", spi=0x2002), "two inbound"),
        (OUT, replace(OUT, name="c", spi=9999, suite=SUITES["aes256gcm8"]), "two outbound"),
    ],
)
def test_one_key_for_two_sas(first: Sa, second: Sa, between: str) -> None:
    second = replace(second, keymat=KeyMaterial.from_bytes(first.keymat.to_bytes()))
    conflict = only(find_conflicts([first, second], []))
    assert conflict.names == (first.name, second.name)
    assert between in conflict.message
    assert "repeat an IV" in conflict.message
    assert first.keymat.key.hex()[:8] not in conflict.message


def test_one_key_with_another_salt_is_another_key() -> None:
    other = KeyMaterial(OUT.keymat.key, b"salt")
    assert find_conflicts([OUT, replace(IN, keymat=other)], []) == []


@pytest.mark.parametrize(
    "sas", [(), ("gone/out",), ("b/in",), ("b/out", "gone/out"), ("b/out", "b/in")]
)
def test_a_protect_policy_needs_outbound_sas(sas: tuple[str, ...]) -> None:
    conflict = only(find_conflicts([OUT, IN], [replace(PROTECT, sas=sas)]))
    assert "b" in conflict.names


def test_a_bypass_policy_needs_no_sa() -> None:
    assert find_conflicts([], [Policy("x", Action.BYPASS, (selector(),))]) == []


def test_a_policy_wider_than_its_sa() -> None:
    wide = replace(PROTECT, selectors=(selector(), selector(remote="10.2.0.0/23")))
    conflict = only(find_conflicts([OUT], [wide]))
    assert "10.2.0.0/23" in conflict.message
    second = replace(OUT, name="b/out.2", spi=0x1003, keymat=keymat(3), selectors=wide.selectors)
    both = replace(wide, sas=(second.name, OUT.name))
    conflict = only(find_conflicts([second, OUT], [both]))
    assert "more than its SA b/out may" in conflict.message
    narrow = replace(PROTECT, selectors=(selector(remote="10.2.0.7/32", protocol=6),))
    assert find_conflicts([OUT], [narrow]) == []


@pytest.mark.parametrize("action", [Action.PROTECT, Action.DISCARD])
def test_a_bypass_after_a_guard_that_it_overlaps(action: Action) -> None:
    guard = replace(PROTECT, action=action, sas=("b/out",) if action is Action.PROTECT else ())
    bypass = Policy("x", Action.BYPASS, (selector("0.0.0.0/0", "10.2.0.128/25"),))
    conflict = only(find_conflicts([OUT], [guard, bypass]))
    assert conflict.names == ("b", "x")
    assert "before" in conflict.message
    assert find_conflicts([OUT], [bypass, guard]) == []
    apart = replace(bypass, selectors=(selector("0.0.0.0/0", "10.3.0.0/24"),))
    assert find_conflicts([OUT], [guard, apart]) == []


def test_a_bypass_after_a_bypass_is_fine() -> None:
    first = Policy("x", Action.BYPASS, (selector(),))
    assert find_conflicts([], [first, replace(first, name="y")]) == []


def test_transport_mode_carries_the_outer_hosts_only() -> None:
    good = selector("192.0.2.1/32", "192.0.2.2/32", 6)
    sa = replace(OUT, mode=Mode.TRANSPORT, selectors=(good,))
    assert find_conflicts([sa], []) == []
    for bad in (
        selector("192.0.2.0/24", "192.0.2.2/32"),
        selector("192.0.2.1/32", "192.0.2.3/32"),
        selector("192.0.2.2/32", "192.0.2.1/32"),
    ):
        wrong = replace(sa, selectors=(good, bad))
        assert "transport" in only(find_conflicts([wrong], [])).message


TCP_22 = selector(protocol=6, local_port=PortRange(22, 22))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (selector(), selector(protocol=6), True),
        (selector(protocol=17), selector(protocol=6), False),
        (TCP_22, selector(), True),
        (TCP_22, selector(protocol=6, local_port=PortRange(22, 30)), True),
        (TCP_22, selector(protocol=6, local_port=PortRange(23, 30)), False),
        (TCP_22, selector(protocol=6, remote_port=PortRange(22, 22)), True),
        (selector(local_port=PortRange(22, 22)), selector(protocol=1), False),
        (selector(local_port=PortRange(22, 22)), selector(protocol=17), True),
        (selector("10.1.0.0/24", "0.0.0.0/0"), selector("0.0.0.0/0", "10.2.0.0/24"), True),
        (selector("10.1.0.0/25"), selector("10.1.0.128/25"), False),
        (selector("::/0", "::/0"), selector("0.0.0.0/0", "0.0.0.0/0"), False),
    ],
)
def test_overlap_is_symmetric(one: Selector, other: Selector, expected: bool) -> None:
    assert overlap(one, other) is expected
    assert overlap(other, one) is expected


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        (selector(), TCP_22, True),
        (TCP_22, selector(), False),
        (selector(protocol=6), selector(), False),
        (selector(local_port=PortRange()), selector(), False),
        (selector(local_port=PortRange()), TCP_22, True),
        (selector(local_port=PortRange(1, 22)), TCP_22, True),
        (selector(local_port=PortRange(1, 21)), TCP_22, False),
        (selector("10.1.0.0/25"), selector(), False),
        (selector("0.0.0.0/0", "0.0.0.0/0"), selector(), True),
        (selector("::/0", "::/0"), selector(), False),
    ],
)
def test_covers(wide: Selector, narrow: Selector, expected: bool) -> None:
    assert covers(wide, narrow) is expected
