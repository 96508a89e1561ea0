"""Keeps the planned network in place while other programs change the kernel's network.

The watch wakes on a change notification of the kernel, when it is woken, at a deadline, or to retry
a failed repair. It backs off from a program that keeps undoing its repairs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from esp_gw.errors import EspGwError
from esp_gw.logs import log
from esp_gw.network.changes import Change, NetworkChange

FIRST_PAUSE = 1.0
"""Seconds between a repair and the next check, before any back-off."""
LONGEST_PAUSE = 60.0
LONGEST_ADAPTATION = 10.0
"""Seconds of the longest pause after changes by which nothing of ours was lost.

Addresses that come and go for a while are followed soon after the last of it.
"""
_REST_FACTOR = 10
"""A check is followed by a pause of this many times its duration: routing daemons may be busy."""
_NAMED = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check of the network: missing objects, and the changes applied.

    `is_network` is False if all of these are elsewhere. `fault` is the reason that the repair is
    incomplete; `waits` means that a notification of the kernel will announce when it can be
    completed.
    """

    missing: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    is_network: bool = True
    fault: str | None = None
    waits: bool = False

    @classmethod
    def of(cls, missing: tuple[str, ...], changes: Sequence[Change]) -> CheckResult:
        """Return the result of changes that are carried out without a fault."""
        is_network = any(isinstance(change, NetworkChange) for change in changes)
        return cls(missing, tuple(change.describe() for change in changes), is_network)


def _never() -> float | None:
    return None


class Watch:
    """Runs `check` after each `changed`, and keeps warnings for `esp-gw status`.

    `deadline` returns the loop's time at which a check is due without a change, or None.
    """

    def __init__(
        self,
        changed: Callable[[], Coroutine[Any, Any, object]],
        check: Callable[[], Coroutine[Any, Any, CheckResult]],
        deadline: Callable[[], float | None] = _never,
    ) -> None:
        self._changed = changed
        self._check = check
        self._deadline = deadline
        self._woken = asyncio.Event()
        self._again = False
        self._pause = FIRST_PAUSE
        self._rested = 0.0
        self._repairs = 0
        self._loss: str | None = None
        self._fault: str | None = None

    @property
    def warnings(self) -> list[str]:
        """Warnings for the operator: the last loss, and the current fault."""
        return [text for text in (self._loss, self._fault) if text is not None]

    def forget(self) -> None:
        """Clear the warning about repaired losses: the operator has reloaded."""
        self._repairs, self._loss = 0, None

    def wake(self) -> None:
        """Cause a check soon, also during a long pause."""
        self._woken.set()

    async def step(self) -> None:
        """Wait for an occasion, check, and pause.

        An EspGwError of the check is a fault to report; any other exception propagates, and the
        next step checks without an occasion.
        """
        if not self._again:
            await self._wait()
        self._again = True
        self._woken.clear()
        began = _now()
        try:
            result = await self._check()
        except EspGwError as error:
            result = CheckResult(fault=str(error))
        self._report(result)
        self._again = result.fault is not None and not result.waits
        if not self._again and not result.done:
            await asyncio.sleep(min(_REST_FACTOR * (_now() - began), LONGEST_ADAPTATION))
            return
        in_a_row = self._rested and began - self._rested < self._pause
        is_adaptation = not (result.missing or self._again)
        longest = LONGEST_ADAPTATION if is_adaptation else LONGEST_PAUSE
        self._pause = min(2 * self._pause, longest) if in_a_row else FIRST_PAUSE
        await asyncio.sleep(FIRST_PAUSE)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), self._pause - FIRST_PAUSE)
        self._rested = _now()

    async def _wait(self) -> None:
        at = self._deadline()
        occasions = [
            asyncio.ensure_future(self._changed()),
            asyncio.ensure_future(self._woken.wait()),
        ]
        try:
            done, _ = await asyncio.wait(
                occasions,
                timeout=None if at is None else max(at - _now(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            for occasion in done:
                occasion.result()
        finally:
            for occasion in occasions:
                occasion.cancel()
            await asyncio.gather(*occasions, return_exceptions=True)

    def _report(self, result: CheckResult) -> None:
        if result.missing:
            self._repairs += 1
            names = _named(result.missing)
            log.warning("another program removed part of the gateway's network", missing=names)
            self._loss = (
                f"another program removed {names} at {time.strftime('%Y-%m-%d %H:%M:%S')}, "
                f"repair {self._repairs} since the last reload; configure it to leave the "
                "gateway's routing alone, then run 'esp-gw reload'"
            )
        elif result.done:
            what = "the network" if result.is_network else "SAs, policies or sockets"
            log.info(f"{what} changed", changes=_named(result.done))
        if result.fault != self._fault:
            if result.fault is None:
                log.info("the gateway's network is in place again")
            else:
                log.warning("the gateway's network is not in place", reason=result.fault)
        self._fault = result.fault


def _named(objects: tuple[str, ...]) -> str:
    more = f" and {len(objects) - _NAMED} more" if len(objects) > _NAMED else ""
    return ", ".join(objects[:_NAMED]) + more


def _now() -> float:
    return asyncio.get_running_loop().time()
