"""One queue for all changes of the gateway's state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ChangeQueue:
    """Runs changes one at a time, in the order in which they were asked for.

    A change that has begun runs to its end, also if its caller is cancelled meanwhile: it would
    otherwise leave a state that nobody asked for.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, change: Callable[[], Awaitable[T]]) -> T:
        """Return the result of `change` after its turn; its exceptions propagate."""
        task = asyncio.create_task(self._in_turn(change))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Return while no change runs, after those that were asked for before."""
        async with self._turn:
            pass

    async def _in_turn(self, change: Callable[[], Awaitable[T]]) -> T:
        async with self._turn:
            return await change()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Retrieved here, for a cancelled caller no longer does.
            task.exception()
