"""Clashes with the networks around a host: each is named, and only what cuts it off is refused."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from esp_gw.desired import Desired
from esp_gw.errors import NetworkError
from esp_gw.model import Policy, PortRange
from esp_gw.network.objects import Host
from esp_gw.network.plan import plan_network
from esp_gw.network.surroundings import (
    Login,
    clashes,
    cut_off,
    cut_off_login,
    refuse_cut_off,
    resolvers_behind,
)
from tests.support.builders import bypass, desired, discard, make_sa, protect, selector
from tests.support.routing import MAIN, probe, routed


def host(*addresses: str, routers: tuple[str, ...] = ("192.168.1.1", "fd00:7::1")) -> Host:
    """A host with these addresses and networks of /24 and /64, and its routers."""
    own = addresses or ("192.168.1.10", "fd00:7::10")
    lengths = {4: 24, 6: 64}
    networks = {
        ip_network(f"{each}/{lengths[ip_address(each).version]}", strict=False) for each in own
    }
    return Host(
        frozenset(map(ip_address, own)),
        frozenset(networks),
        routers=frozenset(map(ip_address, routers)),
    )


def tunnel(local_ts: str, remote_ts: str, *before: Policy, address: str = "") -> Desired:
    sa = make_sa(local="192.168.1.10", remote="203.0.113.9")
    addresses = (ip_address(address),) if address else ()
    policies = (*before, protect("t", sa.name, selector(local_ts, remote_ts)))
    return desired((sa,), policies, addresses=addresses)


@pytest.mark.parametrize(
    ("local_ts", "remote_ts", "lost"),
    [
        ("10.1.0.0/24", "192.168.1.0/25", "192.168.1.1"),
        ("10.1.0.0/24", "192.168.1.1/32", "192.168.1.1"),
        ("fd00:1::/64", "fd00:7::/112", "fd00:7::1"),
        # Connected networks stay near.
        ("10.1.0.0/24", "192.168.1.0/24", None),
        ("10.1.0.0/24", "192.168.0.0/16", None),
        ("10.1.0.0/24", "192.168.1.128/25", None),
        ("192.168.1.0/24", "0.0.0.0/0", None),
        ("0.0.0.0/0", "0.0.0.0/0", None),
        ("fd00:1::/64", "fd00::/8", None),
        ("::/0", "::/0", None),
    ],
)
def test_a_host_loses_its_default_gateway_only_inside_a_part_of_its_own_network(
    local_ts: str, remote_ts: str, lost: str | None
) -> None:
    wanted, there = tunnel(local_ts, remote_ts), host()
    found = cut_off(wanted, there)
    assert [text.split(",")[0] for text in found] == ([] if lost is None else [lost])
    assert clashes(wanted, there)[: len(found)] == found
    # As the planned rules route it.
    network = plan_network(wanted, {}, there)
    for router, own in (("192.168.1.1", "192.168.1.10"), ("fd00:7::1", "fd00:7::10")):
        assert (routed(network, probe(own, router)) == MAIN) == (router != lost)


def test_an_exception_from_a_near_network_is_judged_by_its_longest_prefix() -> None:
    inside = protect("inside", "t/out", selector("10.1.0.0/24", "192.168.1.0/28"))
    (text,) = cut_off(tunnel("10.1.0.0/24", "192.168.0.0/16", inside), host())
    assert text.startswith("192.168.1.1, the default gateway of this host, lies inside ")
    assert "192.168.1.0/28 of inside" in text


def test_what_is_discarded_is_lost_and_what_is_bypassed_is_not() -> None:
    wall = discard("wall", selector("0.0.0.0/0", "192.168.1.0/25"))
    assert len(cut_off(tunnel("10.1.0.0/24", "10.2.0.0/24", wall), host())) == 1
    way = bypass("way", selector("0.0.0.0/0", "192.168.1.1/32"))
    assert cut_off(tunnel("10.1.0.0/24", "192.168.1.0/25", way), host()) == []
    part = bypass("way", selector("0.0.0.0/0", "192.168.1.1/32", 6, None, PortRange(53, 53)))
    assert len(cut_off(tunnel("10.1.0.0/24", "192.168.1.0/25", part), host())) == 1


def test_a_router_in_no_network_of_the_host_is_not_lost() -> None:
    """With a route to it `onlink`, or on a point-to-point link."""
    there = host("203.0.113.5", routers=("172.31.1.1",))
    assert cut_off(tunnel("10.1.0.0/24", "172.16.0.0/12"), there) == []


def test_only_what_newly_cuts_off_is_refused_and_nothing_that_is_allowed() -> None:
    wanted, there = tunnel("10.1.0.0/24", "192.168.1.0/25"), host()
    before = tunnel("10.1.0.0/24", "10.2.0.0/24")
    with pytest.raises(NetworkError, match=r"192\.168\.1\.1, the default gateway.*allow_cut_off"):
        refuse_cut_off(wanted, there, before)
    refuse_cut_off(wanted, there, wanted)
    refuse_cut_off(before, there, before)
    allowed = replace(wanted, settings=replace(wanted.settings, allow_cut_off=True))
    refuse_cut_off(allowed, there, before)


def login(peer: str, local: str = "192.168.1.10", port: int = 22) -> Login:
    return Login(ip_address(peer), ip_address(local), port)


@pytest.mark.parametrize(
    ("local_ts", "remote_ts", "peer", "local", "is_lost"),
    [
        ("10.1.0.0/24", "198.51.100.0/24", "198.51.100.7", "192.168.1.10", True),
        ("10.1.0.0/24", "198.51.100.0/24", "198.51.101.7", "192.168.1.10", False),
        ("10.1.0.0/24", "192.168.0.0/16", "192.168.1.50", "192.168.1.10", False),
        ("10.1.0.0/24", "192.168.0.0/16", "192.168.2.50", "192.168.1.10", True),
        # A default route takes what comes from its local prefixes.
        ("10.1.0.0/24", "0.0.0.0/0", "198.51.100.7", "192.168.1.10", False),
        ("192.168.1.0/24", "0.0.0.0/0", "198.51.100.7", "192.168.1.10", True),
        ("::/0", "::/0", "2001:db8::7", "fd00:7::10", True),
    ],
)
def test_a_person_who_is_logged_in_is_cut_off_where_the_answers_would_be_taken(
    local_ts: str, remote_ts: str, peer: str, local: str, is_lost: bool
) -> None:
    found = cut_off_login(tunnel(local_ts, remote_ts), host(), login(peer, local))
    assert len(found) == is_lost
    assert not found or found[0].startswith(f"you are logged in from {peer}, which lies inside ")


def test_a_bypass_for_ssh_keeps_the_session() -> None:
    ssh = bypass("ssh", selector("0.0.0.0/0", "0.0.0.0/0", 6, PortRange(22, 22)))
    wanted = tunnel("192.168.1.0/24", "0.0.0.0/0", ssh)
    assert cut_off_login(wanted, host(), login("198.51.100.7")) == []
    assert len(cut_off_login(wanted, host(), login("198.51.100.7", port=2222))) == 1


def test_the_address_of_the_default_gateway_is_left_to_it() -> None:
    wanted, there = tunnel("192.168.1.0/24", "10.2.0.0/24", address="192.168.1.1"), host()
    (text,) = clashes(wanted, there)
    assert text.startswith("gateway.address 192.168.1.1 is the address of this host's default")
    assert text.endswith("192.168.1.10 of this host will do")
    network = plan_network(wanted, {}, there)
    assert network.addresses == {ip_address("192.168.1.10")}
    sources = {route.source for route in network.routes if not route.is_guard}
    assert sources == {ip_address("192.168.1.10")}


def test_an_address_beside_the_outer_one_may_be_another_hosts() -> None:
    wanted = tunnel("192.168.1.0/24", "10.2.0.0/24", address="192.168.1.99")
    (text,) = clashes(wanted, host())
    assert text.startswith("gateway.address 192.168.1.99 lies in the network of 192.168.1.10")
    assert clashes(wanted, host("192.168.1.10", "192.168.1.99")) == []
    assert clashes(tunnel("10.1.0.0/24", "10.2.0.0/24", address="10.1.0.1"), host()) == []


@pytest.mark.parametrize("peer", ["203.0.113.9", "192.168.1.77"])
def test_an_automatic_address_is_taken_for_that_of_the_way_to_the_peer(peer: str) -> None:
    """Before a gateway runs: behind the default gateway, or beside the peer."""
    routers = () if peer.startswith("192.168") else ("192.168.1.1",)
    there = host("192.168.1.10", "10.9.0.1", routers=routers)
    wanted = tunnel("10.1.0.0/24", "192.168.0.0/16", address="192.168.1.50")
    sa = replace(wanted.sas[0], local=ip_address("0.0.0.0"), remote=ip_address(peer))
    found = clashes(replace(wanted, sas=(sa,)), there)
    assert found == clashes(wanted, there)
    assert any("the network of 192.168.1.10, lies inside" in text for text in found)
    assert any("lies in the network of 192.168.1.10" in text for text in found)


def test_the_network_of_the_uplink_inside_a_protected_prefix_is_named() -> None:
    (text,) = clashes(tunnel("10.1.0.0/24", "192.168.0.0/16"), host())
    assert text.startswith("192.168.1.0/24, the network of 192.168.1.10, lies inside 192.168.0.0")
    assert clashes(tunnel("10.1.0.0/24", "0.0.0.0/0"), host()) == []


@pytest.mark.parametrize(
    ("server", "is_behind"),
    [
        ("10.2.0.53", True),
        ("10.3.0.53", False),
        ("192.168.1.1", False),
        ("127.0.0.53", False),
        ("fd00:2::53", False),
    ],
)
def test_a_resolver_that_the_tunnel_leads_to_can_not_find_its_peer(
    server: str, is_behind: bool
) -> None:
    wanted = tunnel("192.168.1.0/24", "10.2.0.0/16")
    servers = [ip_address(server)]
    assert resolvers_behind(wanted, host(), servers) == []
    named = replace(wanted, sas=tuple(replace(sa, remote_name="gw.example") for sa in wanted.sas))
    found = resolvers_behind(named, host(), servers)
    assert bool(found) is is_behind
    assert all(server in text and "gw.example" in text for text in found)


@pytest.mark.parametrize("local_ts", ["192.168.1.0/24", "0.0.0.0/0"])
@pytest.mark.parametrize(
    ("server", "is_behind"),
    [
        *(("198.51.100.53", True), ("10.2.0.53", True), ("fe80::1", False)),
        *(("192.168.1.1", False), ("172.17.0.9", False), ("127.0.0.53", False)),
    ],
)
def test_a_tunnel_of_everything_leads_to_a_resolver_from_the_address_of_the_uplink(
    local_ts: str, server: str, is_behind: bool
) -> None:
    wanted = tunnel(local_ts, "0.0.0.0/0")
    named = replace(wanted, sas=tuple(replace(sa, remote_name="gw.example") for sa in wanted.sas))
    # Nothing goes there from the addresses of the loopback and of a bridge.
    here = host("192.168.1.10", "172.17.0.1")
    here = replace(here, addresses=here.addresses | {ip_address("127.0.0.1")})
    assert bool(resolvers_behind(named, here, [ip_address(server)])) is is_behind
