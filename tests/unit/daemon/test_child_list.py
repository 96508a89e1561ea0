"""IKE's children in the status: who the peer is, how old they are, when they are rekeyed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

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
