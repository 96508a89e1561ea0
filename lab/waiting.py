"""Polling of a condition up to a deadline, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_INTERVAL = 0.02
_LOOP_INTERVAL = 0.002


def holds_within(seconds: float, condition: Callable[[], object]) -> bool:
    """Poll `condition` every 20 ms until it holds; false if it doesn't hold within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_INTERVAL)
    return True


async def comes_to_hold(seconds: float, condition: Callable[[], object]) -> bool:
    """Poll `condition` every 2 ms, as `holds_within` does, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_LOOP_INTERVAL)
    return True
