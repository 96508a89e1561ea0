"""`Profile`: measured while a client waits for it, for its seconds, and one at a time."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn

import pytest

from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Last
from esp_gw.daemon import profile
from esp_gw.engine.base import SaCounters
from esp_gw.errors import ControlError
from tests.support.fakes import until
from tests.support.service_rig import ROOT, Rig, start_rig

TUNNEL = "pi-b"
PEER = ip_address("192.0.2.2")


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return await start_rig(tmp_path, monkeypatch)


async def begin(rig: Rig, **parameters: object) -> profile._Profile:
    wanted = {"tunnel": TUNNEL, "seconds": 1, **parameters}
    found = await rig.service.handlers()[PREFIX + "Profile"](wanted, ROOT)
    assert isinstance(found, profile._Profile)
    return found


async def test_what_a_profile_says_is_the_difference_to_its_begin(rig: Rig) -> None:
    rig.engine.stage_ns = {"seal": 1000, "open": 500}
    running = await begin(rig)
    assert rig.engine.is_profiled
    rig.engine.stage_ns = {"seal": 1700, "open": 500}
    last = await running.next()
    assert isinstance(last, Last)
    assert not rig.engine.is_profiled
    found = last.parameters
    assert (found["tunnel"], found["engine"], found["clock_ns"]) == (TUNNEL, "fake", 20.0)
    (thread,) = found["threads"]  # type: ignore[misc]
    assert thread["ns"] == {"seal": 700, "open": 0}
    running.close()


async def test_replies_come_in_between_and_the_end_is_the_last(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "INTERVAL", 0.01)
    running = await begin(rig, seconds=60)
    assert isinstance(await running.next(), dict)
    running.close()
    running = await begin(rig)
    while not isinstance(await running.next(), Last):
        pass
    running.close()
    assert not rig.engine.is_profiled


async def test_a_connection_that_ends_ends_it_and_frees_the_place(rig: Rig) -> None:
    running = await begin(rig, seconds=3600)
    with pytest.raises(ControlError, match="running already"):
        await begin(rig)
    running.close()
    assert not rig.engine.is_profiled
    second = await begin(rig)
    # Another end of the first one ends no other.
    running.close()
    assert rig.engine.is_profiled
    second.close()


async def test_a_client_that_reads_nothing_is_measured_no_longer_than_it_asked(rig: Rig) -> None:
    running = await begin(rig)
    await until(lambda: not rig.engine.is_profiled)
    again = await begin(rig)
    again.close()
    assert isinstance(await running.next(), Last)
    running.close()


async def test_a_profile_that_can_not_begin_keeps_no_other_away(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(rig.engine, "start_profile", fail)
        await begin(rig)
    running = await begin(rig)
    # Nor does a timer of it end another one.
    assert rig.engine.is_profiled
    running.close()


async def test_a_last_measurement_that_fails_ends_the_profile(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await begin(rig, seconds=3600)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(rig.engine, "stage_times", fail)
        running.close()
    assert not rig.engine.is_profiled
    second = await begin(rig)
    running.close()
    assert rig.engine.is_profiled
    second.close()


def fail() -> NoReturn:
    raise RuntimeError


async def test_packets_of_the_sas_that_a_rekey_brings_are_the_tunnels(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "INTERVAL", 0.01)
    tunnel = {"name": TUNNEL, "sas": ["old/out", "old/in"]}
    packets = {"old/out": 1000, "old/in": 500}

    def counters_of(names: Collection[str]) -> dict[str, SaCounters]:
        there = {name: packets[name] for name in names if name in packets}
        ends = {name: 1 << 32 if name.endswith("out") else 0 for name in there}
        return {name: SaCounters(there[name], 0, 1, ends[name], PEER, 4500) for name in there}

    monkeypatch.setattr(rig.engine, "counters_of", counters_of)
    monkeypatch.setattr(rig.service._profiler, "_tunnels", lambda: [tunnel])
    running = await begin(rig, seconds=60)
    packets |= {"old/out": 1100, "old/in": 530}
    assert await carried(running) == (100, 30)
    tunnel["sas"] = ["new/out", "new/in"]
    packets |= {"old/in": 535, "new/out": 7, "new/in": 3}
    assert await carried(running) == (107, 38)
    # By keys of the configuration the name stays, and its counters begin anew.
    packets = {"new/out": 2, "new/in": 4}
    assert await carried(running) == (109, 39)
    running.close()


async def carried(running: profile._Profile) -> tuple[object, object]:
    found = await running.next()
    assert isinstance(found, dict)
    return found["packets_out"], found["packets_in"]


@pytest.mark.parametrize("seconds", [None, "5", 0, -1, 3601, 1.5, True, 10**30])
async def test_seconds_that_can_not_be_are_refused(rig: Rig, seconds: object) -> None:
    with pytest.raises(ControlError, match="seconds: expected"):
        await rig.call("Profile", tunnel=TUNNEL, seconds=seconds)
    assert not rig.engine.is_profiled


@pytest.mark.parametrize("tunnel", [None, "nope", 7, ["pi-b"]])
async def test_a_tunnel_that_is_not_there_is_refused(rig: Rig, tunnel: object) -> None:
    with pytest.raises(ControlError, match="there is no tunnel"):
        await rig.call("Profile", tunnel=tunnel, seconds=1)
    assert not rig.engine.is_profiled
