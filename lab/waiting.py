"""Polling of a condition up to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable

_INTERVAL = 0.02


def holds_within(seconds: float, condition: Callable[[], object]) -> bool:
    """Poll `condition` every 20 ms until it holds; false if it doesn't hold within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_INTERVAL)
    return True
