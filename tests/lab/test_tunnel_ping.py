"""`tunnel ping` and the live commands with real daemons: loss, path MTU, rates."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.pair import GatewayPair
from esp_gw.network.mtu import inner_mtu
from tests.support.engines import ENGINES
from tests.support.labtools import configured_sa, edit, ping, sas, tunnel, until
from tests.support.two_sites import PLACES, Places, TwoSites, two_sites

pytestmark = pytest.mark.either_engine


@pytest.fixture(params=ENGINES)
def sites(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TwoSites]:
    with two_sites(tmp_path, request.param) as sites:
        yield sites


@pytest.fixture(params=PLACES.values(), ids=lambda places: f"ipv{places.version}")
def places(request: pytest.FixtureRequest) -> Places:
    found: Places = request.param
    return found


def failed(gateway: LabGateway, *words: str) -> str:
    done = gateway.cli(*words, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


def test_a_ping_goes_through_the_tunnel_and_finds_the_path_mtu(
    sites: TwoSites, places: Places
) -> None:
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    sites.start()
    before = sas(sites.a)["t/out"]["packets"]
    found = sites.a.ask("tunnel", "ping", "t", "--count", "3")
    limit = inner_mtu(configured_sa(sites.a, "t/out"), 1500)
    assert (found["source"], found["destination"]) == (places.lan, places.far)
    assert (found["sent"], found["answered"]) == (3, 3)
    assert found["rtt_ms"]["min"] <= found["rtt_ms"]["mean"] <= found["rtt_ms"]["max"]
    assert found["mtu"] == found["path_mtu"] == limit
    # Two of the largest size, besides the three.
    assert sas(sites.a)["t/out"]["packets"] == before + 5
    text = sites.a.cli("tunnel", "ping", "t").stdout
    assert text.startswith(f"ping by t: {places.lan} -> {places.far}, through ")
    assert "5 sent, 5 answered, 0 % lost, round trip " in text
    assert f"path mtu {limit} bytes: all that this gateway sends" in text


def test_a_path_that_silently_drops_large_packets_is_measured(
    sites: TwoSites, places: Places
) -> None:
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    for gateway in (sites.a, sites.b):
        # A bridge lets through whatever is to be segmented by a network card.
        edit(gateway, lambda config: config["gateway"].update(offload={"udp_gso": False}))
    sites.start()
    sites.net.ip("link", "set", "port1", "mtu", "1400")
    found = sites.a.ask("tunnel", "ping", "t", "--count", "1")
    assert found["answered"] == 1
    sa = configured_sa(sites.a, "t/out")
    # A bridge leaves room for a VLAN tag.
    assert inner_mtu(sa, 1400) <= found["path_mtu"] <= inner_mtu(sa, 1404)
    text = sites.a.cli("tunnel", "ping", "t", "--count", "1").stdout
    assert f"path mtu {found['path_mtu']} bytes" in text
    if places.version == 4:
        # In IPv6 the bridge has said it by now, and the gateway sends nothing larger.
        assert f"write 'mtu: {found['path_mtu']}' in 'gateway'" in text


def test_without_an_answer_the_likely_cause_follows(sites: TwoSites, places: Places) -> None:
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    for gateway in (sites.a, sites.b):
        edit(gateway, lambda config: tunnel(config).update(liveness=1))
    sites.start()
    nft = ("nft", "add")
    sites.ns_b.run(*nft, "table", "inet", "fw")
    sites.ns_b.run(*nft, "chain", "inet", "fw", "c", "{ type filter hook input priority 0; }")
    protocols = "{ icmp, ipv6-icmp }"
    sites.ns_b.run(
        *nft, *("rule", "inet", "fw", "c", "iifname", "esp0", "meta", "l4proto", protocols, "drop")
    )
    done = sites.a.cli("tunnel", "ping", "t", "--count", "2", check=False)
    assert done.returncode == 1
    assert "2 sent, 0 answered, 100 % lost" in done.stdout
    assert "'esp-gw tunnel ping t ADDRESS'" in " ".join(done.stdout.split())
    sites.b.kill()
    until(lambda: sites.a.ask("tunnel", "show", "t")["tunnel"]["state"] == "down", "it is down", 30)
    done = sites.a.cli("tunnel", "ping", "t", "--count", "1", check=False)
    assert done.returncode == 1
    assert places.b in done.stdout.partition("lost")[2]
    found = sites.a.ask("tunnel", "ping", "t", "--count", "1")
    assert (found["answered"], found["rtt_ms"], found["path_mtu"]) == (0, None, None)


def test_what_would_go_another_way_is_refused(sites: TwoSites, places: Places) -> None:
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    sites.start()
    line = failed(sites.a, "tunnel", "ping", "t", places.net)
    assert "this host has no address" in line or "is not reached by t, but in the clear" in line
    family = f"-{places.version}"
    sites.ns_a.ip(family, "rule", "add", "to", places.remote_ts, "lookup", "main", "pref", "100")
    line = failed(sites.a, "tunnel", "ping", "t")
    assert "route: the kernel sends it by wan" in line
    assert "ip rule" in line


def test_in_transport_mode_the_peer_answers(sites: TwoSites, places: Places) -> None:
    sites.configure("transport", "", "", places)
    sites.start()
    found = sites.a.ask("tunnel", "ping", "t", "--count", "2")
    assert (found["source"], found["destination"]) == (places.a, places.b)
    assert found["answered"] == 2
    assert found["path_mtu"] == found["mtu"]


def test_monitor_has_the_rates_of_real_traffic(pair: GatewayPair) -> None:
    with subprocess.Popen(
        pair.a.namespace.command(
            *(sys.executable, "-m", "esp_gw.cli.main", "--socket", str(pair.a.socket)),
            *("monitor", "--json"),
        ),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for _ in range(10):
                assert ping(pair.a.namespace, pair.plan.inner(1), count=5) == 5
                (rates,) = json.loads(process.stdout.readline())["tunnels"]
                if rates["packets_out"] and rates["packets_in"]:
                    break
            assert rates["name"] == "pi-b"
            assert rates["bits_out"] > 0
            assert rates["bits_in"] > 0
        finally:
            process.terminate()


def test_the_status_is_watched_over_an_end_and_a_start(pair: GatewayPair) -> None:
    with subprocess.Popen(
        pair.a.namespace.command(
            *(sys.executable, "-m", "esp_gw.cli.main", "--socket", str(pair.a.socket)),
            *("status", "--watch"),
        ),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            assert f"runs, pid {pair.a.pid}" in process.stdout.readline()
            pair.a.stop()
            while "is not running" not in (line := process.stdout.readline()):
                assert line
            pair.a.start()
            while f"runs, pid {pair.a.pid}" not in (line := process.stdout.readline()):
                assert line
        finally:
            process.terminate()


def test_show_has_all_of_one_tunnel(pair: GatewayPair) -> None:
    assert ping(pair.a.namespace, pair.plan.inner(1), count=2) == 2
    shown = pair.a.ask("tunnel", "show", "pi-b")
    assert {sa["name"] for sa in shown["sas"]} == {"pi-b/out", "pi-b/in"}
    assert [policy["name"] for policy in shown["policies"]] == ["pi-b"]
    assert shown["tunnel"]["packets_out"] == 2
    until(lambda: pair.a.ask("tunnel", "show", "pi-b")["events"], "it is up")
    text = pair.a.cli("tunnel", "show", "pi-b").stdout
    assert text.startswith("tunnel: pi-b\n  state: up")


def test_a_ping_that_is_interrupted_tells_what_it_has(pair: GatewayPair) -> None:
    with subprocess.Popen(
        [
            *("ip", "netns", "exec", pair.a.namespace.name, sys.executable, "-m"),
            *("esp_gw.cli.main", "--socket", str(pair.a.socket)),
            *("tunnel", "ping", "pi-b", "--count", "10000"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            while not (line := process.stdout.readline()).startswith("2: "):
                assert line
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert " answered, 0 % lost, round trip " in rest
    assert "path mtu" not in rest
