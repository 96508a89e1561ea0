"""Lanes without a sequence number: left out, with a warning, while another one works."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.daemon import health as health_module
from esp_gw.daemon.health import Health
from esp_gw.desired import Desired
from esp_gw.engine.base import HardExpired
from esp_gw.errors import KeyReuseError
from esp_gw.ledger.ledger import Ledger
from tests.support.fakes import captured_logs, until
from tests.support.gateway_rig import MakeRig, Rig, rigs
from tests.support.laned import four_lanes, one_lane
from tests.support.ledgers import MACHINE


@pytest.fixture
async def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeRig]:
    async with rigs(tmp_path, monkeypatch) as make:
        yield make


def use_up(rig: Rig, wanted: Desired, *lanes: int) -> None:
    """Let the ledger of a gateway that isn't started have no number for these lanes."""
    ledger = Ledger.open(rig.path, MACHINE)
    for lane in lanes:
        ledger.lease(wanted.sas[2 * lane].keymat, 2**32 - 1, 2**32 - 1)
    ledger.close()


async def test_no_lane_is_missed_while_a_change_of_their_number_runs(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "INTERVAL", 0)
    monkeypatch.setattr(health_module, "REST_FACTOR", 0)
    rig = make_rig()
    await rig.gateway.start(four_lanes())
    health, causes = Health(rig.gateway, list), set[str]()
    looks = 0
    for number in range(10):
        wanted = four_lanes() if number % 2 else one_lane()
        reload = asyncio.create_task(rig.gateway.apply(wanted))
        while not reload.done():
            await health.step()
            looks += 1
            causes.update(health.of_sa("t/out.0").causes)
        await reload
    assert looks >= 10
    assert causes == set()
    await rig.gateway.stop()


@pytest.mark.parametrize("dead", [(2,), (0,), (0, 1, 3)])
async def test_a_lane_that_the_ledger_has_no_number_for_is_left_out_with_a_warning(
    make_rig: MakeRig, dead: tuple[int, ...]
) -> None:
    rig, wanted = make_rig(), four_lanes(liveness=10)
    use_up(rig, wanted, *dead)
    with captured_logs() as lines:
        await rig.gateway.start(wanted)
        await rig.gateway.apply(wanted)
    there = {sa.name for sa in wanted.sas} - {f"t/out.{lane}" for lane in dead}
    assert set(rig.engine.sas) == there
    assert rig.engine.policies == wanted.policies, "the place of a lane in the list stays"
    alive = [lane for lane in range(4) if lane not in dead]
    beats = {lane: rig.engine.sas[f"t/out.{lane}"].liveness for lane in alive}
    assert beats == {lane: 10 if lane == alive[0] else 0 for lane in alive}
    told = [line for line in lines if "a lane carries nothing" in line["event"]]
    assert [(line["log_level"], line["sa"]) for line in told] == [
        ("warning", f"t/out.{lane}") for lane in dead
    ]
    assert [sa.name for sa in rig.gateway.waiting] == [f"t/out.{lane}" for lane in dead]
    # With a new key it is there again.
    fresh = [
        replace(sa, keymat=replace(sa.keymat, salt=b"new!")) if sa.lane in dead else sa
        for sa in wanted.sas
    ]
    await rig.gateway.apply(replace(wanted, sas=tuple(fresh)))
    assert {sa.name for sa in wanted.sas} <= set(rig.engine.sas)
    assert rig.engine.sas["t/out.0"].liveness == 10
    assert rig.gateway.waiting == []


async def test_where_no_lane_has_a_number_the_start_is_refused(make_rig: MakeRig) -> None:
    rig, wanted = make_rig(), four_lanes()
    use_up(rig, wanted, 0, 1, 2, 3)
    with pytest.raises(KeyReuseError, match="used up"):
        await rig.gateway.start(wanted)


async def test_another_lane_sends_the_keepalives_of_a_lane_without_numbers(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    await rig.gateway.start(four_lanes(liveness=10))
    rig.engine.tell(HardExpired("t/out.0"))
    await until(lambda: rig.engine.sas["t/out.1"].liveness == 10)
    assert rig.engine.sas["t/out.0"].liveness == 0
    rig.engine.tell(HardExpired("t/out.1"))
    await until(lambda: rig.engine.sas["t/out.2"].liveness == 10)
    assert {name: sa.liveness for name, sa in rig.engine.sas.items() if sa.liveness} == {
        "t/out.2": 10
    }


async def test_a_lane_without_numbers_is_a_warning_and_the_last_one_an_error(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    await rig.gateway.start(four_lanes())
    with captured_logs() as lines:
        for lane in (2, 0, 3, 1):
            rig.engine.tell(HardExpired(f"t/out.{lane}"))
    told = [(line["log_level"], line["sa"], line.get("lane")) for line in lines]
    assert told == [
        ("warning", "t/out.2", 2),
        ("warning", "t/out.0", 0),
        ("warning", "t/out.3", 3),
        ("error", "t/out.1", None),
    ]
    assert lines[0]["tunnel"] == "t"
