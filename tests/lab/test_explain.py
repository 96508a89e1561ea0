"""`explain` with real daemons: what it says stops a packet does, and its remedy mends it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace
from tests.support.engines import ENGINES
from tests.support.labtools import edit, ping, tunnel, until, write
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


def explained(gateway: LabGateway, *words: str) -> dict[str, Any]:
    return gateway.ask("explain", *words)


def stop(gateway: LabGateway, *words: str) -> tuple[str, str, str]:
    """The step that stops a flow; the exit status says that one does."""
    told = explained(gateway, *words)
    assert told["verdict"] == "stopped", told
    assert gateway.cli("explain", *words, check=False).returncode == 1
    step = next(each for each in told["steps"] if each["state"] == "stop")
    return step["what"], step["found"], step["todo"]


def carried(gateway: LabGateway, *words: str) -> dict[str, Any]:
    told = explained(gateway, *words)
    assert told["verdict"] == "carried", told
    assert [each for each in told["steps"] if each["state"] != "ok"] == []
    return told


def mend(where: Namespace, todo: str) -> None:
    """Run the commands that a step names."""
    for command in re.findall(r"'([^']+)'", todo):
        where.run(*command.split())


def start(sites: TwoSites, places: Places, **more: Any) -> None:
    sites.configure("tunnel", places.local_ts, places.remote_ts, places, **more)
    sites.start()


def test_every_way_is_told_as_it_is_from_both_ends(sites: TwoSites, places: Places) -> None:
    start(sites, places)
    assert ping(sites.ns_a, places.far, count=1) == 1
    assert ping(sites.host, places.far, count=1) == 1
    for source in (places.lan, places.host):
        told = carried(sites.a, source, places.far)
        assert (told["directions"], told["sas"]) == (["outbound"], ["t/out"])
        told = carried(sites.a, places.far, source)
        assert (told["directions"], told["sas"]) == (["inbound"], ["t/in"])
        # The other end sees the same packets.
        assert carried(sites.b, source, places.far)["directions"] == ["inbound"]
        told = carried(sites.b, places.far, source, "tcp", "443")
        assert told["directions"] == ["outbound"]
        device = "esp0"
        overhead = {4: 1500 - told["mtu"], 6: 1500 - told["mtu"]}[places.version]
        assert 50 < overhead < 100, device
    told = explained(sites.a, places.a, places.b)
    assert (told["verdict"], told["policy"]) == ("clear", None)
    told = explained(sites.a, places.lan, places.a)
    assert told["verdict"] == "clear"


def test_a_host_that_does_not_forward(sites: TwoSites, places: Places) -> None:
    start(sites, places)
    setting = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}[places.version]
    write(sites.ns_a, {setting: 0})
    assert ping(sites.host, places.far, count=1) == 0
    what, _, todo = stop(sites.a, places.host, places.far)
    assert what == "forward"
    assert stop(sites.a, places.far, places.host)[0] == "forward"
    carried(sites.a, places.lan, places.far)
    mend(sites.ns_a, todo.removeprefix("run "))
    carried(sites.a, places.host, places.far)
    assert ping(sites.host, places.far, count=1) == 1


NAT = """
table inet home {
    chain post {
        type nat hook postrouting priority 100
        snat %s to %s
    }
}
"""


def test_a_source_that_the_host_translates(sites: TwoSites, places: Places) -> None:
    start(sites, places)
    assert carried(sites.a, places.host, places.far)
    family = {4: "ip", 6: "ip6"}[places.version]
    sites.ns_a.run("nft", NAT % (family, places.a))
    assert ping(sites.host, places.far, count=1) == 0
    told = explained(sites.a, places.host, places.far)
    (step,) = [each for each in told["steps"] if each["state"] != "ok"]
    assert (step["what"], step["state"]) == ("nat", "warning")
    assert "chain post of table inet home changes its source (snat)" in step["found"]
    mend(sites.ns_a, step["todo"])
    carried(sites.a, places.host, places.far)
    assert ping(sites.host, places.far, count=1) == 1


RULES = {
    "forward": "type filter hook forward priority 0; policy drop;",
    "input": "type filter hook input priority 0; policy drop;",
    "output": "type filter hook output priority 0; policy drop;",
}


@pytest.mark.parametrize("hook", RULES)
def test_a_chain_that_drops(sites: TwoSites, places: Places, hook: str) -> None:
    start(sites, places)
    ns, far = sites.ns_a, places.far
    ns.run("nft", "add", "table", "inet", "fw")
    ns.run("nft", "add", "chain", "inet", "fw", "c", f"{{ {RULES[hook]} }}")
    # The outer packets, and what else the host needs.
    for interface in ("wan", "lo"):
        for key in ("iifname", "oifname"):
            if (hook, key) not in (("input", "oifname"), ("output", "iifname")):
                ns.run("nft", "add", "rule", "inet", "fw", "c", key, interface, "accept")
    source, target = {
        "forward": (places.host, far),
        "input": (far, places.lan),
        "output": (places.lan, far),
    }[hook]
    pinging = {"forward": sites.host, "input": sites.ns_b, "output": ns}[hook]
    assert ping(pinging, target, count=1) == 0
    what, found, todo = stop(sites.a, source, target)
    assert (what, found) == ("firewall", "chain c of table inet fw drops it")
    mend(ns, todo.removeprefix("run "))
    carried(sites.a, source, target)
    if hook != "input":
        assert ping(pinging, target, count=1) == 1


def test_a_source_outside_of_local_ts(sites: TwoSites, places: Places) -> None:
    start(sites, places)
    what, found, todo = stop(sites.a, places.a, places.far)
    assert what == "policy"
    assert "dropped as no-policy" in found
    assert f"t carries to {places.remote_ts} what comes from {places.local_ts}" in found
    assert "local_ts" in todo

    def is_seen() -> bool:
        # The host's own multicast may come after it: the last one is told.
        bound = sites.ns_a.run("ping", "-c1", "-W1", "-I", places.a, places.far, check=False)
        assert bound.returncode != 0
        return seen(sites.a, "no-policy") == f"{places.a} to {places.far}"

    until(is_seen, "it was seen", 30)


def seen(gateway: LabGateway, reason: str) -> str | None:
    told = gateway.ask("explain", "--drops")
    drops = [each for entry in told["tunnels"] for each in entry["drops"]] + told["others"]
    return next((each["seen"] for each in drops if each["reason"] == reason), None)


def test_a_peer_that_is_gone(sites: TwoSites, places: Places) -> None:
    sites.configure("tunnel", places.local_ts, places.remote_ts, places)
    for gateway in (sites.a, sites.b):
        edit(gateway, lambda config: tunnel(config).update(liveness=1))
    sites.start()
    assert ping(sites.ns_a, places.far, count=1) == 1
    sites.b.kill()

    def is_told() -> bool:
        told = explained(sites.a, places.lan, places.far)
        return told["verdict"] == "stopped"

    until(is_told, "the peer is missed", 30)
    what, found, _ = stop(sites.a, places.lan, places.far)
    assert what == "peer"
    assert places.b in found
    assert stop(sites.a, places.far, places.lan)[0] == "peer"


def test_policies_of_the_cli_before_the_tunnel(sites: TwoSites, places: Places) -> None:
    start(sites, places)
    for name, action, port in (("smtp", "discard", "25"), ("web", "bypass", "80")):
        sites.a.cli(
            *("policy", "add", name, "--action", action, "--before", "t", "--protocol", "tcp"),
            *("--local-ts", places.local_ts, "--remote-ts", places.remote_ts),
            *("--remote-port", port),
        )
    told = explained(sites.a, places.lan, places.far)
    assert (
        "first smtp: discard tcp remote port 25, web: bypass tcp remote port 80"
        in (told["steps"][0]["found"])
    )
    what, _, todo = stop(sites.a, places.lan, places.far, "tcp", "25")
    assert (what, todo) == ("policy", "'esp-gw policy delete smtp' lifts it")
    told = explained(sites.a, places.lan, places.far, "tcp", "80")
    assert (told["verdict"], told["policy"]) == ("clear", "web")
    carried(sites.a, places.lan, places.far, "tcp", "443")


def test_a_rule_of_another_program_precedes(sites: TwoSites, places: Places) -> None:
    start(sites, places)
    family = f"-{places.version}"
    sites.ns_a.ip(family, "rule", "add", "to", places.remote_ts, "lookup", "main", "pref", "100")
    what, found, _ = stop(sites.a, places.lan, places.far)
    assert what == "route"
    assert f"by wan via {places.net}, not into esp0" in found


def test_a_strict_reverse_path_filter(sites: TwoSites) -> None:
    places = PLACES[4]
    start(sites, places)
    sites.ns_a.ip("rule", "add", "to", places.far, "lookup", "main", "pref", "100")
    write(sites.ns_a, {"ipv4/conf/esp0/rp_filter": 1})
    what, found, todo = stop(sites.a, places.far, places.lan)
    assert what == "route"
    assert "the reverse path filter of esp0 drops it" in found
    mend(sites.ns_a, todo.removeprefix("run "))
    told = explained(sites.a, places.far, places.lan)
    assert [each["what"] for each in told["steps"] if each["state"] != "ok"] == ["answers"]


def test_a_protected_default_route_and_what_is_near(sites: TwoSites, places: Places) -> None:
    sites.configure("tunnel", places.local_ts, places.default, places)
    sites.start()
    assert carried(sites.a, places.host, places.stranger)["policy"] == "t"
    # The uplink's network, and the gateway's own traffic from its outer address.
    assert explained(sites.a, places.host, places.net)["verdict"] == "clear"
    assert explained(sites.a, places.a, places.stranger)["verdict"] == "clear"


def test_in_transport_mode_the_peer_itself(sites: TwoSites, places: Places) -> None:
    sites.configure("transport", "", "", places)
    sites.start()
    assert carried(sites.a, places.a, places.b)["sas"] == ["t/out"]
    assert carried(sites.a, places.b, places.a)["sas"] == ["t/in"]
    assert explained(sites.a, places.a, places.net)["verdict"] == "clear"


def test_drops_of_a_forged_packet_are_told_with_the_last_one(sites: TwoSites) -> None:
    places = PLACES[4]
    start(sites, places)
    edit(sites.b, lambda config: tunnel(config)["outbound"].update(spi=0x7777))
    sites.b.cli("reload", "--config", str(sites.b.config))
    ping(sites.ns_b, places.lan, count=3)
    until(lambda: seen(sites.a, "unknown-spi"), "it was seen")
    assert seen(sites.a, "unknown-spi") == f"from {places.b} port 4500, SPI 0x00007777"
    text = sites.a.cli("explain", "--drops").stdout
    assert "unknown-spi 3: packets that have an SPI of no SA here" in text
