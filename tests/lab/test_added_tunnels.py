"""Tunnels of the command line with real daemons: added, changed under traffic, and removed."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import answers, ping, sas, start_pings, write_key

pytestmark = pytest.mark.either_engine

NETS = {"a": ("10.1.8.0/24", "10.1.8.1"), "b": ("10.2.8.0/24", "10.2.8.1")}
MORE = ("10.2.9.0/24", "10.2.9.1")


def add(pair: GatewayPair, folder: Path) -> None:
    """Add the tunnel `more` at both ends, for a network behind each."""
    there, back = write_key(folder / "there.key"), write_key(folder / "back.key")
    ends = (
        (pair.a, "a", "b", ("192.0.2.1", "192.0.2.2"), ("0x8001", "0x8002"), (there, back)),
        (pair.b, "b", "a", ("192.0.2.2", "192.0.2.1"), ("0x8002", "0x8001"), (back, there)),
    )
    for gateway, own, other, (local, remote), spis, keys in ends:
        add_address(gateway.namespace, f"{NETS[own][1]}/32", "lo")
        shown = gateway.ask(
            *("tunnel", "add", "more", "--local", local, "--remote", remote),
            *("--local-ts", NETS[own][0], "--remote-ts", NETS[other][0]),
            *("--outbound-spi", spis[0], "--outbound-key", str(keys[0])),
            *("--inbound-spi", spis[1], "--inbound-key", str(keys[1])),
        )
        assert shown["tunnel"]["name"] == "more"
        assert {sa["name"] for sa in shown["sas"]} == {"more/out", "more/in"}


def test_a_tunnel_is_added_pinged_and_kept_over_a_restart(
    pair: GatewayPair, tmp_path: Path
) -> None:
    add(pair, tmp_path)
    found = pair.a.ask("tunnel", "ping", "more", "--count", "2")
    assert (found["source"], found["destination"]) == (NETS["a"][1], NETS["b"][1])
    assert found["answered"] == 2
    told = pair.a.ask("explain", NETS["a"][1], NETS["b"][1])
    assert (told["verdict"], told["policy"], told["sas"]) == ("carried", "more", ["more/out"])
    told = pair.a.ask("explain", NETS["b"][1], NETS["a"][1])
    assert (told["verdict"], told["sas"]) == ("carried", ["more/in"])
    pair.a.stop()
    pair.a.start()
    assert ping(pair.a.namespace, NETS["b"][1], count=2) == 2
    names = [entry["name"] for entry in pair.a.ask("tunnel", "list")["tunnels"]]
    assert names == ["pi-b", "more"]


def test_a_change_loses_nothing_and_is_there_at_once(pair: GatewayPair, tmp_path: Path) -> None:
    add(pair, tmp_path)
    a, b = pair.a.namespace, pair.b.namespace
    add_address(b, f"{MORE[1]}/32", "lo")
    assert ping(a, MORE[1], count=1) == 0
    pings = start_pings(a, NETS["b"][1], 300)
    both = ("--remote-ts", NETS["b"][0], "--remote-ts", MORE[0])
    before = sas(pair.a)["more/out"]["seq"]
    pair.b.cli("tunnel", "set", "more", "--local-ts", NETS["b"][0], "--local-ts", MORE[0])
    pair.a.cli("tunnel", "set", "more", *both, "--liveness", "5")
    assert answers(pings) == 300
    assert ping(a, MORE[1], count=2) == 2
    after = sas(pair.a)["more/out"]
    assert after["seq"] > before
    assert (after["spi"], after["liveness"]) == (0x8001, 5)


def test_a_tunnel_is_deleted_with_its_policy_and_keys(pair: GatewayPair, tmp_path: Path) -> None:
    add(pair, tmp_path)
    assert ping(pair.a.namespace, NETS["b"][1], count=1) == 1
    done = pair.a.cli("tunnel", "delete", "more")
    assert done.stdout == "deleted: more\n"
    assert set(sas(pair.a)) == {"pi-b/out", "pi-b/in"}
    assert NETS["b"][0] not in pair.a.namespace.ip("route", "show", "table", "4500")
    assert pair.a.ask("explain", NETS["a"][1], NETS["b"][1])["verdict"] != "carried"
    refused = pair.a.cli("tunnel", "delete", "pi-b", check=False)
    assert refused.returncode == 1
    assert "comes from the configuration" in refused.stderr
    assert ping(pair.a.namespace, pair.plan.inner(1), count=1) == 1
