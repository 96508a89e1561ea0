"""Two charons and two gateways at their busiest: full speed, rekeys of both ends, many children."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import add_address, end
from esp_gw.demo.traffic import iperf_server
from esp_gw.model import DropReason
from tests.support import ike_sites
from tests.support.charon import Installation, here
from tests.support.evidence import trial
from tests.support.ike_rig import child
from tests.support.ike_sites import TARGET, Site, initiate
from tests.support.labtools import MakePair, answers, drops, ping, start_pings, until

REKEYS = {"native": 100, "python": 5}
Start = Callable[..., list[Site]]


@pytest.fixture
def start_sites(
    make_pair: MakePair, installed: Installation, tmp_path: Path, stack: contextlib.ExitStack
) -> Start:
    """Start two sites whose child `net` has these fields."""

    def start(of_connection: dict[str, Any] | None = None, **fields: object) -> list[Site]:
        pair = make_pair(inner_versions=(4,))
        return ike_sites.start_sites(
            pair, tmp_path, (installed,) * 2, stack, of_connection, **fields
        )

    return start


def ike_spis(site: Site) -> set[str]:
    """Return the initiators' SPIs of a site's IKE SAs.

    Of two that began at once charon keeps the redundant one for a while, as rekeyed.
    """
    listed = site.charon.swanctl("--list-sas", "--raw").stdout
    return set(re.findall("state=ESTABLISHED [^{}]*?initiator-spi=([0-9a-f]+)", listed))


@contextlib.contextmanager
def full_speed(sites: list[Site]) -> Iterator[Counter[str]]:
    """Send at full speed both ways during the block; then find where each packet has been.

    Yields the drops of both gateways, which are there once the block has ended.
    """
    gateways = [site.gateway for site in sites]
    before = [gateway.call("GetStats") for gateway in gateways]
    lost: Counter[str] = Counter()
    with iperf_server(gateways[1].namespace, TARGET):
        load = ("-t", "600", "--bidir", "--connect-timeout", "3000")
        client = gateways[0].namespace.start("iperf3", "-c", TARGET, *load)
        until(lambda: packets(gateways[1]) > before[1]["packets_in"] + 1000, "the load")
        yield lost
        assert client.poll() is None, "the load ended before the rekeys"
        end(client)
    lost += drops(gateways[0]) + drops(gateways[1])
    for sender, receiver in ((0, 1), (1, 0)):

        def missing(sender: int = sender, receiver: int = receiver) -> int:
            out = gateways[sender].call("GetStats")["packets_out"]
            into = gateways[receiver].call("GetStats")
            seen = into["packets_in"] - before[receiver]["packets_in"]
            overflow = into["drops"].get(DropReason.SOCKET_OVERFLOW, 0)
            return int(out - before[sender]["packets_out"] - seen - overflow)

        until(lambda missing=missing: missing() == 0, "each packet that was sent has arrived")


def await_sas(sites: list[Site], number: int) -> None:
    """Wait until both gateways have so many SAs; a list of all each moment would keep them busy."""

    def are_there() -> bool:
        time.sleep(0.5)
        counts = [site.gateway.call("GetStatus")["sas"] for site in sites]
        return counts == [number] * len(sites)

    until(are_there, f"{number} SAs", 240)


def packets(gateway: LabGateway) -> int:
    found: int = gateway.call("GetStats")["packets_in"]
    return found


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK",
    "child and IKE SA rekeyed under TCP at full speed both ways, none lost in the gateways",
)
def test_rekeys_of_child_and_ike_at_full_speed_lose_no_packet_in_the_gateways(
    start_sites: Start,
) -> None:
    sites = start_sites()
    initiate(sites)
    count = REKEYS[sites[0].gateway.call("GetStatus")["engine"]]
    with full_speed(sites) as lost:
        for number in range(count):
            rekeying = sites[number % 2]
            if number % 5 == 4:
                former = ike_spis(rekeying)
                rekeying.charon.swanctl("--rekey", "--ike", "peer")
                until(
                    lambda site=rekeying, former=former: not former & ike_spis(site),
                    "another IKE SA",
                    20,
                )
                continue
            before = [site.policy_sa() for site in sites]
            rekeying.charon.swanctl("--rekey", "--child", "net")
            for site, sa in zip(sites, before, strict=True):
                until(lambda site=site, sa=sa: site.carries_by_another(sa), "a new SA", 20)
    # Overflow of the kernel's own buffers is no loss of a rekey.
    assert set(lost) <= {DropReason.SOCKET_OVERFLOW}, lost


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK",
    "the IKE SA rekeyed from both ends at once, no ping lost",
)
@pytest.mark.either_engine
def test_ike_rekeys_of_both_ends_at_once_leave_one_ike_sa_and_the_child(
    start_sites: Start,
) -> None:
    sites = start_sites()
    initiate(sites)
    children = [site.spis() for site in sites]
    pings = start_pings(sites[0].gateway.namespace, TARGET, 1000, interval=0.005)

    def rekey(site: Site) -> None:
        site.charon.swanctl("--rekey", "--ike", "peer", check=False)

    first = ike_spis(sites[0])
    # Where both collide, one of them may be told to try again later (RFC 7296 2.25.2).
    for _ in range(5):
        with ThreadPoolExecutor() as pool:
            list(pool.map(rekey, sites))

        def is_one() -> bool:
            ends = [ike_spis(site) for site in sites]
            return ends[0] == ends[1] and len(ends[0]) == 1

        until(is_one, "one IKE SA", 20)
    assert ike_spis(sites[0]) != first
    assert answers(pings) == 1000
    assert [site.spis() for site in sites] == children


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK, close_action {action}",
    "a child that the peer closes",
)
@pytest.mark.either_engine
@pytest.mark.parametrize("action", ["trap", "start"])
def test_what_the_peer_closes_stays_closed_and_comes_back(start_sites: Start, action: str) -> None:
    sites = start_sites()
    sites[0].configure({"net": child(0, close_action=action)})
    initiate(sites)
    host = sites[0].gateway.namespace
    before = sites[0].spis()
    sites[1].charon.swanctl("--terminate", "--child", "net")
    if action == "trap":
        until(lambda: not sites[0].spis(), "the SAs are gone")
        (policy,) = sites[0].gateway.call("ListPolicies")["policies"]
        assert (policy["action"], policy["sas"]) == ("protect", [])
        assert drops(sites[0].gateway)["no-sa"] == 0
        ping(host, TARGET, count=1)
        assert drops(sites[0].gateway)["no-sa"] == 1
    until(lambda: ping(host, TARGET, count=1), "another child carries", 20)
    assert not before & sites[0].spis()


@trial(
    here,
    "tunnel, IPv4 in IPv4, ESP, ESN, PSK, {count} children",
    "all begin, one is rekeyed, all end",
)
@pytest.mark.either_engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.vm_full)])
def test_many_children_begin_are_rekeyed_and_end(start_sites: Start, count: int) -> None:
    sites = start_sites()
    for site in sites:
        site.configure(
            {
                f"c{number}": {
                    **child(site.number),
                    ("remote_ts", "local_ts")[site.number]: f"10.2.{number}.0/24",
                    "start_action": "none" if site.number else "start",
                }
                for number in range(count)
            }
        )
    add_address(sites[0].gateway.namespace, "10.1.0.1/24", "lo")
    sites[1].gateway.namespace.ip("route", "add", "local", "10.2.0.0/16", "dev", "lo")
    await_sas(sites, 2 * count)
    host = sites[0].gateway.namespace
    for number in (0, count // 2, count - 1):
        until(lambda number=number: ping(host, f"10.2.{number}.1", count=1), "each carries")
    pings = start_pings(host, "10.2.7.1", 400, interval=0.005)
    former = sites[0].spis()
    sites[0].charon.swanctl("--rekey", "--child", "c7")
    until(lambda: len(former - sites[0].spis()) == 2, "it is rekeyed, the others stay", 20)
    assert answers(pings) == 400
    sites[1].charon.swanctl("--terminate", "--ike", "peer", "--timeout", "60", check=False)
    await_sas(sites, 0)
    for site in sites:
        until(lambda site=site: not site.gateway.call("ListPolicies")["policies"], "no policy")
