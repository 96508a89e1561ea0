"""IKE's children in the status of a gateway: who the peer is, their age, and their next rekey."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.charon import Installation
from tests.support.ike_rig import IDENTITIES
from tests.support.ike_sites import Site, initiate, replace_child, start_sites
from tests.support.labtools import MakePair, ping, until

LIMITS = {"rekey_time": "3000s", "life_time": "3600s", "rand_time": "0s"}


@pytest.fixture
def sites(
    make_pair_of_one_engine: MakePair,
    installed: Installation,
    tmp_path: Path,
    stack: contextlib.ExitStack,
) -> list[Site]:
    pair = make_pair_of_one_engine()
    sites = start_sites(pair, tmp_path, (installed,) * 2, stack, **LIMITS)
    initiate(sites)
    return sites


def child(site: Site) -> dict[str, Any]:
    """Return the only child in the status."""
    (found,) = site.gateway.call("GetStatus")["children"]
    assert isinstance(found, dict)
    return found


def is_heard(site: Site) -> bool:
    """Return True if a look at the tunnel has found packets of the peer."""
    target = ("10.2.0.1", "10.1.0.1")[site.number]
    return bool(ping(site.gateway.namespace, target, count=1)) and child(site)["state"] == "up"


def test_both_ends_know_their_peer_and_the_age_of_the_child(sites: list[Site]) -> None:
    for site, peer in zip(sites, reversed(IDENTITIES), strict=True):
        until(lambda site=site: is_heard(site), "the peer is heard")
        there = child(site)
        assert (there["connection"], there["peer"]) == ("peer", peer)
        assert 0 <= there["age_s"] < 3000
        assert there["age_s"] + there["rekey_s"] == pytest.approx(3000, abs=1)
        shown = site.gateway.cli("status", check=False).stdout
        row = next(line for line in shown.splitlines() if there["name"] in line)
        assert peer in row and " in 49 min " in row


def test_a_rekeyed_child_is_young_again(sites: list[Site]) -> None:
    def begun(site: Site) -> float:
        """Return when the child was installed, to some tenths of a second."""
        return time.monotonic() - float(child(site)["age_s"])

    before = [(child(site)["name"], begun(site)) for site in sites]
    time.sleep(1)
    replace_child(sites, 0)
    for site in sites:
        until(lambda site=site: len(site.spis()) == 2, "the former child is gone")
    for site, peer, (name, former) in zip(sites, reversed(IDENTITIES), before, strict=True):
        assert child(site)["name"] != name
        assert child(site)["peer"] == peer
        assert begun(site) > former + 0.5


def test_peer_and_age_outlive_a_kill_of_the_gateway(sites: list[Site]) -> None:
    gateway = sites[0].gateway
    before = child(sites[0])
    time.sleep(1)
    gateway.kill()
    gateway.start()
    there = child(sites[0])
    assert (there["name"], there["peer"]) == (before["name"], before["peer"])
    assert there["age_s"] > before["age_s"] + 0.5


def test_a_trap_waits_with_its_name_and_connection(
    make_pair_of_one_engine: MakePair,
    installed: Installation,
    tmp_path: Path,
    stack: contextlib.ExitStack,
) -> None:
    pair = make_pair_of_one_engine()
    sites = start_sites(pair, tmp_path, (installed,) * 2, stack, start_action="trap")
    one, other = sites
    # No answer: charon goes on asking, and no child comes.
    other.charon.kill()

    def named() -> bool:
        return child(one)["connection"] == "peer"

    until(named, "charon has told the trap's names", 20)
    waiting = child(one)
    assert (waiting["name"], waiting["state"], waiting["peer"]) == ("ike:net", "waiting", None)
    assert (waiting["remote_ts"], waiting["acquired_s"]) == (["10.2.0.0/24"], None)
    host = one.gateway.namespace

    def asked() -> bool:
        ping(host, "10.2.0.1", count=1)
        return child(one)["acquired_s"] is not None

    until(asked, "a packet has asked for the child", 20)
    shown = one.gateway.cli("status", check=False).stdout
    row = next(line for line in shown.splitlines() if "ike:net" in line)
    assert "peer" in row and "10.2.0.0/24" in row and "waiting, asked for " in row
    other.charon.start()

    def is_up() -> bool:
        ping(host, "10.2.0.1", count=1)
        return child(one)["name"].startswith("ike:net{") and not child(one)["acquired_s"]

    until(is_up, "the child has taken the trap's place", 60)
