"""The control method `Profile`: the time of the engine's threads by stage, for some seconds.

Nothing is measured without a client that waits for it: its connection, the seconds and the end of
the daemon each end a profile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from esp_gw.control.server import Caller, Handler, Last, Reply
from esp_gw.daemon.parameters import Parameters
from esp_gw.engine.base import Engine
from esp_gw.engine.stages import StageTimes
from esp_gw.errors import ControlError
from esp_gw.logs import log

MAX_SECONDS = 3600
INTERVAL = 1.0
"""Seconds between two replies with what was measured so far."""

ListTunnels = Callable[[], Iterable[Mapping[str, Any]]]


class Profiler:
    """Profiles of one engine, one at a time; `tunnels` are as listed."""

    def __init__(self, engine: Callable[[], Engine], tunnels: ListTunnels) -> None:
        self._engine = engine
        self._tunnels = tunnels
        self._is_running = False

    def handlers(self) -> dict[str, Handler]:
        """Return the methods, keyed by their names."""
        return {"Profile": self.profile}

    async def profile(self, parameters: Parameters, caller: Caller) -> Reply:
        """Measure for some seconds; reply each second with what was measured so far."""
        seconds = parameters.get("seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int):
            raise ControlError("InvalidParameter", "seconds: expected a number")
        if not 1 <= seconds <= MAX_SECONDS:
            raise ControlError("InvalidParameter", f"seconds: expected 1 to {MAX_SECONDS}")
        name = parameters.get("tunnel")
        found = [each for each in self._tunnels() if each["name"] == name]
        if not found:
            raise ControlError(
                "NotFound",
                f"there is no tunnel {name}",
                hint="'esp-gw tunnel list' shows the existing ones",
            )
        if self._is_running:
            raise ControlError("Refused", "a profile is running already", hint="wait for its end")
        running = _Profile(self._engine(), str(name), self._tunnels, seconds, self._ended)
        self._is_running = True
        log.info("profile", tunnel=name, seconds=seconds, uid=caller.uid)
        return running

    def _ended(self) -> None:
        self._is_running = False


class _Profile:
    """A running profile, as the stream of its replies."""

    def __init__(
        self,
        engine: Engine,
        tunnel: str,
        tunnels: ListTunnels,
        seconds: int,
        on_end: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._tunnel = tunnel
        self._tunnels = tunnels
        self._on_end = on_end
        self._clock_ns = round(engine.stage_clock_ns(), 1)
        self._counted: dict[str, int] = {}
        self._out = self._into = 0
        self._count()
        self._out = self._into = 0
        self._before = list(engine.stage_times())
        loop = asyncio.get_running_loop()
        self._now = loop.time
        self._began = loop.time()
        self._end = self._began + seconds
        self._result: dict[str, object] | None = None
        self._is_over = False
        engine.start_profile()
        # Also for a client that does not read.
        self._timer = loop.call_at(self._end, self._stop)

    async def next(self) -> dict[str, object] | Last:
        """Return what was measured so far, once a second has passed."""
        await asyncio.sleep(max(min(INTERVAL, self._end - self._now()), 0))
        if self._now() >= self._end:
            self._stop()
        if self._is_over:
            return Last(self._result or self._measured())
        return self._measured()

    def close(self) -> None:
        """End it: the connection is gone, or all was told."""
        self._timer.cancel()
        self._stop()

    def _stop(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        try:
            self._result = self._measured()
        finally:
            self._on_end()
            self._engine.stop_profile()

    def _measured(self) -> dict[str, object]:
        times = self._engine.stage_times()
        spent = [now.since(was) for now, was in zip(times, self._before, strict=True)]
        self._count()
        return {
            "tunnel": self._tunnel,
            "engine": self._engine.name,
            "seconds": round(self._now() - self._began, 3),
            "packets_out": self._out,
            "packets_in": self._into,
            "clock_ns": self._clock_ns,
            "threads": [_view(each) for each in spent],
        }

    def _count(self) -> None:
        """Add the packets of the tunnel's SAs since the last time, those that a rekey has brought
        and those that it is about to take among them.
        """
        listed = (each["sas"] for each in self._tunnels() if each["name"] == self._tunnel)
        names = {*self._counted, *next(listed, ())}
        for name, counters in self._engine.counters_of(names).items():
            was = self._counted.get(name, 0)
            # Another SA may have the name now.
            more = counters.packets - (was if counters.packets >= was else 0)
            self._counted[name] = counters.packets
            if counters.lease_end:
                self._out += more
            else:
                self._into += more


def _view(times: StageTimes) -> dict[str, object]:
    return {
        "name": times.thread,
        "ns": dict(times.ns),
        "packets_out": times.packets_out,
        "packets_in": times.packets_in,
        "clock_reads": times.clock_reads,
    }
