"""When replay floors are written: an idle pair with authentic keepalives writes hardly ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from esp_gw.daemon.gateway import FLOOR_INTERVAL
from esp_gw.daemon.reconcile import InstallSa
from esp_gw.daemon.sas import DUMMY_WAIT, InstalledSas
from esp_gw.engine.base import OuterSocket
from esp_gw.errors import LedgerError
from esp_gw.model import Direction
from tests.support.builders import make_sa
from tests.support.fakes import FakeEngine
from tests.support.floors import CountingLedger, installed

IN = make_sa("t/in", Direction.INBOUND, 0x2001)
OTHER = make_sa("u/in", Direction.INBOUND, 0x2002)


class Rig:
    """Two inbound SAs and their floors, on a clock of their own."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.engine = FakeEngine()
        self.ledger = CountingLedger()
        self.sas: InstalledSas

    async def begin(self) -> None:
        self.engine.open(None, lambda _: None)  # type: ignore[arg-type]
        self.engine.start()
        self.engine.set_outer_sockets([OuterSocket(IN.local, IN.encapsulation)])
        self.sas = await installed(self.engine, self.ledger, IN, OTHER)

    def accept(self, name: str = "t/in", packets: int = 0, dummies: int = 0) -> None:
        self.engine.used[name] = self.engine.used.get(name, 0) + packets + dummies
        self.engine.dummies[name] = self.engine.dummies.get(name, 0) + dummies

    async def round(self, seconds: float = FLOOR_INTERVAL) -> list[dict[str, int]]:
        """Let time pass and write the floors; return the new writes."""
        self.now += seconds
        before = len(self.ledger.writes)
        await self.sas.write_floors(self.now)
        names = {IN.keymat: "t/in", OTHER.keymat: "u/in"}
        return [
            {names[key]: seq for key, seq in write.items()} for write in self.ledger.writes[before:]
        ]


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    await rig.begin()
    return rig


async def test_an_hour_of_dummies_makes_six_writes(rig: Rig) -> None:
    for _ in range(int(3600 / FLOOR_INTERVAL)):
        rig.accept(dummies=10)
        rig.accept("u/in", dummies=10)
        await rig.round()
    assert len(rig.ledger.writes) <= 6
    assert all(len(write) == 2 for write in rig.ledger.writes)
    assert rig.ledger.writes


async def test_a_packet_writes_the_floor_and_those_of_the_dummies_before_it(rig: Rig) -> None:
    rig.accept(dummies=3)
    rig.accept("u/in", dummies=5)
    assert await rig.round() == []
    rig.accept(packets=1)
    assert await rig.round() == [{"t/in": 4}]
    assert await rig.round() == []
    rig.accept(dummies=1)
    assert await rig.round() == []
    assert await rig.round(DUMMY_WAIT) == [{"t/in": 5, "u/in": 5}]
    assert await rig.round(DUMMY_WAIT) == []


async def test_the_wait_begins_with_the_first_unwritten_dummy(rig: Rig) -> None:
    await rig.round(10 * DUMMY_WAIT)
    rig.accept(dummies=1)
    assert await rig.round() == []
    rig.accept(dummies=1)
    assert await rig.round(DUMMY_WAIT - 1) == []
    rig.accept(dummies=1)
    assert await rig.round(1) == [{"t/in": 3}]
    rig.accept(dummies=1)
    assert await rig.round(DUMMY_WAIT - 1) == []


@pytest.mark.parametrize("reason", ["selector-mismatch", "bad-padding", "tun-error", "a-new-one"])
async def test_a_dropped_packet_that_was_accepted_writes_the_floor(
    rig: Rig, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = rig.engine._counters

    def with_drop(sa: Any) -> Any:
        found = counters(sa)
        return replace(found, packets=found.packets - 1, drops={**found.drops, reason: 1})

    rig.accept(packets=1)
    monkeypatch.setattr(rig.engine, "_counters", with_drop)
    assert await rig.round() == [{"t/in": 1}]


async def test_a_flood_of_refused_packets_writes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = rig.engine._counters
    flood = ["auth-failed", "replay-duplicate", "replay-old", "too-short", "wrong-encapsulation"]

    def flooded(sa: Any) -> Any:
        return replace(counters(sa), drops={**counters(sa).drops, **dict.fromkeys(flood, 10**9)})

    monkeypatch.setattr(rig.engine, "_counters", flooded)
    rig.accept(dummies=1)
    assert await rig.round() == []


async def test_a_packet_that_is_counted_after_its_floor_was_read_is_written_in_the_next_round(
    rig: Rig,
) -> None:
    # The engine commits a number before it counts its packet.
    rig.accept(dummies=1)
    assert await rig.round() == []
    rig.engine.dummies["t/in"] = 0
    assert await rig.round() == [{"t/in": 1}]


async def test_a_write_that_failed_is_tried_again_at_once(rig: Rig) -> None:
    rig.accept(packets=1)
    rig.ledger.refuses = True
    for _ in range(2):
        with pytest.raises(LedgerError):
            await rig.round()
    rig.ledger.refuses = False
    assert await rig.round() == [{"t/in": 1}]
    assert await rig.round() == []


async def test_a_removal_writes_at_once(rig: Rig) -> None:
    rig.accept(dummies=7)
    assert await rig.round() == []
    await rig.sas.remove(["t/in"])
    assert rig.ledger.writes == [{IN.keymat: 7}]
    rig.accept("u/in", dummies=2)
    assert await rig.round() == []
    await rig.sas.remove_all()
    assert rig.ledger.writes[1:] == [{OTHER.keymat: 2}]


async def test_a_renamed_sa_waits_on(rig: Rig) -> None:
    rig.accept(packets=2)
    assert await rig.round() == [{"t/in": 2}]
    renamed = replace(IN, name="new/in")
    await rig.sas.install([InstallSa(renamed, moves="t/in")], {}, rig.now)
    rig.accept("new/in", dummies=1)
    assert await rig.round() == []
    rig.accept("new/in", packets=1)
    assert await rig.round() == [{"t/in": 4}]
