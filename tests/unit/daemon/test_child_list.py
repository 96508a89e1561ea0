"""IKE's children in the status: who the peer is, how old they are, when they are rekeyed."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from esp_gw.daemon import owner_events
from esp_gw.engine.base import Refused
from esp_gw.model import DropReason
from tests.support.service_rig import Rig, child, install, restarted, start_rig

TOLD = {"peer": "CN=b.example", "connection": "office"}


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    yield rig
    if rig.engine.is_open:
        await rig.gateway.stop()


async def children(rig: Rig) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await rig.call("GetStatus"))["children"]
    return found


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_the_status_has_each_child_beside_the_tunnels(rig: Rig) -> None:
    assert await children(rig) == []
    await install(rig, child(1), **TOLD, soft_seconds=3000, hard_seconds=3600)
    await install(rig, child(2))
    told, bare = await children(rig)
    assert (told["name"], told["peer"], told["connection"]) == ("ike:c{1}", *TOLD.values())
    assert (told["local"], told["remote"], told["remote_port"]) == ("192.0.2.1", "192.0.2.7", 4500)
    assert (told["encapsulation"], told["state"]) == ("udp", "quiet")
    assert 0 <= told["age_s"] < 60
    assert told["age_s"] + told["rekey_s"] == pytest.approx(3000, abs=0.2)
    assert (bare["name"], bare["peer"], bare["rekey_s"]) == ("ike:c{2}", "", None)
    assert (await rig.call("GetStatus"))["tunnels"] == 3


async def test_the_sa_that_is_rekeyed_first_tells_the_time(rig: Rig) -> None:
    each = child()
    into, out = each.sas(0)
    began = now() - 100
    await rig.ask(
        "InstallChild",
        sas=[
            into | {"since": began, "soft_seconds": 500},
            out | {"since": began + 20, "soft_seconds": 300},
        ],
    )
    (listed,) = await children(rig)
    assert listed["age_s"] == pytest.approx(100, abs=30)
    assert listed["age_s"] + listed["rekey_s"] == pytest.approx(320, abs=0.2)


async def test_a_rekey_that_is_due_and_a_clock_behind_are_no_negative_numbers(rig: Rig) -> None:
    await install(rig, child(1), since=0, soft_seconds=1)
    await install(rig, child(2), since=now() + 1000)
    late, early = await children(rig)
    assert late["rekey_s"] == 0
    assert early["age_s"] == 0


async def test_an_odd_or_expired_sa_is_no_child(rig: Rig) -> None:
    each = child()
    await rig.ask("InstallChild", sas=each.sas(0)[:1])
    assert await children(rig) == []
    await rig.ask("InstallChild", sas=each.sas(0)[1:])
    assert len(await children(rig)) == 1
    await rig.ask("RemoveSas", sas=each.refs(0)[1:])
    assert await children(rig) == []


async def test_a_restart_keeps_age_and_peer(rig: Rig) -> None:
    began = now() - 1000
    await install(rig, child(), **TOLD, soft_seconds=3000, since=began)
    again = await restarted(rig)
    (listed,) = await children(again)
    await again.gateway.stop()
    assert listed["peer"] == TOLD["peer"]
    assert listed["age_s"] == pytest.approx(1000, abs=60)
    assert listed["age_s"] + listed["rekey_s"] == pytest.approx(3000, abs=0.2)


async def test_an_sa_that_moves_keeps_its_age(rig: Rig) -> None:
    each = child()
    await install(rig, each, since=now() - 1000, **TOLD)
    for ref in each.refs(0):
        moved = {"local": "192.0.2.1", "remote": "192.0.2.8", "encapsulation": "udp"}
        await rig.ask("UpdateSa", **ref, **moved)
    (listed,) = await children(rig)
    assert (listed["remote"], listed["peer"]) == ("192.0.2.8", TOLD["peer"])
    assert listed["age_s"] >= 1000


async def test_a_policy_without_an_sa_is_a_child_that_waits(rig: Rig) -> None:
    first, second = child(1), child(2)
    trap = {"sa": None, "connection": "office", "child": "net"}
    await rig.ask("PutPolicy", **first.policy(0, "p1", **trap))
    await rig.ask("PutPolicy", **second.policy(0, "p2", **trap))
    bare = child(3).policy(0, "p3", sa=None)
    del bare["child"]
    await rig.ask("PutPolicy", **bare)
    nowhere = [{"local": "10.1.0.0/24", "remote": "10.9.0.0/24"}]
    await rig.ask("PutPolicy", id="no", action="discard", selectors=nowhere)
    office, unnamed = await children(rig)
    assert (office["name"], office["connection"], office["state"]) == (
        *("ike:net", "office", "waiting"),
    )
    assert office["remote_ts"] == ["10.101.0.0/16", "10.102.0.0/16"]
    unknown = ("peer", "encapsulation", "local", "remote", "remote_port", "age_s", "rekey_s")
    assert {office[name] for name in (*unknown, "acquired_s")} == {None}
    assert unnamed["name"] == "ike:p3"
    # The same members as those of a child that is there.
    await rig.ask("InstallChild", sas=first.sas(0), policies=[first.policy(0, "p1")])
    up, office, _ = await children(rig)
    assert up.keys() == office.keys()
    assert (up["name"], up["acquired_s"], up["remote_ts"]) == ("ike:c{1}", None, ["10.101.0.0/16"])
    assert office["remote_ts"] == ["10.102.0.0/16"]


async def test_a_packet_that_asked_for_a_child_is_told(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_events, "HOLDING_INTERVAL", 0)
    each = child()
    await rig.ask("PutPolicy", **each.policy(0, "p1", sa=None))
    await rig.watch()
    ends = ip_address("10.1.0.5"), ip_address("10.101.0.7")
    met = Refused(DropReason.NO_SA, None, ends[0], 1, ends[1], 2, 17, None)
    monkeypatch.setattr(rig.gateway.samples, "peek", lambda: [met])
    await rig.events.step()
    (listed,) = await children(rig)
    assert 0 <= listed["acquired_s"] < 60
    await rig.ask("RemovePolicy", id="p1")
    await rig.events.step()
    monkeypatch.setattr(rig.gateway.samples, "peek", list)
    await rig.ask("PutPolicy", **each.policy(0, "p1", sa=None))
    assert [listed["acquired_s"] for listed in await children(rig)] == [None]
