"""Lanes added to a running tunnel: held until the peer is heard by them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.daemon import new_lanes as new_lanes_module
from esp_gw.daemon.new_lanes import AFTERWARDS, PATIENCE, REST, NewLanes
from esp_gw.desired import Desired
from esp_gw.errors import LedgerError
from tests.support.fakes import captured_logs, until
from tests.support.gateway_rig import MakeRig, Rig, rigs
from tests.support.laned import four_lanes, one_lane

FIRST = ("t/out.0",)
ALL = ("t/out.0", "t/out.1", "t/out.2", "t/out.3")
NEW = ALL[1:]


@pytest.fixture
async def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeRig]:
    monkeypatch.setattr(new_lanes_module, "INTERVAL", 0.01)
    async with rigs(tmp_path, monkeypatch) as make:
        yield make


def used(rig: Rig) -> tuple[str, ...]:
    """The outbound SAs that packets go by."""
    (policy,) = rig.engine.policies
    return policy.sas


async def grown(make_rig: MakeRig) -> Rig:
    """Return a running gateway whose tunnel has got three lanes, announced already."""
    rig = make_rig()
    await rig.gateway.start(one_lane())
    await rig.gateway.apply(four_lanes())
    await announced(rig)
    return rig


async def announced(rig: Rig) -> None:
    rig.engine.sent_dummies.clear()
    await until(lambda: set(rig.engine.sent_dummies) == set(NEW))
    await asyncio.sleep(0.02)


async def test_a_start_uses_all_lanes_at_once_and_announces_none(make_rig: MakeRig) -> None:
    rig = make_rig()
    await rig.gateway.start(four_lanes())
    await asyncio.sleep(0.05)
    assert used(rig) == ALL
    assert rig.engine.sent_dummies == []
    assert rig.gateway.warnings == []


async def test_new_lanes_are_used_once_the_peer_is_heard_by_all_of_them(make_rig: MakeRig) -> None:
    rig = await grown(make_rig)
    assert set(rig.engine.sas) == {sa.name for sa in four_lanes().sas}, "received by at once"
    assert used(rig) == FIRST
    for lane in (2, 1):
        rig.engine.receive(f"t/in.{lane}", 1)
        await announced(rig)
        assert used(rig) == FIRST
    (warning,) = rig.gateway.warnings
    assert "of t was not heard by lane 3 yet, so nothing goes by lanes 1, 2, 3:" in warning
    rig.engine.receive("t/in.3", 1)
    await until(lambda: used(rig) == ALL)
    assert rig.gateway.warnings == []


async def test_lanes_in_use_are_announced_a_few_times_more(make_rig: MakeRig) -> None:
    rig = await grown(make_rig)
    for lane in (1, 2, 3):
        rig.engine.receive(f"t/in.{lane}", 1)
    await until(lambda: used(rig) == ALL)
    rig.engine.sent_dummies.clear()
    await asyncio.sleep(0.01 * AFTERWARDS + 0.1)
    sent = rig.engine.sent_dummies
    assert all(1 <= sent.count(name) <= AFTERWARDS for name in NEW)


async def test_a_look_at_the_network_and_another_reload_change_nothing_of_what_waits(
    make_rig: MakeRig,
) -> None:
    rig = await grown(make_rig)
    await rig.gateway.apply(four_lanes())
    rig.kernel.events.release()
    await announced(rig)
    assert used(rig) == FIRST
    await rig.gateway.apply(one_lane())
    assert used(rig) == FIRST
    assert rig.gateway.warnings == []
    rig.engine.sent_dummies.clear()
    await asyncio.sleep(0.05)
    assert rig.engine.sent_dummies == []
    # The second time they wait again.
    await rig.gateway.apply(four_lanes())
    await announced(rig)
    assert used(rig) == FIRST


async def test_a_lane_under_a_new_key_is_announced_and_goes_on(make_rig: MakeRig) -> None:
    rig = make_rig()
    await rig.gateway.start(four_lanes())
    await rig.gateway.apply(renewed(four_lanes(), "t/in.2"))
    await until(lambda: rig.engine.sent_dummies.count("t/out.2") == AFTERWARDS - 1)
    assert set(rig.engine.sent_dummies) == {"t/out.2"}
    assert used(rig) == ALL


def renewed(wanted: Desired, name: str) -> Desired:
    """Return the desired state with another key for an SA."""
    fresh = (
        replace(sa, keymat=replace(sa.keymat, salt=b"new!")) if sa.name == name else sa
        for sa in wanted.sas
    )
    return replace(wanted, sas=tuple(fresh))


async def test_a_lane_that_waits_still_waits_under_a_new_key(make_rig: MakeRig) -> None:
    rig = await grown(make_rig)
    await rig.gateway.apply(renewed(four_lanes(), "t/out.2"))
    await announced(rig)
    assert used(rig) == FIRST
    for lane in (1, 2, 3):
        rig.engine.receive(f"t/in.{lane}", 1)
    await until(lambda: used(rig) == ALL)


async def test_under_a_new_inbound_key_a_lane_waits_until_the_peer_is_heard_by_that(
    make_rig: MakeRig,
) -> None:
    rig = await grown(make_rig)
    rig.engine.receive("t/in.1", 1)
    await announced(rig)
    await rig.gateway.apply(renewed(four_lanes(), "t/in.1"))
    for lane in (2, 3):
        rig.engine.receive(f"t/in.{lane}", 1)
    await announced(rig)
    assert used(rig) == FIRST
    rig.engine.receive("t/in.1", 2)
    await until(lambda: used(rig) == ALL)


async def test_a_refused_request_without_the_lanes_leaves_them_waiting(make_rig: MakeRig) -> None:
    rig = await grown(make_rig)
    wanted = one_lane()
    # The ledger knows the key as an inbound one.
    (taken,) = (sa.keymat for sa in four_lanes().sas if sa.name == "t/in.3")
    refused = replace(wanted.sas[0], name="u/out", tunnel=None, spi=0x3001, keymat=taken)
    with pytest.raises(LedgerError):
        await rig.gateway.apply(replace(wanted, sas=(*wanted.sas, refused)))
    assert used(rig) == FIRST
    await announced(rig)
    assert used(rig) == FIRST
    assert len(rig.gateway.warnings) == 1


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_a_renamed_tunnel_keeps_the_lanes_that_it_uses(
    make_rig: MakeRig, *, is_waiting: bool
) -> None:
    rig = await grown(make_rig)
    if not is_waiting:
        for lane in (1, 2, 3):
            rig.engine.receive(f"t/in.{lane}", 1)
        await until(lambda: used(rig) == ALL)
    await rig.gateway.apply(renamed(four_lanes()))
    await asyncio.sleep(0.05)
    assert used(rig) == (("v/out.0",) if is_waiting else tuple(f"v/out.{n}" for n in range(4)))


def renamed(wanted: Desired) -> Desired:
    """Return the desired state with the tunnel `v` in place of `t`."""

    def new(name: str) -> str:
        return name.replace("t/", "v/")

    return replace(
        wanted,
        sas=tuple(replace(sa, name=new(sa.name), tunnel="v") for sa in wanted.sas),
        policies=tuple(
            replace(policy, name="v", sas=tuple(map(new, policy.sas)), tunnel="v")
            for policy in wanted.policies
        ),
        tunnels=tuple(
            replace(tunnel, name="v", sas=tuple(map(new, tunnel.sas)), policies=("v",))
            for tunnel in wanted.tunnels
        ),
    )


async def test_lanes_that_come_with_another_name_of_the_tunnel_wait(make_rig: MakeRig) -> None:
    rig = make_rig()
    await rig.gateway.start(one_lane())
    await rig.gateway.apply(renamed(four_lanes()))
    assert used(rig) == ("v/out.0",)


def hear(rig: Rig, now: float) -> None:
    """Receive an announcement by each lane, and look."""
    for lane in (1, 2, 3):
        rig.engine.receive(f"t/in.{lane}", 1)
        rig.engine.dummies[f"t/in.{lane}"] = rig.engine.dummies.get(f"t/in.{lane}", 0) + 1
    rig.gateway.new_lanes.answer(rig.gateway.counters().sas, now)


async def test_announcements_by_lanes_in_use_are_answered_by_some(make_rig: MakeRig) -> None:
    rig = make_rig()
    await rig.gateway.start(four_lanes())
    now = asyncio.get_running_loop().time()
    hear(rig, now)
    hear(rig, now)
    await until(lambda: set(rig.engine.sent_dummies) == set(NEW))
    await asyncio.sleep(0.01 * AFTERWARDS + 0.1)
    assert used(rig) == ALL
    assert rig.gateway.warnings == []
    count = len(rig.engine.sent_dummies)
    assert count <= AFTERWARDS * len(NEW)
    # The peer answers, too: that ends.
    hear(rig, now + 1)
    await asyncio.sleep(0.05)
    assert len(rig.engine.sent_dummies) == count
    hear(rig, now + REST + 1)
    await until(lambda: len(rig.engine.sent_dummies) > count)


async def test_other_packets_by_lanes_in_use_are_answered_by_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    await rig.gateway.start(four_lanes())
    for _ in range(3):
        rig.engine.receive("t/in.1", 1)
        rig.gateway.new_lanes.answer(rig.gateway.counters().sas, 0)
    await asyncio.sleep(0.05)
    assert rig.engine.sent_dummies == []


async def test_a_lane_without_a_number_left_is_not_announced(make_rig: MakeRig) -> None:
    rig = await grown(make_rig)
    rig.engine.used["t/out.2"] = 2**32 - 1
    await asyncio.sleep(0.02)
    rig.engine.sent_dummies.clear()
    await until(lambda: rig.engine.sent_dummies.count("t/out.3") > 2)
    assert set(rig.engine.sent_dummies) == {"t/out.1", "t/out.3"}


class Held:
    """New lanes beside their time and counters."""

    def __init__(self, rig: Rig, wanted: Desired) -> None:
        self.rig = rig
        self.woken = 0
        self.lanes = NewLanes(self._wake)
        self.wanted = wanted
        running = {sa.name: sa for sa in one_lane().sas}
        self.lanes.hold(wanted, running, 0)
        assert not self.lanes.look(rig.engine.counters(), 1)

    def _wake(self) -> None:
        self.woken += 1

    def used(self) -> tuple[str, ...]:
        """Return the SAs of the policy that is in place."""
        (policy,) = self.lanes.hold(self.wanted, self.rig.engine.sas, 0).policies
        return policy.sas


@pytest.fixture
async def held(make_rig: MakeRig) -> Held:
    rig = make_rig()
    await rig.gateway.start(four_lanes())
    return Held(rig, four_lanes())


async def test_a_peer_that_announces_no_lane_is_not_waited_for_longer(held: Held) -> None:
    held.rig.engine.receive("t/in.1", 5)
    assert not held.lanes.look(held.rig.engine.counters(), PATIENCE - 1)
    assert held.used() == FIRST
    with captured_logs() as lines:
        assert held.lanes.look(held.rig.engine.counters(), PATIENCE)
    assert held.used() == ALL
    assert lines == []


async def test_lanes_that_were_never_heard_are_used_with_a_warning(held: Held) -> None:
    with captured_logs() as lines:
        assert held.lanes.look(held.rig.engine.counters(), PATIENCE)
    assert held.used() == ALL
    assert [(line["log_level"], line["tunnel"]) for line in lines] == [("warning", "t")]


async def test_a_peer_that_keeps_the_tunnel_alive_and_announces_no_lane_has_none(
    held: Held,
) -> None:
    held.rig.engine.receive("t/in.0", 1)
    held.rig.engine.dummies["t/in.0"] = 1
    assert not held.lanes.look(held.rig.engine.counters(), 2 * PATIENCE)
    assert held.used() == FIRST
    assert "not heard by lanes 1, 2, 3 yet" in held.lanes.warnings[0]
    for lane in (1, 2, 3):
        held.rig.engine.receive(f"t/in.{lane}", 1)
    assert held.lanes.look(held.rig.engine.counters(), 3 * PATIENCE)
    assert held.used() == ALL


async def test_a_lane_that_the_peer_lacks_stays_unused(held: Held) -> None:
    for lane in (1, 3):
        held.rig.engine.receive(f"t/in.{lane}", 1)
        held.rig.engine.dummies[f"t/in.{lane}"] = 1
    assert not held.lanes.look(held.rig.engine.counters(), PATIENCE - 1)
    assert held.lanes.look(held.rig.engine.counters(), PATIENCE)
    assert held.used() == ("t/out.0", "t/out.1", "t/out.3")
    for _ in range(AFTERWARDS + 1):
        assert not held.lanes.look(held.rig.engine.counters(), 2 * PATIENCE)
    (warning,) = held.lanes.warnings
    assert "of t was not heard by lane 2" in warning
    held.rig.engine.receive("t/in.2", 1)
    assert held.lanes.look(held.rig.engine.counters(), 3 * PATIENCE)
    assert held.used() == ALL
    assert held.lanes.warnings == []
