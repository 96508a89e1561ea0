"""The time for which a new session finds closed what the former one has left."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from esp_gw.daemon.holding import Holding
from esp_gw.daemon.sources import Sources
from esp_gw.logs import log

CLOSED_TIME = 60.0
"""Seconds from the beginning of a session until what it hasn't covered is open."""
INTERVAL = 1.0
"""Seconds between two looks at the time."""


class ClosedTime:
    """Ends with time what a former session left closed; `step` is to be repeated.

    Without a session it stays closed: nobody has said that it may be open.
    """

    def __init__(self, sources: Sources, holding: Holding) -> None:
        self._sources = sources
        self._holding = holding
        self._end: float | None = None

    def begin(self) -> None:
        """A session has begun."""
        self._end = _now() + CLOSED_TIME

    def stop(self) -> None:
        """The session has ended."""
        self._end = None

    async def step(self) -> None:
        """Pause, and open what is left closed once its time is over. Raises EspGwError."""
        await asyncio.sleep(INTERVAL)
        if self._holding.held.left and self._is_over():
            await self._sources.changes.run(self._open)

    async def _open(self) -> None:
        held = self._holding.held
        # In its turn: the session may have ended meanwhile.
        if held.left and self._is_over():
            await self._holding.change(replace(held, left=()))
            log.info("open now, for no session of ike protects it", policies=len(held.left))

    def _is_over(self) -> bool:
        return self._end is not None and _now() >= self._end


def _now() -> float:
    return asyncio.get_running_loop().time()
