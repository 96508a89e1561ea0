"""The watch's checks, pauses and warnings, on a simulated clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from esp_gw.errors import NetworkError
from esp_gw.network.changes import Change, SetMtu
from esp_gw.network.watch import LONGEST_ADAPTATION, LONGEST_PAUSE, CheckResult, Watch
from tests.support.fakes import captured_logs
from tests.support.virtual_time import run_virtually

LOSS = CheckResult(missing=("rule 4499 (IPv4)",), done=("rule 4499 added",))
NOTHING = CheckResult()


class Elsewhere(Change):
    """A change of an SA."""

    def describe(self) -> str:
        return "sa t/out changed"


Result = CheckResult | Exception


class FinishedError(Exception):
    """Raised after the last check result."""


class Scene:
    """Returns the results in order and records the pauses; a change is always pending."""

    def __init__(self, results: list[Result], between: float) -> None:
        self._results: Iterator[Result] = iter(results)
        self._between = between
        self._checked = 0.0
        self.waited = 0
        self.pauses: list[float] = []

    async def changed(self) -> None:
        self.waited += 1
        await asyncio.sleep(self._between)

    async def check(self) -> CheckResult:
        result = next(self._results, None)
        if result is None:
            raise FinishedError
        if isinstance(result, Exception):
            raise result
        return result

    async def run(self, watch: Watch) -> None:
        loop = asyncio.get_running_loop()
        while True:
            waited, began = self.waited, loop.time()
            try:
                await watch.step()
            except FinishedError:
                return
            self.pauses.append(loop.time() - began - (self.waited - waited) * self._between)


def watched(results: list[Result], between: float = 0.1) -> tuple[Scene, Watch]:
    scene = Scene(results, between)
    watch = Watch(scene.changed, scene.check)
    run_virtually(scene.run(watch))
    return scene, watch


def test_it_backs_off_from_a_program_that_keeps_undoing_repairs() -> None:
    scene, watch = watched([LOSS] * 9)
    assert scene.pauses == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert scene.pauses[-1] == pytest.approx(LONGEST_PAUSE)
    (warning,) = watch.warnings
    assert "rule 4499 (IPv4)" in warning
    assert "repair 9 " in warning


def test_what_others_change_is_followed_at_most_some_seconds_late() -> None:
    adapted = CheckResult(done=("rule 4400 added",))
    scene, watch = watched([adapted] * 8)
    assert scene.pauses == pytest.approx([1, 2, 4, 8, 10, 10, 10, 10])
    assert scene.pauses[-1] == pytest.approx(LONGEST_ADAPTATION)
    assert watch.warnings == []


def test_a_check_that_takes_long_is_followed_by_a_bounded_rest() -> None:
    checked: list[float] = []

    async def check() -> CheckResult:
        await asyncio.sleep(20)  # as long as nft may take
        checked.append(asyncio.get_running_loop().time())
        return NOTHING

    async def two_steps() -> None:
        watch = Watch(lambda: asyncio.sleep(0), check)
        for _ in range(2):
            await watch.step()

    run_virtually(two_steps())
    assert checked[1] - checked[0] == pytest.approx(20 + LONGEST_ADAPTATION)


def test_the_check_after_its_own_change_does_not_reset_the_back_off() -> None:
    scene, _ = watched([LOSS, NOTHING] * 4)
    assert [pause for pause in scene.pauses if pause > 0.01] == pytest.approx([1, 2, 4, 8])


def test_a_loss_long_after_another_one_is_repaired_without_back_off() -> None:
    scene, _ = watched([LOSS] * 4, between=100)
    assert scene.pauses == pytest.approx([1, 1, 1, 1])


def test_a_failed_repair_is_retried_without_an_event() -> None:
    refusals: list[Result] = [NetworkError("no"), CheckResult(fault="no"), LOSS]
    scene, watch = watched(refusals)
    assert scene.waited == 2  # before the first check, and after the last
    assert scene.pauses == pytest.approx([1, 2, 4])
    assert len(watch.warnings) == 1


def test_a_fault_is_a_warning_until_it_is_gone() -> None:
    down = CheckResult(fault="esp0 is down", waits=True)
    scene, watch = watched([down])
    assert watch.warnings == ["esp0 is down"]
    scene, watch = watched([down, NOTHING])
    assert watch.warnings == []
    assert scene.waited == 3
    assert scene.pauses == pytest.approx([0, 0])


def test_many_changes_make_one_short_line() -> None:
    with captured_logs() as lines:
        watched([CheckResult(done=tuple(f"rule {n} added" for n in range(1500)))])
    (line,) = lines
    assert line["changes"].endswith("rule 4 added and 1495 more")
    assert len(line["changes"]) < 300


@pytest.mark.parametrize(
    ("changes", "event"),
    [
        ([Elsewhere()], "SAs, policies or sockets changed"),
        ([Elsewhere(), SetMtu(1400)], "the network changed"),
    ],
)
def test_a_change_elsewhere_is_not_told_as_one_of_the_network(
    changes: list[Change], event: str
) -> None:
    with captured_logs() as lines:
        watched([CheckResult.of((), changes)])
    (line,) = lines
    assert line["event"] == event
    assert line["changes"].startswith("sa t/out changed")


def test_many_missing_objects_make_one_line() -> None:
    many = CheckResult(missing=tuple(f"route {n}" for n in range(500)), done=("x",))
    _, watch = watched([many])
    (warning,) = watch.warnings
    assert "and 495 more" in warning
    assert len(warning) < 300
    watch.forget()
    assert watch.warnings == []


def test_an_unexpected_failure_propagates_and_the_next_step_needs_no_event() -> None:
    scene = Scene([RuntimeError("odd"), LOSS], 0.1)
    watch = Watch(scene.changed, scene.check)

    async def steps() -> None:
        with pytest.raises(RuntimeError, match="odd"):
            await watch.step()
        await watch.step()

    run_virtually(steps())
    assert scene.waited == 1
    assert len(watch.warnings) == 1


def test_it_wakes_when_it_is_told_during_a_long_pause_but_not_more_than_once_a_second() -> None:
    times: list[float] = []

    async def check() -> CheckResult:
        times.append(asyncio.get_running_loop().time())
        return LOSS

    async def changed() -> None: ...

    async def main() -> None:
        watch = Watch(changed, check)
        task = asyncio.create_task(_run(watch))
        await asyncio.sleep(40)  # in the pause of 32 seconds
        before = len(times)
        for _ in range(30):
            watch.wake()
            await asyncio.sleep(0.1)
        assert 2 <= len(times) - before <= 4
        task.cancel()

    run_virtually(main())


def test_it_checks_at_its_deadline_without_an_event() -> None:
    times: list[float] = []
    due: list[float] = []

    async def check() -> CheckResult:
        times.append(asyncio.get_running_loop().time())
        return NOTHING

    async def main() -> None:
        loop = asyncio.get_running_loop()
        due.append(loop.time() + 660)
        watch = Watch(asyncio.Event().wait, check, lambda: due.pop() if due else None)
        task = asyncio.create_task(_run(watch))
        await asyncio.sleep(5000)
        task.cancel()

    run_virtually(main())
    assert times == pytest.approx([1660])


async def _run(watch: Watch) -> None:
    while True:
        await watch.step()


async def test_without_an_event_it_does_not_wake() -> None:
    checks = 0

    async def check() -> CheckResult:
        nonlocal checks
        checks += 1
        return NOTHING

    never = asyncio.Event()

    async def changed() -> None:
        await never.wait()

    task = asyncio.create_task(Watch(changed, check).step())
    before = time.thread_time()
    await asyncio.sleep(0.05)
    assert checks == 0
    assert time.thread_time() - before < 0.04
    task.cancel()
