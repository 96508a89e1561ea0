"""The events of an owner's session: a bounded stream to the one connection that watches."""

from __future__ import annotations

import asyncio
from collections import deque

MAX_EVENTS = 1024
"""Events that wait for the client; those beyond are counted and told as `Lost`."""
LOST = "Lost"

Event = dict[str, object]


class EventStream:
    """Events in order, for one connection. A full one loses the newest."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._is_there = asyncio.Event()
        self._lost: Event | None = None
        self.is_closed = False

    def put(self, event: Event) -> None:
        """Add an event, or count it as lost."""
        if self._lost is not None:
            self._lost["count"] = int(str(self._lost["count"])) + 1
            return
        if len(self._waiting) >= MAX_EVENTS:
            self._lost = event = {"event": LOST, "count": 1}
        self._waiting.append(event)
        self._is_there.set()

    async def next(self) -> Event:
        """Return the next event, once there is one."""
        await self._is_there.wait()
        event = self._waiting.popleft()
        if event is self._lost:
            self._lost = None
        if not self._waiting:
            self._is_there.clear()
        return event

    def close(self) -> None:
        """End it: nobody takes its events any more."""
        self.is_closed = True
