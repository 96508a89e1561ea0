"""Background work that survives its failures: retried with back-off, logged once, shown in status.

An EspGwError has a cause outside, such as a full disk, and is retried for ever. Work that keeps
failing for any other reason can't go on: the gateway ends, and protected prefixes stay closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from esp_gw.errors import EspGwError
from esp_gw.logs import log

FIRST_PAUSE = 1.0
"""Seconds before the first retry; the pause doubles with each further failure."""
LONGEST_PAUSE = 15.0
MAX_UNEXPECTED = 20
"""Unexpected failures in a row, in some five minutes, after which the work can't go on."""

Step = Callable[[], Coroutine[Any, Any, None]]


class Background:
    """The background work of a daemon; `on_failure` gets the reason that a work can't go on."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._faults: dict[str, str] = {}

    @property
    def warnings(self) -> list[str]:
        """Warnings about work that fails at present."""
        return [
            f"{name} fails, and is tried again: {reason}" for name, reason in self._faults.items()
        ]

    def repeat(self, name: str, step: Step) -> None:
        """Run `step` again and again; each time it waits for its occasion first."""
        self._spawn(self._repeat(name, step))

    def retry(self, name: str, step: Step) -> None:
        """Run `step` until it succeeds once."""
        self._spawn(self._succeed(name, step))

    async def stop(self) -> None:
        """Cancel everything, and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, name: str, step: Step) -> None:
        while await self._succeed(name, step):
            pass

    async def _succeed(self, name: str, step: Step) -> bool:
        """Run `step` until it succeeds; return False if it can't go on."""
        pause, unexpected = FIRST_PAUSE, 0
        while True:
            try:
                await step()
            except EspGwError as error:
                reason = str(error)
                if name not in self._faults:
                    log.error(f"{name} fails, and is tried again", reason=reason)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                unexpected += 1
                if unexpected == 1:
                    log.exception(f"{name} fails, and is tried again")
            else:
                if self._faults.pop(name, None) is not None:
                    log.info(f"{name} works again")
                return True
            self._faults[name] = reason
            if unexpected == MAX_UNEXPECTED:
                self._on_failure(f"{name} fails: {reason}")
                return False
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> None:
        task: asyncio.Task[Any] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
