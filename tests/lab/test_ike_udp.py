"""Two charons negotiate children in UDP: IKE and ESP share the gateways' port."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import OUTER, PairPlan, gateway_pair
from tests.support.charon import Installation, here
from tests.support.engines import ENGINES
from tests.support.evidence import trial
from tests.support.ike_rig import child
from tests.support.ike_sites import (
    TARGET,
    Site,
    encapsulations,
    initiate,
    no_iv_twice,
    replace_child,
    replace_child_under_pings,
    replace_ike,
    start_sites,
)
from tests.support.labtools import (
    StartCapture,
    carry_tcp_both_ways,
    lost,
    ping,
    sas,
    start_pings,
    until,
)

# charon and the daemon decide here; the engines carry what they are told.
pytestmark = pytest.mark.either_engine

UDP = {"encap": "yes", "mobike": "yes"}


@pytest.fixture(scope="module", params=ENGINES)
def both(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    installed: Installation,
) -> Iterator[list[Site]]:
    """Two sites for every test of an engine."""
    folder = tmp_path_factory.mktemp("udp")
    plan = PairPlan(settings={"engine": request.param})
    with gateway_pair(folder, plan) as pair, contextlib.ExitStack() as stack:
        yield start_sites(pair, folder, (installed,) * 2, stack, UDP)


def renew(sites: list[Site]) -> None:
    """End what a former test left at both ends."""
    for site in sites:
        if not site.gateway.is_running:
            site.gateway.start()
        if not site.charon.is_running:
            site.charon.start()
    for site in sites:
        site.charon.swanctl("--terminate", "--ike", "peer", "--force", check=False)
    for site in sites:
        until(lambda site=site: not site.spis(), "the SAs are gone")
        site.configure({"net": child(site.number)}, **UDP)


@pytest.fixture
def sites(both: list[Site]) -> list[Site]:
    """Both sites with a child in UDP."""
    renew(both)
    initiate(both)
    return both


@trial(here, "tunnel, IPv4 in IPv4, ESP in UDP, ESN, PSK", "pings and TCP both ways")
def test_a_child_in_udp_carries_traffic_both_ways(sites: list[Site], capture: StartCapture) -> None:
    one, two = (site.gateway.namespace for site in sites)
    wire = capture(one)
    assert ping(one, TARGET, count=20) == 20
    carry_tcp_both_ways(one, two, TARGET)
    assert no_iv_twice(wire) == set(), "a packet of protocol 50"
    for site in sites:
        assert encapsulations(site) == {"udp"}
        assert site.gateway.call("GetStats")["ike_passed"] > 0
        listed = site.charon.swanctl("--list-sas", "--raw").stdout
        assert "local-port=4500" in listed and "remote-port=4500" in listed


@trial(
    here,
    "tunnel, IPv4 in IPv6, ESP in UDP, ESN, PSK",
    "the child rekeyed from both ends under pings, none lost",
)
def test_a_child_in_udp_by_ipv6_outside(sites: list[Site]) -> None:
    renew(sites)
    ends = str(OUTER[6][0]), str(OUTER[6][1])
    for site in sites:
        site.configure({"net": child(site.number)}, addresses=ends, **UDP)
    initiate(sites)
    replace_child_under_pings(sites)
    assert encapsulations(sites[0]) == {"udp"}
    assert {sa["remote"] for sa in sas(sites[0].gateway).values()} == {ends[1]}


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP in UDP, ESN, PSK",
    "child and IKE SA rekeyed from both ends under pings, none lost",
)
def test_ten_rekeys_of_child_and_ike_under_pings_lose_nothing(sites: list[Site]) -> None:
    pings = start_pings(sites[0].gateway.namespace, TARGET, 60_000, interval=0.005)
    for number in range(10):
        replace_child(sites, number % 2)
        replace_ike(sites[number // 2 % 2])
    assert lost(pings) == 0


def count_sockets(site: Site) -> int:
    """Count how often charon has had the gateway's port."""
    return site.charon.log.read_text().count("share port 4500")


ORDERS = {
    "charon": ("kill charon", "start charon"),
    "gateway": ("kill gateway", "start gateway"),
    "both, gateway last": ("kill charon", "kill gateway", "start charon", "start gateway"),
    "both, charon last": ("kill gateway", "kill charon", "start gateway", "start charon"),
}


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP in UDP, ESN, PSK",
    "SIGKILL of charon, of the gateway, and of both, in either order",
)
@pytest.mark.parametrize("order", ORDERS)
def test_a_kill_of_either_daemon_is_mended_by_its_start(sites: list[Site], order: str) -> None:
    one = sites[0]
    host = one.gateway.namespace
    before = one.spis()
    had = count_sockets(one)
    daemons: dict[str, Any] = {"charon": one.charon, "gateway": one.gateway}
    for step in ORDERS[order]:
        action, name = step.split()
        getattr(daemons[name], action)()
    if order == "gateway":
        until(lambda: ping(host, TARGET, count=1), "the child is back")
        assert one.spis() == before
        until(lambda: count_sockets(one) > had, "the socket is back")
    else:
        until(lambda: not before & one.spis(), "the former SAs are flushed")
        until(lambda: count_sockets(one) > had, "the socket")
        one.charon.initiate()
        until(lambda: ping(host, TARGET, count=1), "the tunnel carries")
    # IKE comes by the port in both directions.
    replace_child_under_pings(sites)


def test_port_500_works_without_a_gateway_and_messages_of_the_other_port_are_repeated(
    sites: list[Site],
) -> None:
    renew(sites)
    one = sites[0]

    def logged(words: str, since: int) -> bool:
        return words in one.charon.log.read_text()[since:]

    one.gateway.kill()
    seen = len(one.charon.log.read_text())
    failed = one.charon.swanctl("--initiate", "--child", "net", "--timeout", "1", check=False)
    assert failed.returncode != 0
    assert logged("received packet: from 192.0.2.2[500] to 192.0.2.1[500]", seen)
    one.gateway.start()
    renew(sites)
    initiate(sites)
    one.gateway.kill()
    seen = len(one.charon.log.read_text())
    one.charon.swanctl("--rekey", "--ike", "peer")
    until(lambda: logged("sending packet: from 192.0.2.1[4500]", seen), "a lost message")
    assert not logged("received packet: from 192.0.2.2[4500]", seen)
    one.gateway.start()
    until(lambda: logged("rekeyed between", seen), "its repetition arrives", 30)


@trial(
    here,
    "tunnel to 0.0.0.0/0, IPv4 in IPv4, ESP in UDP, ESN, PSK",
    "child and IKE SA rekeyed under pings, none lost",
)
def test_ike_by_the_port_goes_around_a_child_that_covers_the_peer(sites: list[Site]) -> None:
    renew(sites)
    for site in sites:
        wide = {"local_ts": "0.0.0.0/0"} if site.number else {"remote_ts": "0.0.0.0/0"}
        site.configure({"net": child(site.number, **wide)}, **UDP)
    initiate(sites)
    replace_child_under_pings(sites)
    replace_ike(sites[0])
    assert ping(sites[0].gateway.namespace, TARGET, count=20) == 20
    # charon's own sockets have the gateway's mark.
    host = sites[0].gateway.namespace
    sockets = host.run("ss", "-H", "-u", "-a", "-n", "-e", "sport = :500").stdout.splitlines()
    assert len(sockets) == 2 and all("fwmark:0xe5b" in line for line in sockets), sockets


@trial(here, "tunnel, IPv4 in IPv4, ESP in UDP, ESN, PSK, MOBIKE", "an address that moves")
def test_sas_in_udp_follow_an_address_that_moves(sites: list[Site]) -> None:
    renew(sites)
    host = sites[0].gateway.namespace
    sites[0].configure({"net": child(0)}, local_addrs="%any", **UDP)
    initiate(sites)
    before = [site.spis() for site in sites]
    try:
        add_address(host, "192.0.2.11/24")
        host.ip("address", "delete", "192.0.2.1/24", "dev", "wan")
        add_address(host, "192.0.2.12/24")
        until(lambda: ping(host, TARGET, count=1), "the tunnel carries again", 30)
        assert [site.spis() for site in sites] == before
        assert encapsulations(sites[0]) == {"udp"}
        replace_child_under_pings(sites)
    finally:
        host.ip("address", "flush", "dev", "wan", "scope", "global")
        add_address(host, f"{OUTER[4][0]}/24")
        add_address(host, f"{OUTER[6][0]}/64")
