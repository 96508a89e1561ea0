"""Two charons negotiate the children of two gateways: traffic, rekeys, ends and restarts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from esp_gw.demo.netns import add_address, end
from esp_gw.demo.pair import NETS, OUTER
from esp_gw.demo.traffic import iperf_server
from esp_gw.network.link import TUN_OVERFLOW
from tests.support import ike_sites
from tests.support.charon import Installation, here
from tests.support.evidence import trial
from tests.support.ike_rig import child
from tests.support.ike_sites import TARGET, Site, initiate, no_iv_twice
from tests.support.labtools import (
    MakePair,
    StartCapture,
    answers,
    carry_tcp_both_ways,
    frames,
    lost,
    ping,
    start_pings,
    until,
)

# charon and the daemon decide here; the engines carry what they are told.
pytestmark = pytest.mark.either_engine

Start = Callable[..., list[Site]]


@pytest.fixture
def start_sites(
    make_pair: MakePair, installed: Installation, tmp_path: Path, stack: contextlib.ExitStack
) -> Start:
    """Start two sites whose child `net` has these fields."""

    def start(
        of_connection: dict[str, Any] | None = None,
        inner_versions: tuple[int, ...] = (4,),
        **fields: object,
    ) -> list[Site]:
        pair = make_pair(inner_versions=inner_versions)
        return ike_sites.start_sites(
            pair, tmp_path, (installed,) * 2, stack, of_connection, **fields
        )

    return start


@trial(here, "tunnel, IPv4 in IPv4, ESP, ESN, PSK", "pings and TCP both ways")
def test_a_child_carries_traffic_both_ways(start_sites: Start) -> None:
    sites = start_sites()
    initiate(sites)
    one, two = (site.gateway.namespace for site in sites)
    assert ping(one, TARGET, count=20) == 20
    carry_tcp_both_ways(one, two, TARGET)
    for site in sites:
        listed = site.charon.swanctl("--list-sas", "--raw").stdout
        assert "packets-in=0 " not in listed and "use-in=" in listed


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK",
    "the child rekeyed from both ends under pings, none lost, no IV twice",
)
def test_rekeys_under_pings_lose_nothing(start_sites: Start, capture: StartCapture) -> None:
    sites = start_sites()
    initiate(sites)
    wire = capture(sites[0].gateway.namespace)
    pings = start_pings(sites[0].gateway.namespace, TARGET, 60_000, interval=0.005)
    for number in range(10):
        before = [site.policy_sa() for site in sites]
        sites[number % 2].charon.swanctl("--rekey", "--child", "net")
        for site, former in zip(sites, before, strict=True):
            until(lambda site=site, former=former: site.carries_by_another(former), "a new SA")
    assert lost(pings) == 0
    assert len(no_iv_twice(wire)) == 22


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK",
    "the child rekeyed from both ends under UDP, none lost in the gateways",
)
def test_rekeys_under_load_lose_no_packet_in_the_gateways(start_sites: Start) -> None:
    sites = start_sites()
    initiate(sites)
    one, two = (site.gateway for site in sites)
    before = one.call("GetStats")["packets_out"], two.call("GetStats")["packets_in"]
    load = ("-u", "-b", "20M", "-l", "1400", "-t", "60")
    with iperf_server(two.namespace, TARGET):
        client = one.namespace.start("iperf3", "-c", TARGET, *load)
        until(lambda: one.call("GetStats")["packets_out"] > before[0] + 1000, "the load")
        for number in range(20):
            former = sites[0].policy_sa()
            sites[number % 2].charon.swanctl("--rekey", "--child", "net")
            until(lambda former=former: sites[0].carries_by_another(former), "a new SA carries", 20)
        assert client.poll() is None, "the load ended before the rekeys"
        end(client)

    def in_flight() -> int:
        sent = one.call("GetStats")["packets_out"] - before[0]
        return int(sent - (two.call("GetStats")["packets_in"] - before[1]))

    until(lambda: in_flight() == 0, "what was sent has arrived")
    drops = [gateway.call("GetStats")["drops"] for gateway in (one, two)]
    assert not [drop for drop in drops if set(drop) - {TUN_OVERFLOW}], drops


@trial(here, "tunnel, IPv4 in IPv4, ESP, ESN, PSK", "a trap stays closed without its tunnel")
def test_termination_with_a_trap_leaves_the_gateway_closed(
    start_sites: Start, capture: StartCapture
) -> None:
    sites = start_sites(start_action="trap")
    host = sites[0].gateway.namespace
    # The way that a protected packet would take by mistake.
    host.ip("route", "add", "default", "via", "192.0.2.2")
    initiate(sites)
    wire = capture(host)
    # The peer doesn't answer any more, so that no packet brings the child back.
    sites[1].charon.stop()
    until(lambda: not sites[0].spis(), "the SAs are gone")
    assert ping(host, TARGET, count=5) == 0
    seen = list(frames(wire.stop()))
    assert seen and not [frame for frame in seen if frame[30:34] == ip_address(TARGET).packed]


def test_termination_without_a_trap_leaves_no_policy(start_sites: Start) -> None:
    sites = start_sites()
    initiate(sites)
    sites[0].charon.swanctl("--terminate", "--ike", "peer")
    for site in sites:
        until(lambda site=site: not site.spis(), "the SAs are gone")
        assert site.gateway.call("ListPolicies")["policies"] == []


@trial(here, "tunnel, IPv4 in IPv4, ESP, ESN, PSK", "the first packet brings the tunnel")
def test_the_first_packet_brings_the_child_of_a_trap(start_sites: Start) -> None:
    sites = start_sites(start_action="trap")
    host = sites[0].gateway.namespace
    until(lambda: ping(host, TARGET, count=1), "a packet has brought the child", 20)
    sites[1].charon.swanctl("--terminate", "--ike", "peer")
    until(lambda: ping(host, TARGET, count=1), "and does so again", 20)


@trial(here, "tunnel, IPv4 in IPv4, ESP, ESN, PSK", "SIGKILL of charon, and its start")
def test_children_go_on_while_charon_is_away_and_are_replaced_at_its_start(
    start_sites: Start,
) -> None:
    sites = start_sites()
    initiate(sites)
    host = sites[0].gateway.namespace
    before = sites[0].spis()
    sites[0].charon.kill()
    assert ping(host, TARGET, count=20) == 20
    sites[0].charon.start()
    until(lambda: not before & sites[0].spis(), "the former SAs are flushed")
    initiate(sites)


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK",
    "SIGKILL of the gateway, and its start: no IV twice",
)
def test_children_outlive_a_kill_of_the_gateway(start_sites: Start, capture: StartCapture) -> None:
    sites = start_sites()
    initiate(sites)
    host = sites[0].gateway.namespace
    wire = capture(host)
    before = sites[0].spis()
    for _ in range(2):
        sites[0].gateway.kill()
        sites[0].gateway.start()
        until(lambda: ping(host, TARGET, count=1), "the tunnel is back")
    assert sites[0].spis() == before
    sites[0].charon.await_log("esp_gw: session with the gateway")
    sites[0].charon.swanctl("--rekey", "--child", "net")
    until(lambda: not before & sites[0].spis(), "a rekey by the new session")
    assert ping(host, TARGET, count=20) == 20
    assert no_iv_twice(wire) >= before


def test_a_child_is_made_anew_when_the_gateway_has_lost_it(start_sites: Start) -> None:
    sites = start_sites()
    initiate(sites)
    gateway = sites[0].gateway
    before = sites[0].spis()
    gateway.kill()
    for kept in (gateway.folder / "ike").iterdir():
        kept.unlink()
    gateway.start()
    host = gateway.namespace
    until(lambda: ping(host, TARGET, count=1), "a new child carries", 30)
    assert not before & sites[0].spis()


@trial(here, "tunnel to 0.0.0.0/0, IPv4 in IPv4, ESP, ESN, PSK", "pings, the child rekeyed")
def test_remote_networks_may_cover_the_peer(start_sites: Start) -> None:
    sites = start_sites()
    for number, site in enumerate(sites):
        wide = {"local_ts": "0.0.0.0/0"} if number else {"remote_ts": "0.0.0.0/0"}
        site.configure({"net": child(number, **wide)})
    initiate(sites)
    # IKE goes on around the tunnel.
    before = sites[0].spis()
    sites[0].charon.swanctl("--rekey", "--child", "net")
    until(lambda: not before & sites[0].spis(), "a rekey")
    assert ping(sites[0].gateway.namespace, TARGET, count=20) == 20


@trial(here, "tunnel, IPv{inner} in IPv{outer}, ESP, ESN, PSK", "pings and TCP both ways")
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_both_ip_versions_inside_and_outside(start_sites: Start, outer: int, inner: int) -> None:
    nets = [str(net) for net in NETS[inner]]
    ends = str(OUTER[outer][0]), str(OUTER[outer][1])
    sites = start_sites({"addresses": ends}, inner_versions=(4, 6))
    for number, site in enumerate(sites):
        net = child(number, local_ts=nets[number], remote_ts=nets[1 - number])
        site.configure({"net": net}, addresses=ends)
    sites[0].charon.initiate()
    host, target = sites[0].gateway.namespace, str(NETS[inner][1][1])
    until(lambda: ping(host, target, count=1), "the tunnel carries")
    carry_tcp_both_ways(host, sites[1].gateway.namespace, target)


@trial(here, "transport, IPv4, ESP, ESN, PSK", "pings, the child rekeyed")
def test_transport_mode_protects_what_the_hosts_themselves_send(
    start_sites: Start, capture: StartCapture
) -> None:
    sites = start_sites(mode="transport", local_ts="dynamic", remote_ts="dynamic")
    host = sites[0].gateway.namespace
    sites[0].charon.initiate()
    until(lambda: ping(host, "192.0.2.2", count=1), "the hosts reach each other")
    wire = capture(host)
    assert ping(host, "192.0.2.2", count=20) == 20
    sites[0].charon.swanctl("--rekey", "--child", "net")
    assert ping(host, "192.0.2.2", count=20) == 20
    icmp = [
        frame for frame in frames(wire.stop()) if frame[12:14] == b"\x08\x00" and frame[23] == 1
    ]
    assert icmp == []


@trial(here, "tunnel, IPv4 in IPv4, ESP, ESN, PSK, MOBIKE", "an address that moves")
def test_children_keep_their_sas_when_an_address_moves(start_sites: Start) -> None:
    sites = start_sites({"mobike": "yes"})
    host = sites[0].gateway.namespace
    sites[0].configure({"net": child(0)}, mobike="yes", local_addrs="%any")
    initiate(sites)
    before = [site.spis() for site in sites]
    add_address(host, "192.0.2.11/24")
    host.ip("address", "delete", "192.0.2.1/24", "dev", "wan")
    add_address(host, "192.0.2.12/24")
    until(lambda: ping(host, TARGET, count=1), "the tunnel carries again", 30)
    assert [site.spis() for site in sites] == before


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK",
    "the child rekeyed from both ends at once, no ping lost",
)
def test_rekeys_of_both_ends_at_once_leave_one_child(start_sites: Start) -> None:
    sites = start_sites()
    initiate(sites)
    host = sites[0].gateway.namespace
    pings = start_pings(host, TARGET, 1000, interval=0.005)
    for _ in range(5):
        before = [site.spis() for site in sites]
        with ThreadPoolExecutor() as pool:
            list(pool.map(Site.rekey, sites))
        for site, former in zip(sites, before, strict=True):
            until(
                lambda site=site, former=former: len(site.spis()) == 2 and not former & site.spis(),
                "one new child",
                20,
            )
    assert answers(pings) == 1000


@trial(
    here,
    "tunnel to 0.0.0.0/0 from a virtual address, IPv4 in IPv4, ESP, ESN, PSK",
    "pings, the child rekeyed",
)
def test_a_virtual_address_carries_everything(start_sites: Start) -> None:
    sites = start_sites()
    client, server = sites
    client.configure({"net": child(0, local_ts="dynamic", remote_ts="0.0.0.0/0")}, vips="0.0.0.0")
    server.configure({"net": child(1, local_ts="0.0.0.0/0", remote_ts="dynamic")}, pools="guests")
    client.charon.initiate()
    host = client.gateway.namespace
    until(lambda: ping(host, TARGET, count=1), "the tunnel carries")
    assert "10.99.0.1" in host.ip("address", "show")
    client.charon.swanctl("--rekey", "--child", "net")
    assert ping(host, TARGET, count=20) == 20
    client.charon.swanctl("--terminate", "--ike", "peer")
    until(lambda: "10.99.0.1" not in host.ip("address", "show"), "the address is gone")
