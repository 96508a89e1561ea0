"""Keeps the planned network in place while other programs change the kernel's network.

The watch wakes only on a change notification of the kernel, or to retry a failed repair. It backs
off from a program that keeps undoing its repairs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from esp_gw.errors import EspGwError
from esp_gw.logs import log

FIRST_PAUSE = 1.0
"""Seconds between a repair and the next check, before any back-off."""
LONGEST_PAUSE = 60.0
_REST_FACTOR = 10
"""A check is followed by a pause of this many times its duration: routing daemons may be busy."""
_NAMED = 5


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check of the network: missing objects, and the changes applied.

    `fault` is the reason that the repair is incomplete; `waits` means that a notification of the
    kernel will announce when it can be completed.
    """

    missing: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    fault: str | None = None
    waits: bool = False


class Watch:
    """Runs `check` after each `changed`, and keeps warnings for `esp-gw status`."""

    def __init__(
        self, changed: Callable[[], Awaitable[None]], check: Callable[[], Awaitable[CheckResult]]
    ) -> None:
        self._changed = changed
        self._check = check
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

    async def run(self) -> None:
        """Watch until cancelled."""
        pause, rested = FIRST_PAUSE, 0.0
        again = False
        while True:
            if not again:
                await self._changed()
            began = time.monotonic()
            try:
                result = await self._check()
            except EspGwError as error:
                result = CheckResult(fault=str(error))
            self._report(result)
            again = result.fault is not None and not result.waits
            if not again and not result.done:
                await asyncio.sleep(_REST_FACTOR * (time.monotonic() - began))
                continue
            in_a_row = rested and began - rested < pause
            pause = min(2 * pause, LONGEST_PAUSE) if in_a_row else FIRST_PAUSE
            await asyncio.sleep(pause)
            rested = time.monotonic()

    def _report(self, result: CheckResult) -> None:
        if result.missing:
            self._repairs += 1
            names = ", ".join(result.missing[:_NAMED])
            if len(result.missing) > _NAMED:
                names += f" and {len(result.missing) - _NAMED} more"
            log.warning("another program removed part of the gateway's network", missing=names)
            self._loss = (
                f"another program removed {names} at {time.strftime('%Y-%m-%d %H:%M:%S')}, "
                f"repair {self._repairs} since the last reload; configure it to leave the "
                "gateway's routing alone, then run 'esp-gw reload'"
            )
        elif result.done:
            log.info("the network changed", changes=", ".join(result.done))
        if result.fault != self._fault:
            if result.fault is None:
                log.info("the gateway's network is in place again")
            else:
                log.warning("the gateway's network is not in place", reason=result.fault)
        self._fault = result.fault
