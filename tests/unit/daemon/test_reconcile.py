"""The changes between two states and their order, in readable cases."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

from esp_gw.daemon.reconcile import (
    CloseSockets,
    EvictSa,
    InstallInboundSa,
    InstallOutboundSa,
    InstallSa,
    Observed,
    OpenSockets,
    RemoveSa,
    ReplacePolicies,
    RetireSa,
    outer_sockets,
    reconcile,
)
from esp_gw.desired import Desired
from esp_gw.engine.base import OuterSocket
from esp_gw.model import Direction, Encapsulation, Policy, Sa
from esp_gw.network.changes import (
    AddAddress,
    AddGuardRoute,
    AddRoute,
    AddRule,
    Change,
    RemoveAddress,
    RemoveFirewall,
    RemoveRoute,
    RemoveRule,
    ReplaceFirewall,
    SetMtu,
)
from esp_gw.network.objects import Host, Network, RouteKind
from esp_gw.network.plan import plan_network
from tests.support.builders import bypass, desired, make_sa, protect, selector

NOTHING = Observed({}, (), frozenset(), Network(mtu=1500))


def tunnel(name: str = "t", net: int = 2, spi: int = 0x1000) -> tuple[tuple[Sa, Sa], Policy]:
    traffic = selector("10.1.0.0/24", f"10.{net}.0.0/24")
    out = make_sa(f"{name}/out", Direction.OUTBOUND, spi, traffic)
    inbound = make_sa(f"{name}/in", Direction.INBOUND, spi + 1, traffic)
    return (out, inbound), protect(name, out.name, traffic)


def plan(wanted: Desired) -> Network:
    return plan_network(wanted, {}, Host())


def settled(wanted: Desired) -> Observed:
    """Return the observed state that equals `wanted`."""
    return Observed(
        {sa.name: sa for sa in wanted.sas}, wanted.policies, outer_sockets(wanted), plan(wanted)
    )


def changes(wanted: Desired, observed: Observed) -> list[Change]:
    return reconcile(wanted, plan(wanted), observed)


def kinds(found: list[Change]) -> list[str]:
    return [
        type(change).__name__ + (f" {change.route.kind}" if hasattr(change, "route") else "")
        for change in found
    ]


def test_nothing_is_done_where_nothing_differs() -> None:
    sas, policy = tunnel()
    wanted = desired(sas, (policy,), addresses=(ip_address("10.1.0.1"),))
    assert changes(wanted, settled(wanted)) == []
    assert changes(desired(), settled(desired())) == []


def test_a_start_adds_guards_before_routes_and_sas_before_policies() -> None:
    sas, policy = tunnel()
    wanted = desired(sas, (policy,), addresses=(ip_address("10.1.0.1"),), mtu=1400)
    assert kinds(changes(wanted, NOTHING)) == [
        "AddGuardRoute unreachable",
        "AddRule",
        "AddRule",
        "ReplaceFirewall",
        "SetMtu",
        "AddAddress",
        "OpenSockets",
        "InstallInboundSa",
        "InstallOutboundSa",
        "ReplacePolicies",
        "AddRoute tun",
    ]


def test_the_inbound_sa_is_there_before_the_outbound_one() -> None:
    sas, policy = tunnel()
    installed = [
        a.sa for a in changes(desired(sas, (policy,)), NOTHING) if isinstance(a, InstallSa)
    ]
    assert [sa.direction for sa in installed] == [Direction.INBOUND, Direction.OUTBOUND]


def test_a_stop_removes_everything_in_the_reverse_order() -> None:
    sas, policy = tunnel()
    observed = settled(desired(sas, (policy,), addresses=(ip_address("10.1.0.1"),)))
    found = kinds(reconcile(desired(), Network(mtu=observed.network.mtu), observed))
    assert found == [
        "ReplacePolicies",
        "RemoveFirewall",
        "RemoveRule",
        "RemoveRule",
        "RemoveRoute unreachable",
        "RemoveRoute tun",
        "RemoveAddress",
        "RemoveSa",
        "RemoveSa",
        "CloseSockets",
    ]


def test_a_changed_sa_is_installed_again_and_the_other_is_not_touched() -> None:
    sas, policy = tunnel()
    before = settled(desired(sas, (policy,)))
    changed = dataclasses.replace(sas[0], keepalive=20)
    found = changes(desired((changed, sas[1]), (policy,)), before)
    assert found == [InstallOutboundSa(changed, moves=changed.name)]


def test_a_new_path_mtu_replaces_the_route_and_never_removes_it() -> None:
    sas, policy = tunnel()
    wanted = desired(sas, (policy,))
    network = plan_network(wanted, {sas[0].remote: 1400}, Host())
    found = reconcile(wanted, network, settled(wanted))
    assert [type(change) for change in found] == [SetMtu, AddRoute]
    assert found[1] == AddRoute(
        next(route for route in network.routes if route.kind is RouteKind.TUN)
    )


def test_a_prefix_that_is_split_stays_routed_all_the_time() -> None:
    (one, two), policy = tunnel()
    halves = tuple(selector("10.1.0.0/24", f"10.2.0.{half}/25") for half in (0, 128))
    split = desired((one, two), (dataclasses.replace(policy, selectors=halves),))
    whole = desired((one, two), (policy,))
    there = [change for change in kinds(changes(split, settled(whole))) if "Route" in change]
    assert there == [
        *["AddRoute tun"] * 2,
        *["AddCoveredGuardRoute unreachable"] * 2,
        *("RemoveRoute unreachable", "RemoveRoute tun"),
    ]
    back = [change for change in kinds(changes(whole, settled(split))) if "Route" in change]
    assert back == [
        "AddGuardRoute unreachable",
        "AddRoute tun",
        *["RemoveRoute unreachable"] * 2,
        *["RemoveRoute tun"] * 2,
    ]


def test_a_second_tunnel_touches_nothing_of_the_first() -> None:
    (one, policy_one), (two, policy_two) = tunnel(), tunnel("u", 3, 0x2000)
    found = changes(
        desired((*one, *two), (policy_one, policy_two)), settled(desired(one, (policy_one,)))
    )
    assert {a.sa.name for a in found if isinstance(a, InstallSa)} == {"u/in", "u/out"}
    assert {str(a.route.destination) for a in found if isinstance(a, AddRoute)} == {"10.3.0.0/24"}
    assert {type(a) for a in found} == {
        AddGuardRoute,
        AddRoute,
        InstallInboundSa,
        InstallOutboundSa,
        ReplaceFirewall,
        ReplacePolicies,
    }


def test_a_renamed_tunnel_gives_its_spi_to_the_new_name() -> None:
    (sas, policy), (renamed, new_policy) = tunnel(), tunnel("new")
    found = changes(desired(renamed, (new_policy,)), settled(desired(sas, (policy,))))
    assert found == [
        InstallInboundSa(renamed[1], moves="t/in"),
        InstallOutboundSa(renamed[0], moves="t/out"),
        ReplacePolicies((new_policy,)),
    ]


def inbound(name: str, spi: int, key: int) -> Sa:
    return make_sa(name, Direction.INBOUND, spi, key=key)


def test_two_inbound_sas_that_swap_their_spis_move_in_one_step() -> None:
    before = (inbound("a", 300, 1), inbound("b", 301, 2))
    after = (inbound("a", 301, 1), inbound("b", 300, 2))
    found = changes(desired(after), settled(desired(before)))
    assert found == [
        InstallInboundSa(after[0], moves="a"),
        InstallInboundSa(after[1], moves="b"),
    ]


def test_two_sas_that_swap_their_keys_move_to_each_others_name() -> None:
    before = (inbound("a", 300, 1), inbound("b", 301, 2))
    after = (inbound("a", 300, 2), inbound("b", 301, 1))
    found = changes(desired(after), settled(desired(before)))
    assert found == [
        InstallInboundSa(after[0], moves="b"),
        InstallInboundSa(after[1], moves="a"),
    ]


def test_an_sa_with_a_new_key_and_spi_leaves_the_old_one_for_a_grace_time() -> None:
    before, after = inbound("a", 300, 1), inbound("a", 301, 2)
    found = changes(desired((after,)), settled(desired((before,))))
    assert found == [InstallInboundSa(after, retires=before)]
    assert "SPI 0x12c is accepted for 60 s more" in found[0].describe()


def test_an_sa_with_a_new_key_at_its_spi_says_that_packets_are_lost() -> None:
    before, after = inbound("a", 300, 1), inbound("a", 300, 2)
    found = changes(desired((after,)), settled(desired((before,))))
    assert found == [EvictSa("a", 300), InstallInboundSa(after)]
    assert "packets under its key to SPI 0x12c are lost" in found[0].describe()


def retired(sas: tuple[Sa, ...], *old: Sa) -> Observed:
    """Return a settled state in which the SAs `old` have their grace time."""
    there = settled(desired(sas))
    return dataclasses.replace(
        there,
        sas={**there.sas, **{sa.name: sa for sa in old}},
        sockets=there.sockets | outer_sockets(desired(old)),
        retired={sa.name: sa.name.partition("~")[0] for sa in old},
    )


def test_a_retired_sa_keeps_its_socket_and_goes_with_it_after_its_time() -> None:
    elsewhere = dataclasses.replace(inbound("a~0x12c", 300, 1), local=ip_address("192.0.2.7"))
    now = (inbound("a", 301, 2),)
    there = retired(now, elsewhere)
    assert changes(desired(now), there) == []
    over = dataclasses.replace(there, retired={})
    assert changes(desired(now), over) == [
        RemoveSa("a~0x12c"),
        CloseSockets(outer_sockets(desired(now))),
    ]


def test_a_retired_sa_goes_with_its_successor() -> None:
    old, new = inbound("a~0x12c", 300, 1), inbound("a", 301, 2)
    there = retired((new,), old)
    found = changes(desired(), there)
    assert [each for each in found if isinstance(each, RemoveSa)] == [
        RemoveSa("a~0x12c"),
        RemoveSa("a"),
    ]


def test_a_retired_sa_follows_the_selectors_of_its_successor() -> None:
    old, new = inbound("a~0x12c", 300, 1), inbound("a", 301, 2)
    narrow = dataclasses.replace(new, selectors=(selector("10.1.0.0/25", "10.2.0.0/25"),))
    found = changes(desired((narrow,)), retired((new,), old))
    assert found == [
        InstallInboundSa(narrow, moves="a"),
        InstallInboundSa(dataclasses.replace(old, selectors=narrow.selectors), moves=old.name),
    ]


def test_an_sa_with_its_key_under_a_new_spi_leaves_the_old_spi_for_a_grace_time() -> None:
    before, after = inbound("a", 300, 1), inbound("a", 301, 1)
    found = changes(desired((after,)), settled(desired((before,))))
    assert found == [InstallInboundSa(after, retires=before)]
    assert "a new SPI; SPI 0x12c is accepted for 60 s more" in found[0].describe()


def test_sas_that_a_tunnel_has_no_more_retire() -> None:
    one, two = (dataclasses.replace(inbound(n, s, s), tunnel="t") for n, s in (("a", 7), ("b", 8)))
    found = changes(desired((one,)), settled(desired((one, two))))
    assert found == [RetireSa(two, "a")]
    assert "SPI 0x8 is accepted for 60 s more" in found[0].describe()


def test_a_key_that_comes_back_in_its_grace_time_goes_on() -> None:
    old, new = inbound("a", 300, 1), inbound("a", 301, 2)
    there = retired((new,), dataclasses.replace(old, name="a~0x12c"))
    found = changes(desired((old,)), there)
    assert found == [InstallInboundSa(old, moves="a~0x12c", retires=new)]


def test_an_inbound_sa_takes_an_spi_only_after_its_old_holder_is_evicted() -> None:
    before = (inbound("a", 300, 1), inbound("b", 301, 2))
    after = (inbound("a", 301, 1), inbound("b", 302, 3))
    found = changes(desired(after), settled(desired(before)))
    assert found == [
        EvictSa("b", 301),
        InstallInboundSa(after[0], retires=before[0]),
        InstallInboundSa(after[1]),
    ]


def test_an_inbound_sa_that_becomes_outbound_frees_its_spi_first() -> None:
    before = (inbound("a", 300, 1),)
    after = (inbound("b", 300, 2), make_sa("a", Direction.OUTBOUND, 301))
    found = changes(desired(after), settled(desired(before)))
    assert found == [EvictSa("a", 300), InstallInboundSa(after[0]), InstallOutboundSa(after[1])]


def test_an_outbound_sa_may_have_the_spi_of_an_inbound_one() -> None:
    before = (inbound("a", 300, 1),)
    after = (*before, make_sa("b", Direction.OUTBOUND, 300, key=2))
    assert changes(desired(after), settled(desired(before))) == [InstallOutboundSa(after[1])]


def test_new_sockets_come_first_and_old_ones_go_last() -> None:
    sas, policy = tunnel()
    moved = tuple(dataclasses.replace(sa, local=ip_address("192.0.2.7")) for sa in sas)
    found = changes(desired(moved, (policy,)), settled(desired(sas, (policy,))))
    old, new = (
        OuterSocket(ip_address(address), Encapsulation.UDP)
        for address in ("192.0.2.1", "192.0.2.7")
    )
    assert found[0] == OpenSockets(frozenset({old, new}))
    assert found[-1] == CloseSockets(frozenset({new}))


def test_a_new_bypass_policy_keeps_the_rule_of_the_protected_prefixes() -> None:
    sas, policy = tunnel()
    around = bypass("around", selector("10.1.0.0/24", "10.2.0.9/32"))
    found = changes(desired(sas, (around, policy)), settled(desired(sas, (policy,))))
    assert [type(change) for change in found] == [AddRule, ReplaceFirewall, ReplacePolicies]
    back = changes(desired(sas, (policy,)), settled(desired(sas, (around, policy))))
    assert [type(change) for change in back] == [ReplaceFirewall, ReplacePolicies, RemoveRule]


def test_an_address_is_added_before_the_routes_that_name_it_and_removed_after() -> None:
    sas, policy = tunnel()
    one, two = (
        desired(sas, (policy,), addresses=(ip_address(address),))
        for address in ("10.1.0.1", "10.1.0.2")
    )
    found = changes(two, settled(one))
    assert [type(change) for change in found] == [AddAddress, AddRoute, RemoveAddress]


def test_the_leftovers_of_a_killed_run_are_taken_over() -> None:
    """The TUN and its routes are gone with the daemon; guards and rules are left."""
    sas, policy = tunnel()
    wanted = desired(sas, (policy,))
    network = plan(wanted)
    guards = frozenset(r for r in network.routes if r.kind is RouteKind.UNREACHABLE)
    left = dataclasses.replace(NOTHING, network=Network(1500, frozenset(), guards, network.rules))
    found = kinds(changes(wanted, left))
    assert "AddGuardRoute unreachable" not in found
    assert "AddRule" not in found
    assert found[-1] == "AddRoute tun"


def test_guards_of_prefixes_no_longer_wanted_are_removed() -> None:
    sas, policy = tunnel()
    left = dataclasses.replace(NOTHING, network=plan(desired(sas, (policy,))))
    found = reconcile(desired(), plan(desired()), left)
    assert {type(change) for change in found} == {RemoveFirewall, RemoveRoute, RemoveRule, SetMtu}
