"""The planned rules and routes, tried in a model of the kernel's routing, and their limits."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.errors import NetworkError
from esp_gw.model import LAST_TABLE, Action, IPNetwork, Policy, PortRange, Sa, Selector
from esp_gw.network.objects import MAX_BYPASS_RULES, Host
from esp_gw.network.plan import plan_guard, plan_network
from esp_gw.network.surroundings import clashes
from tests.support.builders import bypass, desired, make_sa, protect, selector
from tests.support.routing import (
    MAIN,
    MARK,
    TABLE,
    TUN,
    UNREACHABLE,
    Probe,
    in_range,
    plan,
    probe,
    routed,
)


def site_to_site() -> tuple[Sa, Policy]:
    sa = make_sa()
    return sa, protect("t", sa.name, selector("10.1.0.0/24", "10.2.0.0/24"))


def test_a_protected_prefix_is_routed_into_the_tun_or_unreachable() -> None:
    sa, policy = site_to_site()
    network = plan(desired((sa,), (policy,)))
    inside = probe("10.1.0.5", "10.2.0.5")
    assert routed(network, inside) == TUN
    assert routed(network, inside, tun=False) == UNREACHABLE
    assert routed(network, probe("10.1.0.5", "10.3.0.5")) == MAIN


@pytest.mark.parametrize(
    ("local", "remote"), [("10.1.0.0/24", "192.0.2.0/24"), ("10.1.0.0/24", "0.0.0.0/0")]
)
def test_outer_packets_never_go_into_the_tun(local: str, remote: str) -> None:
    sa = make_sa()
    network = plan(desired((sa,), (protect("t", sa.name, selector(local, remote)),)))
    assert routed(network, probe("192.0.2.1", "192.0.2.2", mark=MARK)) == MAIN
    assert routed(network, probe("10.1.0.5", "192.0.2.2")) == TUN


def test_a_protected_default_route_leaves_the_lan_and_foreign_sources_alone() -> None:
    sa = make_sa()
    network = plan(desired((sa,), (protect("t", sa.name, selector("10.1.0.0/24", "0.0.0.0/0")),)))
    assert routed(network, probe("10.1.0.5", "8.8.8.8")) == TUN
    assert routed(network, probe("10.1.0.5", "8.8.8.8"), tun=False) == UNREACHABLE
    assert routed(network, probe("10.1.0.5", "10.1.0.6")) == MAIN
    assert routed(network, probe("192.0.2.1", "8.8.8.8")) == MAIN


@pytest.mark.parametrize("hosts", [["10.1.0.1"], []])
def test_a_packet_of_this_host_without_a_source_yet_is_not_sent_in_the_clear(
    hosts: list[str],
) -> None:
    """UDP is routed once, without a source; the main table would choose a protected one."""
    sa = make_sa()
    network = plan(
        desired((sa,), (protect("t", sa.name, selector("10.1.0.0/24", "0.0.0.0/0")),)),
        hosts=frozenset(map(ip_address, hosts)),
    )
    assert routed(network, probe("0.0.0.0", "8.8.8.8")) == (TUN if hosts else MAIN)
    assert routed(network, probe("0.0.0.0", "10.1.0.6")) == MAIN
    assert routed(network, probe("0.0.0.0", "192.0.2.2", mark=MARK)) == MAIN


def test_the_outer_address_as_the_only_local_one_is_protected_before_it_is_a_source() -> None:
    sa = make_sa()
    network = plan(
        desired((sa,), (protect("t", sa.name, selector("192.0.2.1/32", "0.0.0.0/0")),)),
        hosts=frozenset({sa.local}),
    )
    assert routed(network, probe("0.0.0.0", "8.8.8.8")) == TUN


def test_a_tunnel_for_all_traffic_exempts_only_the_outer_packets() -> None:
    sa = make_sa()
    network = plan(desired((sa,), (protect("t", sa.name, selector("0.0.0.0/0", "0.0.0.0/0")),)))
    assert routed(network, probe("1.2.3.4", "8.8.8.8")) == TUN
    assert routed(network, probe("0.0.0.0", "8.8.8.8")) == TUN
    assert routed(network, probe("1.2.3.4", "8.8.8.8", mark=MARK)) == MAIN


@pytest.mark.parametrize(
    ("local", "remote"),
    [("10.1.0.0/24", "192.168.0.0/16"), ("10.1.0.0/24", "0.0.0.0/0"), ("0.0.0.0/0", "0.0.0.0/0")],
)
def test_a_connected_network_inside_a_protected_prefix_stays_near(local: str, remote: str) -> None:
    """An administrator on the uplink's network is not locked out."""
    sa = make_sa()
    wanted = desired((sa,), (protect("t", sa.name, selector(local, remote)),))
    network = plan(wanted, connected=frozenset({ip_network("192.168.7.0/24")}))
    assert routed(network, probe("10.1.0.5", "192.168.7.9")) == MAIN
    assert routed(network, probe("192.168.7.1", "192.168.7.9")) == MAIN
    assert routed(network, probe("10.1.0.5", "192.168.8.9")) == TUN
    assert routed(network, probe("10.1.0.5", "192.168.8.9"), tun=False) == UNREACHABLE


def test_a_connected_network_that_is_itself_protected_stays_near_and_is_told_of() -> None:
    """Both homes have 192.168.1.0/24: nobody is locked out, and the operator is told."""
    sa = make_sa()
    both = (selector("10.1.0.0/24", "192.168.1.0/24"), selector("10.1.0.0/24", "10.2.0.0/24"))
    wanted = desired((sa,), (protect("t", sa.name, *both),))
    host = Host(connected=frozenset({ip_network("192.168.1.0/24")}))
    network = plan(wanted, connected=host.connected)
    assert routed(network, probe("10.1.0.5", "192.168.1.9")) == MAIN
    assert routed(network, probe("10.1.0.5", "10.2.0.9")) == TUN
    (warning,) = clashes(wanted, host)
    assert warning.startswith("192.168.1.0/24 is behind t and also a network of this host")
    assert network.firewall is not None
    assert [(str(each.first), str(each.last)) for each in network.firewall.remote] == [
        ("10.2.0.0", "10.2.0.255")
    ]
    assert clashes(wanted, Host()) == []


@pytest.mark.parametrize("connected", ["192.0.2.0/24", "192.0.2.2/32"])
def test_a_protected_peer_on_a_connected_network_stays_protected(connected: str) -> None:
    sa = make_sa()
    wanted = desired((sa,), (protect("t", sa.name, selector("192.0.2.1/32", "192.0.2.2/32")),))
    network = plan(wanted, connected=frozenset({ip_network(connected)}))
    assert routed(network, probe("192.0.2.1", "192.0.2.2")) == TUN


def test_the_hosts_own_dhcp_is_near_and_forwarded_dhcp_is_not() -> None:
    sa = make_sa()
    network = plan(desired((sa,), (protect("t", sa.name, selector("10.1.0.0/24", "10.0.0.0/8")),)))
    renewal = probe("10.9.0.7", "10.9.1.1", protocol=17, src_port=68, dst_port=67)
    assert routed(network, renewal) == MAIN
    assert routed(network, replace(renewal, forwarded=True)) == TUN
    assert routed(network, replace(renewal, src_port=1068)) == TUN


def test_ipv6_has_rules_of_its_own() -> None:
    sa = make_sa()
    network = plan(desired((sa,), (protect("t", sa.name, selector("fd00:1::/64", "fd00:2::/64")),)))
    assert {rule.version for rule in network.rules} == {6}
    assert routed(network, probe("fd00:1::5", "fd00:2::5")) == TUN
    assert routed(network, probe("fd00:1::5", "fd00:3::5")) == MAIN


@pytest.mark.parametrize(
    ("local", "remote"), [("10.1.0.0/24", "0.0.0.0/0"), ("fd00:1::/64", "::/0")]
)
def test_under_a_protected_default_route_the_lan_rule_takes_no_default_route(
    local: str, remote: str
) -> None:
    sa = make_sa()
    network = plan(desired((sa,), (protect("t", sa.name, selector(local, remote)),)))
    to_main = [rule for rule in network.rules if rule.destination == ip_network(local)]
    assert [rule.suppress_default for rule in to_main] == [True]
    into_tun = [rule for rule in network.rules if rule.source == ip_network(local)]
    # An IPv6 packet of this host is routed before it has a source, like an IPv4 one.
    assert [rule.find_source for rule in into_tun] == [":" in local]


def test_a_protected_prefix_inside_the_local_prefix_of_a_default_route_is_protected() -> None:
    """The exception for the LAN comes after the prefixes that another tunnel protects."""
    wide, narrow = make_sa("wide/out", spi=1000), make_sa("narrow/out", spi=1001)
    network = plan(
        desired(
            (wide, narrow),
            (
                protect("narrow", "narrow/out", selector("10.1.0.0/16", "10.2.0.0/16")),
                protect("wide", "wide/out", selector("10.0.0.0/8", "0.0.0.0/0")),
            ),
        )
    )
    for seed in range(20):
        assert routed(network, probe("10.1.0.5", "10.2.0.5"), seed=seed) == TUN
        assert routed(network, probe("10.1.0.5", "10.3.0.5"), seed=seed) == MAIN


def test_a_local_prefix_inside_a_protected_one_stays_near() -> None:
    """A spoke that protects 10.0.0.0/8 still reaches its own network, and only that."""
    sa = make_sa()
    policy = protect("t", sa.name, selector("10.2.0.0/24", "10.0.0.0/8"))
    network = plan(desired((sa,), (policy,)))
    assert routed(network, probe("10.2.0.1", "10.2.0.5")) == MAIN
    assert routed(network, probe("10.2.0.1", "10.1.0.5")) == TUN
    assert routed(network, probe("10.2.0.1", "10.1.0.5", mark=MARK)) == MAIN
    assert routed(network, probe("10.2.0.1", "10.2.1.5"), tun=False) == UNREACHABLE
    (near,) = [rule for rule in network.rules if rule.destination]
    assert near.suppress_default
    # It is protected if the main table has no route to it; outer packets never are.
    without = replace(network, rules=network.rules - {near})
    assert routed(without, probe("10.2.0.1", "10.2.0.5")) == TUN
    assert routed(without, probe("10.2.0.1", "10.2.0.5", mark=MARK)) == MAIN


def test_a_protected_prefix_inside_a_near_one_is_protected() -> None:
    hub, site = make_sa("hub/out", spi=1000), make_sa("site/out", spi=1001)
    spd = (
        protect("hub", "hub/out", selector("10.2.0.0/16", "10.0.0.0/8")),
        protect("site", "site/out", selector("10.2.7.0/25", "10.2.7.0/24")),
    )
    network = plan(desired((hub, site), spd))
    for seed in range(20):
        assert routed(network, probe("10.2.0.1", "10.2.0.5"), seed=seed) == MAIN
        assert routed(network, probe("10.2.0.1", "10.2.7.200"), seed=seed) == TUN
        assert routed(network, probe("10.2.0.1", "10.2.7.200"), tun=False) == UNREACHABLE
        assert routed(network, probe("10.2.0.1", "10.2.7.5"), seed=seed) == MAIN
        assert routed(network, probe("10.2.0.1", "10.3.0.5"), seed=seed) == TUN


def test_a_local_prefix_that_is_also_protected_is_protected() -> None:
    hub, site = make_sa("hub/out", spi=1000), make_sa("site/out", spi=1001)
    spd = (
        protect("hub", "hub/out", selector("10.2.0.0/24", "10.0.0.0/8")),
        protect("site", "site/out", selector("10.3.0.0/24", "10.2.0.0/24")),
    )
    network = plan(desired((hub, site), spd))
    assert routed(network, probe("10.3.0.1", "10.2.0.5")) == TUN
    assert routed(network, probe("10.2.0.1", "10.3.0.5")) == MAIN


def test_bypass_rules_come_before_those_for_near_prefixes() -> None:
    sa = make_sa()
    policy = protect("t", sa.name, selector("10.2.0.0/24", "10.0.0.0/8"))
    network = plan(desired((sa,), (many(MAX_BYPASS_RULES - 3), policy)))
    of_bypass = {r.priority for r in network.rules if r.destination and not r.suppress_default}
    others = {rule.priority for rule in network.rules} - of_bypass
    assert min(of_bypass) == TABLE - MAX_BYPASS_RULES
    assert max(of_bypass) < min(others)
    with pytest.raises(NetworkError, match="room for 397"):
        plan(desired((sa,), (many(MAX_BYPASS_RULES - 2), policy)))


def test_a_table_too_small_for_the_rules_of_near_prefixes_is_refused() -> None:
    sa = make_sa()
    policy = protect("t", sa.name, selector("10.2.0.0/24", "10.0.0.0/8"))
    plan(desired((sa,), (policy,), table=4))
    with pytest.raises(NetworkError, match=r"^gateway\.table: .*choose a number above"):
        plan(desired((sa,), (policy,), table=3))


def test_a_bypass_policy_goes_around_the_tun_and_only_for_what_it_names() -> None:
    sa, policy = site_to_site()
    dns = bypass("dns", selector("0.0.0.0/0", "10.2.0.53/32", 17, None, PortRange(53, 53)))
    network = plan(desired((sa,), (dns, policy)))
    assert routed(network, probe("10.1.0.5", "10.2.0.53", dst_port=53)) == MAIN
    assert routed(network, probe("10.1.0.5", "10.2.0.53", dst_port=54)) == TUN
    assert routed(network, probe("10.1.0.5", "10.2.0.53", dst_port=53, protocol=6)) == TUN
    assert routed(network, probe("10.1.0.5", "10.2.0.54", dst_port=53)) == TUN


def test_bypass_rules_come_in_spd_order_before_all_others() -> None:
    sa, policy = site_to_site()
    first = bypass("b", *(selector("10.1.0.0/24", f"10.2.0.{n}/32") for n in (9, 3)))
    second = bypass("a", selector("10.1.0.0/24", "10.2.0.5/32"))
    rules = sorted(
        plan(desired((sa,), (first, second, policy))).rules, key=lambda rule: rule.priority
    )
    assert [str(rule.destination) for rule in rules[:3]] == [
        "10.2.0.9/32",
        "10.2.0.3/32",
        "10.2.0.5/32",
    ]
    assert len({rule.priority for rule in rules}) == len(rules) == 5
    assert rules[4].table == TABLE


def test_a_rule_omits_prefixes_of_length_zero() -> None:
    """The kernel returns such a rule without the prefix, so it would always seem to differ."""
    network = plan(desired((), (bypass("b", selector("0.0.0.0/0", "0.0.0.0/0", 1)),)))
    (rule,) = network.rules
    assert (rule.source, rule.destination) == (None, None)


# Limits of kernel rules


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        (PortRange(80, 80), PortRange(80, 80)),
        (PortRange(0, 1023), PortRange(1, 1023)),
        (PortRange(1024, 65535), PortRange(1024, 65534)),
    ],
)
def test_ports_that_no_rule_can_name_are_left_to_the_tun(
    ports: PortRange, expected: PortRange
) -> None:
    network = plan(
        desired((), (bypass("b", selector("0.0.0.0/0", "10.0.0.0/8", 6, ports, ports)),))
    )
    (rule,) = network.rules
    assert (rule.source_port, rule.destination_port) == (expected, expected)


@pytest.mark.parametrize("port", [0, 65535])
def test_a_bypass_of_a_port_that_no_rule_can_name_is_refused(port: int) -> None:
    alone = selector("0.0.0.0/0", "10.0.0.0/8", 6, None, PortRange(port, port))
    with pytest.raises(NetworkError, match=rf"^odd: .*port {port}.*; "):
        plan(desired((), (bypass("odd", alone),)))


def many(count: int) -> Policy:
    return bypass(
        "many", *(selector("0.0.0.0/0", f"10.{n >> 8}.{n & 255}.0/24") for n in range(count))
    )


@pytest.mark.parametrize(("table", "room"), [(TABLE, MAX_BYPASS_RULES - 2), (100, 97)])
def test_more_bypass_selectors_than_priorities_are_refused(table: int, room: int) -> None:
    sa, policy = site_to_site()
    full = plan(desired((sa,), (many(room), policy), table=table))
    priorities = sorted(rule.priority for rule in full.rules)
    assert len(set(priorities)) == room + 2
    assert priorities[0] >= max(1, table - MAX_BYPASS_RULES)
    with pytest.raises(NetworkError, match=rf"^many: .* {room + 1} pairs.* {room}; "):
        plan(desired((sa,), (many(room + 1), policy), table=table))


@pytest.mark.parametrize("table", [252, LAST_TABLE + 1, 40000, 2**32 - 1])
def test_a_table_whose_rules_would_come_after_the_kernels_own_is_refused(table: int) -> None:
    """The main table is looked up at priority 32766: protected packets would leave in the clear."""
    sa, policy = site_to_site()
    with pytest.raises(NetworkError, match=r"^gateway\.table: "):
        plan(desired((sa,), (policy,), table=table))


def test_every_rule_of_the_last_table_comes_before_the_main_table() -> None:
    sa = make_sa()
    policy = protect("t", sa.name, selector("10.1.0.0/24", "0.0.0.0/0"))
    network = plan(desired((sa,), (policy,), table=LAST_TABLE))
    assert max(rule.priority for rule in network.rules) < 32766


# Any set of policies

PREFIXES = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.2.5.0/24", "10.2.5.1/32"]
ADDRESSES = ["10.1.0.1", "10.2.0.1", "10.2.5.0", "10.2.5.1", "10.3.0.1", "8.8.8.8"]
prefixes = st.sampled_from(PREFIXES).map(ip_network)
addresses = st.sampled_from(ADDRESSES).map(ip_address)
some_ports = st.none() | st.just(PortRange(53, 53))


@st.composite
def selectors(draw: st.DrawFn) -> Selector:
    protocol = draw(st.none() | st.just(17))
    ports = draw(some_ports) if protocol else None
    return Selector(draw(prefixes), draw(prefixes), protocol, None, ports)


def matches(wanted: Selector, packet: Probe) -> bool:
    return (
        packet.src in wanted.local
        and packet.dst in wanted.remote
        and wanted.protocol in (None, packet.protocol)
        and (wanted.remote_port is None or in_range(wanted.remote_port, packet.dst_port))
    )


@st.composite
def policies(draw: st.DrawFn) -> tuple[Policy, ...]:
    """Bypass policies come first: one after a policy that it overlaps is refused elsewhere."""
    actions = draw(st.lists(st.sampled_from(Action), max_size=5))
    actions.sort(key=lambda action: action is not Action.BYPASS)
    return tuple(
        Policy(
            str(number),
            action,
            tuple(draw(st.lists(selectors(), min_size=1, max_size=2))),
            sas=("t/out",) if action is Action.PROTECT else (),
        )
        for number, action in enumerate(actions)
    )


packets = st.builds(
    Probe,
    addresses,
    addresses,
    st.sampled_from([6, 17]),
    st.just(1000),
    st.sampled_from([53, 54]),
    st.sampled_from([0, 0, 0, MARK]),
)


def strictly_inside(narrow: IPNetwork, wide: IPNetwork) -> bool:
    return wide.prefixlen < narrow.prefixlen and narrow.subnet_of(wide)


@given(policies(), packets, st.frozensets(prefixes, max_size=2), st.integers(0, 9))
@settings(max_examples=300)
def test_the_kernel_sends_a_packet_where_its_policy_says(
    spd: tuple[Policy, ...], packet: Probe, connected: frozenset[IPNetwork], seed: int
) -> None:
    network = plan(desired((make_sa(),), spd), connected=connected)
    if packet.mark == MARK:
        assert routed(network, packet, seed=seed) == MAIN
        return
    found = next((p for p in spd if any(matches(s, packet) for s in p.selectors)), None)
    if found is None:
        return
    guarded = [(p.action, s) for p in spd if p.action is not Action.BYPASS for s in p.selectors]
    remotes = {s.remote for _, s in guarded}
    protected = {s.remote for action, s in guarded if action is Action.PROTECT}

    def is_near(prefix: IPNetwork) -> bool:
        """The narrowest prefix around it is a default route, or a protected one."""
        around = [remote for remote in remotes if prefix.subnet_of(remote)]
        widest_first = sorted(around, key=lambda remote: remote.prefixlen)
        return bool(around) and (not widest_first[-1].prefixlen or widest_first[-1] in protected)

    local = {s.local for _, s in guarded} - remotes
    local |= {each for each in connected if each.num_addresses > 1 or each not in remotes}
    near = [
        prefix
        for prefix in local
        if packet.dst in prefix
        and prefix.prefixlen
        and is_near(prefix)
        and not any(packet.dst in r and strictly_inside(r, prefix) for r in remotes)
    ]
    if found.action is Action.BYPASS or near:
        assert routed(network, packet, seed=seed) == MAIN
    else:
        assert routed(network, packet, seed=seed) == TUN
        assert routed(network, packet, tun=False, seed=seed) == UNREACHABLE


def test_for_a_kernel_without_ipv6_only_ipv4_is_planned_and_the_rest_is_told_of() -> None:
    sa = make_sa()
    both = (selector("10.1.0.0/24", "10.2.0.0/24"), selector("fd00:1::/64", "fd00:2::/64"))
    addresses = {"addresses": (ip_address("10.1.0.1"), ip_address("fd00:1::1"))}
    wanted = desired((sa,), (protect("t", sa.name, *both),), **addresses)
    four = desired((sa,), (protect("t", sa.name, both[0]),), addresses=addresses["addresses"][:1])
    host = Host(versions=frozenset({4}))
    for plans in (lambda state, host: plan_network(state, {}, host), plan_guard):
        there, only_four = plans(wanted, host), plans(four, Host())
        assert (there.routes, there.rules) == (only_four.routes, only_four.rules)
        assert there.addresses == only_four.addresses
        assert there.firewall is not None
    (warning,) = clashes(wanted, host)
    assert "fd00:2::/64" in warning
    assert clashes(wanted, Host()) == clashes(four, host) == []
