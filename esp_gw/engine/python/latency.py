"""The python engine's request that processors wake up at once, held while there is work."""

from __future__ import annotations

import asyncio
import os
import sys

from esp_gw.engine.base import REST_MS
from esp_gw.engine.refusals import LATENCY_DEVICE, latency_refused

HELD_US = 0
RELEASED_US = 2_000 * 1_000_000
"""A request that asks for nothing: PM_QOS_CPU_LATENCY_DEFAULT_VALUE."""
_REST = REST_MS / 1000


class LowLatency:
    """A request that is held from a packet on until there was none for REST_MS.

    It lasts until it is changed or its file closed (Documentation/power/pm_qos_interface.rst).
    Without the device there is none, and `why` has the reason.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._file: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self.why = ""
        try:
            # A FIFO in its place would let the start wait for a reader.
            self._file = os.open(LATENCY_DEVICE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self.why = latency_refused(error.errno or 0)

    @property
    def is_held(self) -> bool:
        """True while processors are kept awake."""
        return self._timer is not None

    def worked(self) -> None:
        """Hold the request after one turn; the device is written on a change alone."""
        if self._file is None:
            return
        self._until = self._loop.time() + _REST
        if self._timer is None:
            self._timer = self._loop.call_at(self._until, self._rest)
            self._write(self._file, HELD_US)

    def close(self) -> None:
        """Close the file, which releases the request."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _rest(self) -> None:
        if self._file is None:
            return
        if self._loop.time() < self._until:
            self._timer = self._loop.call_at(self._until, self._rest)
        else:
            self._timer = None
            self._write(self._file, RELEASED_US)

    def _write(self, file: int, microseconds: int) -> None:
        try:
            os.write(file, microseconds.to_bytes(4, sys.byteorder))
        except OSError as error:
            self.why = latency_refused(error.errno or 0)
            self.close()
