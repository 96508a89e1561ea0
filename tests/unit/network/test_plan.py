"""The planned network: MTUs, addresses and source hints."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from esp_gw.model import SUITES, Encapsulation, Mode, PortRange, Suite
from esp_gw.network.mtu import inner_mtu
from esp_gw.network.objects import Network, Route, RouteKind
from esp_gw.network.plan import plan_network
from tests.support.builders import OUTER, bypass, desired, discard, make_sa, protect, selector
from tests.support.routing import NOWHERE, plan


def routes_by_prefix(network: Network) -> dict[str, Route]:
    return {str(r.destination): r for r in network.routes if r.kind is RouteKind.TUN}


# Sizes


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("encapsulation", Encapsulation)
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("suite", SUITES.values(), ids=str)
def test_the_largest_inner_packet_fits_and_no_larger_one_does(
    suite: Suite, mode: Mode, encapsulation: Encapsulation, version: int
) -> None:
    local, remote = OUTER[version]
    sa = make_sa(suite=suite, mode=mode, encapsulation=encapsulation, local=local, remote=remote)
    header = 20 if version == 4 else 40
    udp = 8 if encapsulation is Encapsulation.UDP else 0

    def outer_len(inner: int) -> int:
        payload = inner - (header if mode is Mode.TRANSPORT else 0)
        return header + udp + suite.esp_len(payload)

    for path_mtu in (*range(1280, 1292), 1492, 1500, 9000, 65535):
        largest = inner_mtu(sa, path_mtu)
        assert outer_len(largest) <= path_mtu
        assert outer_len(largest + 1) > path_mtu
        assert outer_len(largest) > path_mtu - 4


def test_a_prefix_of_two_tunnels_has_the_smaller_mtu() -> None:
    one, other = make_sa("a/out", spi=1000), make_sa("b/out", spi=1001, remote="192.0.2.9")
    shared = selector("10.1.0.0/24", "10.2.0.0/24")
    wanted = desired((one, other), (protect("a", "a/out", shared), protect("b", "b/out", shared)))
    network = plan_network(wanted, {other.remote: 1400}, NOWHERE)
    assert routes_by_prefix(network)["10.2.0.0/24"].mtu == inner_mtu(other, 1400)


@pytest.mark.parametrize("first", ["discard", "protect"])
def test_a_narrow_prefix_has_the_mtu_of_the_wide_tunnel_that_its_packets_may_take(
    first: str,
) -> None:
    """A discard policy for one port routes its prefix; the other ports go through the tunnel."""
    sa = make_sa()
    policies = [
        discard("no-mail", selector("10.1.0.0/24", "10.2.5.0/24", 6, None, PortRange(25, 25))),
        protect("t", sa.name, selector("10.1.0.0/24", "10.2.0.0/16")),
    ]
    if first == "protect":
        policies.reverse()
    network = plan(desired((sa,), tuple(policies)))
    mtus = {prefix: route.mtu for prefix, route in routes_by_prefix(network).items()}
    assert mtus == {
        "10.2.5.0/24": inner_mtu(sa, 1500),
        "10.2.0.0/16": inner_mtu(sa, 1500),
    }
    assert network.mtu == inner_mtu(sa, 1500)


def test_a_wide_prefix_does_not_have_the_mtu_of_a_narrow_one_inside_it() -> None:
    wide, narrow = (
        make_sa("wide/out", spi=1000),
        make_sa("narrow/out", spi=1001, remote="192.0.2.9"),
    )
    policies = (
        protect("narrow", "narrow/out", selector("10.1.0.0/24", "10.2.0.0/24")),
        protect("wide", "wide/out", selector("10.1.0.0/24", "10.2.0.0/16")),
    )
    network = plan_network(desired((wide, narrow), policies), {narrow.remote: 1400}, NOWHERE)
    mtus = {prefix: route.mtu for prefix, route in routes_by_prefix(network).items()}
    assert mtus == {
        "10.2.0.0/24": inner_mtu(narrow, 1400),
        "10.2.0.0/16": inner_mtu(wide, 1500),
    }
    assert network.mtu == inner_mtu(wide, 1500)


def test_ipv6_prefixes_keep_1280_bytes_and_ipv4_prefixes_beside_them_do_not() -> None:
    sa = make_sa()
    both = (selector("10.1.0.0/24", "10.2.0.0/24"), selector("fd00:1::/64", "fd00:2::/64"))
    network = plan(desired((sa,), (protect("t", sa.name, *both),)), path_mtu=1300)
    mtus = {prefix: route.mtu for prefix, route in routes_by_prefix(network).items()}
    assert inner_mtu(sa, 1300) < 1280
    assert mtus == {"10.2.0.0/24": inner_mtu(sa, 1300), "fd00:2::/64": 1280}
    assert network.mtu == 1280


@pytest.mark.parametrize(("limit", "expected"), [(1300, 1300), (9000, None)])
def test_a_configured_mtu_only_lowers_the_mtu(limit: int, expected: int | None) -> None:
    sa = make_sa()
    policy = protect("t", sa.name, selector("10.1.0.0/24", "10.2.0.0/24"))
    network = plan(desired((sa,), (policy,), mtu=limit))
    assert network.mtu == (expected or inner_mtu(sa, 1500))


# Addresses


def test_an_address_that_another_interface_has_is_not_put_on_the_tun() -> None:
    addresses = (ip_address("10.1.0.1"), ip_address("10.1.0.2"))
    network = plan(desired(addresses=addresses), hosts=frozenset(addresses[:1]))
    assert network.addresses == {addresses[1]}


@pytest.mark.parametrize(
    ("local", "preferred", "hosts", "expected"),
    [
        ("10.1.0.0/24", [], ["10.1.0.7", "10.1.0.3"], "10.1.0.3"),
        ("10.1.0.0/24", ["10.1.0.9"], ["10.1.0.3"], "10.1.0.9"),
        ("10.1.0.0/24", ["10.9.0.9"], ["10.1.0.3"], "10.1.0.3"),
        ("10.1.0.0/24", [], ["10.9.0.9"], None),
        ("192.0.2.1/32", [], [], None),
        ("192.0.2.1/32", [], ["192.0.2.1"], "192.0.2.1"),
        ("0.0.0.0/0", [], ["127.0.0.1", "10.1.0.3"], None),
        ("0.0.0.0/1", [], ["10.1.0.3", "127.0.0.1"], "10.1.0.3"),
        ("64.0.0.0/2", [], ["127.0.0.1"], None),
        ("::/1", [], ["::1", "2001:db8::5"], "2001:db8::5"),
        ("fe80::/10", [], ["fe80::5"], None),
    ],
)
def test_a_route_names_as_source_only_a_local_and_protected_address(
    local: str, preferred: list[str], hosts: list[str], expected: str | None
) -> None:
    """The kernel refuses a route whose source is no address of the host."""
    sa, remote = make_sa(), "fd00:2::/64" if ":" in local else "10.2.0.0/24"
    wanted = desired(
        (sa,),
        (protect("t", sa.name, selector(local, remote)),),
        addresses=tuple(map(ip_address, preferred)),
    )
    network = plan(wanted, hosts=frozenset(map(ip_address, hosts)))
    source = routes_by_prefix(network)[remote].source
    assert (source and str(source)) == expected


@pytest.mark.parametrize(
    ("preferred", "hosts", "expected"),
    [
        ([], ["10.3.0.1"], "10.3.0.1"),
        ([], ["10.3.0.1", "10.1.0.5"], "10.1.0.5"),
        (["10.3.0.1"], ["10.1.0.5"], "10.3.0.1"),
        (["10.9.0.1", "10.3.0.2"], ["10.3.0.1"], "10.3.0.2"),
        ([], ["10.7.0.1"], None),
    ],
)
def test_a_source_lies_in_any_local_prefix_that_goes_with_the_remote_one(
    preferred: list[str], hosts: list[str], expected: str | None
) -> None:
    sa, remote = make_sa(), "10.2.0.0/24"
    policies = (
        discard("no-mail", selector("10.7.0.0/24", remote, 6, None, PortRange(25, 25))),
        protect("t", sa.name, selector("10.1.0.0/24", remote), selector("10.3.0.0/24", remote)),
        protect("u", sa.name, selector("10.4.0.0/24", "10.5.0.0/24")),
    )
    wanted = desired((sa,), policies, addresses=tuple(map(ip_address, preferred)))
    routes = routes_by_prefix(plan(wanted, hosts=frozenset(map(ip_address, hosts))))
    assert routes[remote].source == (None if expected is None else ip_address(expected))
    assert routes["10.5.0.0/24"].source is None


@pytest.mark.parametrize(
    ("addresses", "local", "expected"),
    [
        ([], "10.1.0.0/24", {"10.1.0.1"}),
        (["10.1.0.1"], "10.1.0.0/24", {"10.1.0.1"}),
        (["10.1.0.2"], "10.1.0.0/24", {"10.1.0.2"}),
        (["fd00:1::2"], "10.1.0.0/24", {"10.1.0.1", "fd00:1::2"}),
        ([], "10.9.0.0/24", set()),
        ([], "0.0.0.0/0", set()),
    ],
)
def test_the_tun_shares_an_address_that_masquerade_finds_nowhere_else(
    addresses: list[str], local: str, expected: set[str]
) -> None:
    sa = make_sa()
    policy = protect("t", sa.name, selector(local, "10.2.0.0/24"))
    wanted = desired((sa,), (policy,), addresses=tuple(map(ip_address, addresses)))
    hosts = frozenset(map(ip_address, ("10.1.0.1", "10.1.0.7", "192.0.2.1")))
    assert set(map(str, plan(wanted, hosts=hosts).addresses)) == expected


def test_transport_mode_and_bypasses_share_no_address() -> None:
    sa = make_sa(mode=Mode.TRANSPORT)
    policies = (
        bypass("b", selector("10.1.0.0/24", "10.3.0.0/24")),
        protect("t", sa.name, selector("192.0.2.1/32", "192.0.2.2/32")),
    )
    hosts = frozenset(map(ip_address, ("10.1.0.1", "192.0.2.1")))
    assert plan(desired((sa,), policies), hosts=hosts).addresses == frozenset()
