"""Samples of dropped packets, which the engine gives once and several parts of the daemon read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from esp_gw.engine.base import Refused

MAX_KEPT = 4096
"""Samples kept for the next look at the tunnels; the oldest go first."""


class RefusedSamples:
    """The samples since the last look at the tunnels; `source` gives the engine's."""

    def __init__(self, source: Callable[[], Sequence[Refused]]) -> None:
        self._source = source
        self._kept: deque[Refused] = deque(maxlen=MAX_KEPT)
        self._unseen: deque[Refused] = deque(maxlen=MAX_KEPT)

    def take(self) -> list[Refused]:
        """Return the samples since the last call."""
        self._fetch()
        taken = list(self._kept)
        self._kept.clear()
        return taken

    def peek(self) -> list[Refused]:
        """Return the samples since the last call of `peek`; `take` returns them, too."""
        self._fetch()
        taken = list(self._unseen)
        self._unseen.clear()
        return taken

    def _fetch(self) -> None:
        new = self._source()
        self._kept += new
        self._unseen += new
