"""The watch's checks, pauses and warnings, on a simulated clock."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import pytest

from esp_gw.errors import NetworkError
from esp_gw.network import watch as watch_module
from esp_gw.network.watch import LONGEST_PAUSE, CheckResult, Watch

LOSS = CheckResult(missing=("rule 4499 (IPv4)",), done=("rule 4499 added",))
NOTHING = CheckResult()


class FinishedError(Exception):
    """Raised after the last check result."""


class Scene:
    """Returns the results in order and records the pauses; a change is always pending."""

    def __init__(self, results: list[CheckResult | NetworkError], between: float) -> None:
        self._results: Iterator[CheckResult | NetworkError] = iter(results)
        self.now, self._between = 1000.0, between
        self.waited = 0
        self.pauses: list[float] = []

    async def changed(self) -> None:
        self.waited += 1
        self.now += self._between

    async def check(self) -> CheckResult:
        result = next(self._results, None)
        if result is None:
            raise FinishedError
        if isinstance(result, NetworkError):
            raise result
        return result

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def watched(
    monkeypatch: pytest.MonkeyPatch, results: list[CheckResult | NetworkError], between: float = 0.1
) -> tuple[Scene, Watch]:
    scene = Scene(results, between)
    watch = Watch(scene.changed, scene.check)
    with monkeypatch.context() as patch:
        patch.setattr(watch_module.asyncio, "sleep", scene.sleep)
        patch.setattr(watch_module.time, "monotonic", lambda: scene.now)
        with contextlib.suppress(FinishedError):
            asyncio.run(watch.run())
    return scene, watch


def test_it_backs_off_from_a_program_that_keeps_undoing_repairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, watch = watched(monkeypatch, [LOSS] * 9)
    assert scene.pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert scene.pauses[-1] == LONGEST_PAUSE
    (warning,) = watch.warnings
    assert "rule 4499 (IPv4)" in warning
    assert "repair 9 " in warning


def test_the_check_after_its_own_change_does_not_reset_the_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, _ = watched(monkeypatch, [LOSS, NOTHING] * 4)
    assert [pause for pause in scene.pauses if pause] == [1, 2, 4, 8]


def test_a_loss_long_after_another_one_is_repaired_without_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene, _ = watched(monkeypatch, [LOSS] * 4, between=100)
    assert scene.pauses == [1, 1, 1, 1]


def test_a_failed_repair_is_retried_without_an_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusals: list[CheckResult | NetworkError] = [NetworkError("no"), CheckResult(fault="no"), LOSS]
    scene, watch = watched(monkeypatch, refusals)
    assert scene.waited == 2  # before the first check, and after the last
    assert scene.pauses == [1, 2, 4]
    assert len(watch.warnings) == 1


def test_a_fault_is_a_warning_until_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    down = CheckResult(fault="esp0 is down", waits=True)
    scene, watch = watched(monkeypatch, [down])
    assert watch.warnings == ["esp0 is down"]
    scene, watch = watched(monkeypatch, [down, NOTHING])
    assert watch.warnings == []
    assert scene.waited == 3
    assert not any(scene.pauses)


def test_many_missing_objects_make_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    many = CheckResult(missing=tuple(f"route {n}" for n in range(500)), done=("x",))
    _, watch = watched(monkeypatch, [many])
    (warning,) = watch.warnings
    assert "and 495 more" in warning
    assert len(warning) < 300
    watch.forget()
    assert watch.warnings == []


async def test_without_an_event_it_does_not_wake() -> None:
    checks = 0

    async def check() -> CheckResult:
        nonlocal checks
        checks += 1
        return NOTHING

    never = asyncio.Event()

    async def changed() -> None:
        await never.wait()

    task = asyncio.create_task(Watch(changed, check).run())
    before = time.thread_time()
    await asyncio.sleep(0.05)
    assert checks == 0
    assert time.thread_time() - before < 0.04
    task.cancel()
