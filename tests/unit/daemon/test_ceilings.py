"""Ceilings: ahead of what is received, written when they are neared, and lowered again."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from esp_gw.daemon.ceilings import BUSY_MARGIN, EXCESS, SLOW_MARGIN
from esp_gw.daemon.gateway import FLOOR_INTERVAL
from esp_gw.daemon.reconcile import InstallSa
from esp_gw.daemon.sas import DUMMY_WAIT, InstalledSas
from esp_gw.engine.base import CeilingNear, Event, OuterSocket
from esp_gw.errors import LedgerError
from esp_gw.ledger.ledger import MIN_MARGIN
from esp_gw.model import Direction, Reception, Sa
from tests.support.builders import make_sa
from tests.support.fakes import FakeEngine
from tests.support.floors import CountingLedger, installed

IN = make_sa("t/in", Direction.INBOUND, 0x2001)


class Rig:
    """An inbound SA, its floor and its ceiling, on a clock of their own."""

    def __init__(self, sa: Sa = IN) -> None:
        self.sa = sa
        self.now = 1000.0
        self.events: list[CeilingNear] = []
        self.engine = FakeEngine()
        self.ledger = CountingLedger()
        self.sas: InstalledSas

    async def begin(self, *numbers: int) -> None:
        def take(event: Event) -> None:
            assert isinstance(event, CeilingNear)
            self.events.append(event)

        self.ledger.numbers = {IN.keymat: Reception(*numbers)} if numbers else {}
        self.engine.open(None, take)  # type: ignore[arg-type]
        self.engine.start()
        self.engine.set_outer_sockets([OuterSocket(IN.local, IN.encapsulation)])
        self.sas = await installed(self.engine, self.ledger, self.sa)

    @property
    def ceiling(self) -> int:
        return self.ledger.ceilings[IN.keymat]

    async def receive(self, packets: int, name: str = "t/in", dummies: int = 0) -> None:
        """Receive packets, and do what the gateway does with the engine's events."""
        self.engine.dummies[name] = self.engine.dummies.get(name, 0) + dummies
        self.engine.receive(name, packets + dummies)
        while self.events:
            event = self.events.pop(0)
            if self.sas.near(event.sa, event.highest):
                await self.sas.raise_ceilings(self.now)

    async def round(self, seconds: float = FLOOR_INTERVAL) -> int:
        """Let time pass and write the floors; return the number of writes."""
        self.now += seconds
        before = len(self.ledger.writes)
        await self.sas.write_floors(self.now)
        return len(self.ledger.writes) - before


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    await rig.begin()
    assert await rig.round() == 0
    return rig


async def test_the_engine_begins_with_the_fence_and_half_a_margin_below_the_ceiling() -> None:
    rig = Rig()
    await rig.begin(40, 90, 296)
    assert (rig.engine.floors["t/in"], rig.engine.fences["t/in"]) == (40, 90)
    assert rig.engine.notices["t/in"] == 296 - MIN_MARGIN // 2


@pytest.mark.parametrize(
    ("remote", "numbers", "said"),
    [
        ("0.0.0.0", (40, 90, 296), [("t/in", 50)]),
        ("0.0.0.0", (90, 90, 296), []),
        ("192.0.2.2", (40, 90, 296), []),
    ],
)
async def test_a_peer_that_may_be_anywhere_and_is_not_followed_yet_is_named(
    remote: str,
    numbers: tuple[int, int, int],
    said: list[tuple[str, int]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    await Rig(replace(IN, remote=ip_address(remote))).begin(*numbers)
    lines = [
        (vars(record)["fields"]["sa"], vars(record)["fields"]["packets"])
        for record in caplog.records
    ]
    assert lines == said


async def test_nothing_is_received_above_the_ceiling_while_each_burst_fits_half_a_margin(
    rig: Rig,
) -> None:
    for _ in range(50):
        await rig.receive(MIN_MARGIN // 2)
        assert rig.engine.used["t/in"] <= rig.ceiling
        rig.now += 0.001
    # A burst is met by a large step: the disk is not written for each half margin.
    assert len(rig.ledger.writes) <= 2


async def test_a_ceiling_is_written_with_its_floor(rig: Rig) -> None:
    await rig.receive(MIN_MARGIN // 2 + 1)
    assert rig.ledger.writes == [{IN.keymat: MIN_MARGIN // 2 + 1}]
    assert rig.ceiling == MIN_MARGIN // 2 + 1 + BUSY_MARGIN


async def test_a_ceiling_comes_down_once_after_a_burst(rig: Rig) -> None:
    for _ in range(20):
        await rig.receive(100_000)
        await rig.round()
    assert rig.ceiling - rig.engine.used["t/in"] >= 100_000
    assert await rig.round() == 1
    assert rig.ceiling - rig.engine.used["t/in"] == MIN_MARGIN
    assert [await rig.round() for _ in range(5)] == [0] * 5
    assert rig.engine.notices["t/in"] == rig.ceiling - MIN_MARGIN // 2


@pytest.mark.parametrize("a_round", [1, 2, 10])
async def test_dummies_alone_write_no_more_often_than_floors(rig: Rig, a_round: int) -> None:
    # One every 5, 2.5 and 0.5 seconds: the last is what `liveness: 1` sends.
    for _ in range(int(DUMMY_WAIT / FLOOR_INTERVAL)):
        rig.now += FLOOR_INTERVAL / 2
        await rig.receive(0, dummies=a_round)
        await rig.round(FLOOR_INTERVAL / 2)
    before = len(rig.ledger.writes)
    assert before <= 2
    for _ in range(int(6 * DUMMY_WAIT / FLOOR_INTERVAL)):
        rig.now += FLOOR_INTERVAL / 2
        await rig.receive(0, dummies=a_round)
        await rig.round(FLOOR_INTERVAL / 2)
        assert rig.engine.used["t/in"] <= rig.ceiling
    assert len(rig.ledger.writes) - before <= 6
    assert rig.ceiling - rig.engine.used["t/in"] <= max(SLOW_MARGIN, EXCESS)


async def test_a_ceiling_never_comes_below_the_fence_of_a_crash() -> None:
    rig = Rig()
    await rig.begin(100, 50_000, 50_000)
    await rig.receive(10)
    await rig.round()
    await rig.round()
    assert rig.ceiling == 50_000
    await rig.sas.remove_all()
    assert (rig.ledger.writes[-1], rig.ceiling) == ({IN.keymat: 110}, 50_000)


async def test_a_clean_stop_leaves_the_ceiling_at_the_floor(rig: Rig) -> None:
    await rig.receive(1000)
    await rig.sas.remove_all()
    assert (rig.ledger.writes[-1], rig.ceiling) == ({IN.keymat: 1000}, 1000)


async def test_a_ceiling_that_could_not_be_written_is_written_later(rig: Rig) -> None:
    rig.ledger.refuses = True
    with pytest.raises(LedgerError):
        await rig.receive(MIN_MARGIN)
    rig.ledger.refuses = False
    await rig.sas.raise_ceilings(rig.now)
    assert rig.ceiling >= MIN_MARGIN + MIN_MARGIN
    assert rig.engine.notices["t/in"] < rig.ceiling


async def test_an_event_under_a_former_name_is_not_lost_for_ever(rig: Rig) -> None:
    rig.engine.receive("t/in", MIN_MARGIN)
    renamed = replace(IN, name="new/in")
    await rig.sas.install([InstallSa(renamed, moves="t/in")], {}, rig.now)
    (event,) = rig.events
    assert rig.sas.near(event.sa, event.highest)
    await rig.sas.raise_ceilings(rig.now)
    rig.events.clear()
    await rig.receive(1, "new/in")
    assert rig.ceiling > rig.engine.used["new/in"]


async def test_a_new_spi_of_a_key_keeps_what_this_process_knows(rig: Rig) -> None:
    await rig.receive(1000)
    rig.ledger.numbers = {IN.keymat: Reception(0, 17_000, 17_000)}
    new = replace(IN, spi=0x3001)
    ready = await rig.sas.register([new])
    await rig.sas.install([InstallSa(new, retires=IN)], ready, rig.now)
    # Nothing has happened to this process: what is new is new.
    assert (rig.engine.floors["t/in"], rig.engine.fences["t/in"]) == (1000, 0)
