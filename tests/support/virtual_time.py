"""An event loop on a simulated clock, which jumps to the next timer once nothing else is ready."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    def __init__(self, jump: Callable[[float], None]) -> None:
        super().__init__()
        self._jump = jump

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen again"
            self._jump(timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A loop that never waits; work for other threads is done at once, in the loop's own."""

    def __init__(self) -> None:
        self._now = 1000.0
        super().__init__(_Selector(self._jump))

    def _jump(self, seconds: float) -> None:
        self._now += max(seconds, 0)

    def time(self) -> float:
        """Return the simulated time, in seconds."""
        return self._now

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Call `func` now."""
        result: asyncio.Future[T] = self.create_future()
        try:
            result.set_result(func(*args))
        except Exception as error:
            result.set_exception(error)
        return result


def run_virtually(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end on a simulated clock."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
