"""The gateway runs on a TUN device that is its own, or on none."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.daemon.ownership import TRIES, evict, open_alone
from esp_gw.errors import EngineError, NetworkError
from esp_gw.network.objects import Host, Network
from esp_gw.network.plan import plan_guard
from esp_gw.network.tun_queues import TunQueues
from tests.support.builders import desired, make_sa, protect, selector
from tests.support.fakes import FakeEngine, FakeKernel, captured_logs, until
from tests.support.service_rig import Rig

SETTINGS = desired(()).settings
ALONE = TunQueues(7, FakeEngine.queues, 0, persistent=False)
OTHERS = [
    (replace(ALONE, count=3), "it has 3 queues, of which the gateway opened 2"),
    (replace(ALONE, count=1), "it has 1 queues, of which the gateway opened 2"),
    (replace(ALONE, owner=None), "it belongs to nobody"),
    (replace(ALONE, owner=65534), "it belongs to user 65534"),
    (replace(ALONE, persistent=True), "it was made persistent"),
]


class CountingEngine(FakeEngine):
    """Counts the devices that it made."""

    made = 0

    def open(self, *arguments: object) -> None:
        super().open(*arguments)
        self.made += 1


async def _open(engine: FakeEngine, kernel: FakeKernel) -> None:
    await open_alone(engine, kernel, SETTINGS, lambda _: None)


async def test_a_device_without_others_is_started_once() -> None:
    engine, kernel = CountingEngine(), FakeKernel()
    await _open(engine, kernel)
    assert (engine.made, engine.is_started, kernel.deleted) == (1, True, [])


@pytest.mark.parametrize(("others", "fault"), OTHERS)
async def test_a_device_that_others_opened_first_is_deleted_and_made_anew(
    others: TunQueues, fault: str
) -> None:
    engine, kernel = CountingEngine(), FakeKernel()
    kernel.queues = [replace(others, index=8), replace(others, index=9), ALONE]
    with captured_logs() as logs:
        await _open(engine, kernel)
    assert (engine.made, engine.is_started, kernel.deleted) == (3, True, [8, 9])
    assert [fault in entry["event"] for entry in logs] == [True, True]


@pytest.mark.parametrize(("others", "fault"), OTHERS)
async def test_a_start_is_refused_when_others_are_always_faster(
    others: TunQueues, fault: str
) -> None:
    engine, kernel = CountingEngine(), FakeKernel()
    kernel.queues = [others]
    with pytest.raises(EngineError, match=f"each of the {TRIES} times") as caught:
        await _open(engine, kernel)
    assert "\n" not in str(caught.value)
    assert (engine.made, engine.is_open, len(kernel.deleted)) == (TRIES, False, TRIES)


async def test_a_queue_that_comes_with_the_gateway_s_last_ones_is_found() -> None:
    engine, kernel = CountingEngine(), FakeKernel()
    kernel.queues = [ALONE, replace(ALONE, count=3)]
    with pytest.raises(EngineError, match="while it was made"):
        await _open(engine, kernel)
    assert (engine.is_open, kernel.deleted) == (False, [7])


async def test_a_device_that_can_not_be_looked_at_is_not_used() -> None:
    class Blind(FakeKernel):
        async def tun_queues(self, interface: str) -> TunQueues:
            raise NetworkError("the kernel refused it")

    engine = CountingEngine()
    with pytest.raises(NetworkError):
        await _open(engine, Blind())
    assert (engine.made, engine.is_open) == (1, False)


async def test_a_start_that_is_refused_leaves_the_prefixes_closed_and_no_more(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path)
    rig.kernel.queues = [OTHERS[0][0]]
    sa = make_sa()
    wanted = desired((sa,), (protect("t", sa.name, selector("10.1.0.0/24", "10.2.0.0/24")),))
    with pytest.raises(EngineError):
        await rig.gateway.start(wanted)
    closed = replace(plan_guard(wanted, Host()), mtu=rig.kernel.network.mtu)
    assert rig.kernel.network == closed


@pytest.mark.parametrize(("others", "fault"), OTHERS)
async def test_others_that_come_later_are_a_failure_and_lose_the_device(
    tmp_path: Path, others: TunQueues, fault: str
) -> None:
    rig = Rig(tmp_path)
    failures: list[str] = []
    rig.gateway._on_failure = failures.append
    await rig.gateway.start(desired(()))
    rig.kernel.network = Network(mtu=1500)
    rig.kernel.queues = [others]
    actions = rig.kernel.actions
    with captured_logs() as logs:
        rig.kernel.events.release()
        await until(lambda: rig.kernel.deleted)
    reason = f"another program opened the TUN device, which is deleted: {fault}"
    assert failures == [f"esp0: {reason}"]
    assert [(entry["log_level"], entry["event"]) for entry in logs] == [("error", reason)]
    assert rig.kernel.deleted == [7]
    assert rig.kernel.actions == actions
    await rig.gateway.abandon()


async def test_the_device_goes_even_if_whoever_is_told_ends_the_look() -> None:
    class Slow(FakeKernel):
        async def delete_link(self, index: int) -> None:
            await asyncio.sleep(0.01)
            await super().delete_link(index)

    engine, kernel = FakeEngine(), Slow()
    kernel.queues = [OTHERS[0][0]]
    look = asyncio.create_task(evict(engine, kernel, "esp0", lambda _: look.cancel()))
    with pytest.raises(asyncio.CancelledError):
        await look
    await until(lambda: kernel.deleted)
