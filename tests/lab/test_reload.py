"""A reload changes only differences; a tunnel survives loss of its peer, wire and address."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.demo.netns import Namespace
from esp_gw.demo.pair import GatewayPair
from tests.support.hub import HUB, Hub, hub_lab, inner
from tests.support.labtools import (
    MakePair,
    answers,
    drops,
    edit,
    log_without_states,
    network,
    ping,
    sas,
    start_pings,
    tunnel,
    until,
    write_key,
)


@pytest.fixture
def lab(tmp_path: Path, stack: contextlib.ExitStack) -> Iterator[Hub]:
    lab = stack.enter_context(hub_lab(tmp_path))
    lab.start()
    return lab


def test_reloads_under_load_lose_no_packet_of_an_unchanged_tunnel(lab: Hub) -> None:
    hub = lab.hub
    with_both = hub.config.read_text()
    edit(hub, lambda config: config["tunnels"].pop("site-2"))
    with_one = hub.config.read_text()
    load = start_pings(hub.namespace, inner(1), 2000, interval=0.002)
    done = 0
    while load.poll() is None:
        hub.config.write_text(with_one)
        hub.cli("reload")
        hub.config.write_text(with_both)
        hub.hangup()
        done += 2
        until(lambda done=done: hub.log.read_text().count("reloaded") == done, "the reload is done")
    assert done
    assert answers(load) == 2000
    assert lab.reaches(2)


def test_a_broken_configuration_changes_nothing_and_is_reported_by_line(lab: Hub) -> None:
    hub = lab.hub
    before, text = network(hub.namespace), hub.config.read_text()
    line = 1 + text.splitlines().index("  site-1:")
    hub.config.write_text(text.replace("  site-1:", "  site-1:\n    colour: blue", 1))
    result = hub.cli("reload", check=False)
    assert result.returncode == 1
    assert f"{hub.config}:{line + 1}: " in result.stderr
    assert "colour" in result.stderr
    hub.hangup()
    until(lambda: "not reloaded" in hub.log.read_text(), "the error is logged")
    assert f"{hub.config}:{line + 1}: " in hub.log.read_text()
    assert "Traceback" not in hub.log.read_text()
    for wrong in ("", "{", "tunnels: 5\n", "\0", "- a\n"):
        hub.config.write_text(wrong)
        assert hub.cli("reload", check=False).returncode == 1 or wrong == ""
        hub.config.write_text(text)
        hub.cli("reload")
    assert lab.reaches(1)
    assert lab.reaches(2)
    assert network(hub.namespace) == before


def test_a_key_changed_on_one_side_stops_only_that_tunnel(lab: Hub, tmp_path: Path) -> None:
    assert lab.reaches(1)
    key = str(write_key(tmp_path / "new.key"))
    edit(lab.hub, lambda config: config["tunnels"]["site-1"]["outbound"]["key"].update(file=key))
    lab.hub.cli("reload")
    assert not lab.reaches(1)
    assert lab.reaches(2)
    # The new key starts at sequence number 1, which the peer's window has seen under the old key.
    assert sum(drops(lab.sites[1]).values()) == 2
    assert set(drops(lab.sites[1])) <= {"auth-failed", "replay-duplicate"}
    edit(lab.sites[1], lambda config: config["tunnels"]["hub"]["inbound"]["key"].update(file=key))
    lab.sites[1].cli("reload")
    assert lab.reaches(1)


def test_a_removed_tunnel_leaves_nothing_and_returns_with_its_sequence_number(lab: Hub) -> None:
    hub = lab.hub
    text, before = hub.config.read_text(), network(hub.namespace)
    assert lab.reaches(1)
    seq = sas(hub)["site-1/out"]["seq"]
    edit(hub, lambda config: config["tunnels"].pop("site-1"))
    changes = hub.ask("reload")["changes"]
    assert {"sa site-1/out removed", "sa site-1/in removed"} <= set(changes)
    assert set(sas(hub)) == {"site-2/out", "site-2/in"}
    there = "\n".join(line for lines in network(hub.namespace).values() for line in lines)
    assert "10.1.0.0" not in there
    assert "192.0.1.1" not in hub.namespace.run("ss", "-uanH").stdout
    assert lab.reaches(2)

    edit(hub, lambda config: config.update(tunnels={}))
    hub.cli("reload")
    assert hub.ask("status")["sas"] == 0
    assert hub.namespace.ip("route", "show", "table", "4500") == ""
    assert "4500" not in hub.namespace.ip("rule")

    hub.config.write_text(text)
    hub.cli("reload")
    assert network(hub.namespace) == before
    assert sas(hub)["site-1/out"]["seq"] == seq
    assert lab.reaches(1)
    assert lab.reaches(2)


FIXED = {
    "interface": "esp9",
    "port": 4501,
    "fwmark": 77,
    "table": 5000,
    "state_dir": "/nowhere",
    "control_socket": "/nowhere/control.sock",
    "workers": 3,
    "pin_workers": True,
    "latency": "low",
    "offload": {"merge": False},
}


def test_changes_of_settings_fixed_at_start_are_refused(pair: GatewayPair) -> None:
    text = pair.a.config.read_text()
    for name, value in FIXED.items():
        edit(pair.a, lambda config, new={name: value}: config["gateway"].update(new))
        result = pair.a.cli("reload", check=False)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert f"gateway.{name} can't change" in line
        pair.a.config.write_text(text)
    assert pair.a.ask("reload")["changes"] == []
    assert ping(pair.a.namespace, pair.plan.inner(1), count=2) == 2


def test_a_reload_applies_new_addresses_prefixes_and_mtu(pair: GatewayPair) -> None:
    a, b = pair.a.namespace, pair.b.namespace
    before = network(a)
    text = pair.a.config.read_text()
    edit(pair.a, lambda c: c["gateway"].update(address=["10.1.0.7", "10.5.0.1"], mtu=1300))
    edit(pair.a, lambda c: tunnel(c).update(local_ts=["10.1.0.0/24", "10.5.0.0/24"]))
    edit(pair.b, lambda c: tunnel(c).update(remote_ts=["10.1.0.0/24", "10.5.0.0/24"]))
    pair.a.cli("reload")
    pair.b.cli("reload")
    assert pair.a.ask("status")["mtu"] == 1300
    assert [ping(b, address, count=2) for address in ("10.1.0.7", "10.5.0.1", "10.1.0.1")] == [
        2,
        2,
        0,
    ]
    assert ping(a, pair.plan.inner(1), count=2, size=1400) == 2
    pair.a.config.write_text(text)
    pair.a.cli("reload")
    assert network(a) == before
    assert ping(a, pair.plan.inner(1), count=2) == 2


@pytest.mark.either_engine
def test_a_reload_restores_settings_removed_by_others(pair: GatewayPair) -> None:
    host = pair.a.namespace
    before = network(host)
    host.ip("route", "flush", "table", "4500")
    host.ip("rule", "del", "table", "4500")
    host.ip("address", "flush", "dev", "esp0")
    host.ip("link", "set", "esp0", "down")
    host.ip("link", "set", "esp0", "up")
    assert network(host) != before
    pair.a.cli("reload")
    assert network(host) == before
    assert ping(host, pair.plan.inner(1), count=2) == 2
    assert pair.a.ask("reload")["changes"] == []


def test_all_tunnels_of_a_hub_carry_traffic_at_once(lab: Hub) -> None:
    pings = [
        start_pings(source, target, 200, interval=0.005)
        for source, target in (
            (lab.hub.namespace, inner(1)),
            (lab.hub.namespace, inner(2)),
            (lab.sites[1].namespace, HUB),
            (lab.sites[2].namespace, HUB),
        )
    ]
    assert [answers(process) for process in pings] == [200] * 4
    tunnels = lab.hub.ask("tunnel", "list")["tunnels"]
    assert {(t["name"], t["packets_in"], t["packets_out"]) for t in tunnels} == {
        ("site-1", 400, 400),
        ("site-2", 400, 400),
    }
    assert drops(lab.hub) == {}


def test_a_peer_may_start_late_disappear_and_return(make_pair: MakePair) -> None:
    pair = make_pair()
    target = pair.plan.inner(1)
    pair.a.start()
    assert ping(pair.a.namespace, target, count=3) == 0
    pair.b.start()
    assert ping(pair.a.namespace, target, count=3) == 3
    pair.b.stop()
    words = log_without_states(pair.a)
    busy = pair.a.usage().cpu_s
    assert ping(pair.a.namespace, target, count=300) == 0
    assert log_without_states(pair.a) == words
    assert pair.a.usage().cpu_s - busy < 2
    pair.b.start()
    assert ping(pair.a.namespace, target, count=3) == 3
    assert pair.a.is_running


@pytest.mark.parametrize("end", ["a", "b"])
def test_a_wire_that_goes_down_breaks_nothing_permanently(pair: GatewayPair, end: str) -> None:
    host: Namespace = getattr(pair, end).namespace
    target = pair.plan.inner(1)
    host.ip("link", "set", "wan", "down")
    busy = pair.a.usage().cpu_s
    assert ping(pair.a.namespace, target, count=50) == 0
    assert pair.a.usage().cpu_s - busy < 2
    host.ip("link", "set", "wan", "up")
    until(lambda: ping(pair.a.namespace, target, count=1), "traffic flows again")
    assert "Traceback" not in pair.a.log.read_text()


@pytest.mark.parametrize("version", [4, 6])
def test_an_outer_address_may_appear_after_the_start(make_pair: MakePair, version: int) -> None:
    pair = make_pair(outer_version=version)
    address = {4: "192.0.2.1/24", 6: "2001:db8::1/64"}[version]
    pair.a.namespace.ip("address", "del", address, "dev", "wan")
    pair.start()
    target = pair.plan.inner(1)
    assert ping(pair.a.namespace, target, count=1) == 0
    nodad = ["nodad"] if version == 6 else []
    pair.a.namespace.ip("address", "add", address, "dev", "wan", *nodad)
    until(lambda: ping(pair.a.namespace, target, count=1), "traffic flows")
