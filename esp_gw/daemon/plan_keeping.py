"""The guard's plan on disk, kept to the state that is in place."""

from __future__ import annotations

import asyncio
import contextlib

from esp_gw.daemon.background import Background
from esp_gw.desired import Desired
from esp_gw.network.guard import GuardState

PAUSE = 0.5
"""Seconds for which changes of IKE are gathered: its traps come in a row."""


class PlanKeeping:
    """The writing of the guard's plan, at once or soon; best effort, and tried again."""

    def __init__(self, guard: GuardState) -> None:
        self._guard = guard
        self._desired: Desired | None = None
        self._due = asyncio.Event()
        self._writing = asyncio.Lock()

    def run(self, background: Background) -> None:
        """Have what is due written, until the background work is stopped."""
        background.repeat("the writing of the guard's plan", self._step)

    async def write(self, desired: Desired) -> None:
        """Write the plan of a state; after a failure it is due."""
        self.write_soon(desired)
        await self.write_due()

    def write_soon(self, desired: Desired) -> None:
        """Have the plan of a state written within a second."""
        self._desired = desired
        self._due.set()

    async def write_due(self) -> None:
        """Write what is due, if anything is; after a failure it is due still."""
        with contextlib.suppress(Exception):
            await self._write()

    async def _step(self) -> None:
        await self._due.wait()
        await asyncio.sleep(PAUSE)
        await self._write()

    async def _write(self) -> None:
        """Write what is due. Raises NetworkError."""
        async with self._writing:
            desired = self._desired
            if desired is None or not self._due.is_set():
                return
            self._due.clear()
            try:
                await asyncio.to_thread(self._guard.remember, desired)
            except BaseException:
                self._due.set()
                raise
