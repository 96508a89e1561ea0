"""The events of the owner: what the engine tells, acquires, and limits that SAs have reached."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from esp_gw.daemon.acquire import Acquires
from esp_gw.daemon.background import Background
from esp_gw.daemon.events import EventStream
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.held import Key, key_of
from esp_gw.daemon.holding import Holding
from esp_gw.daemon.lifetimes import HARD, NUMBERS, RESTART, SOFT
from esp_gw.daemon.sources import Sources
from esp_gw.engine.base import Event, HardExpired, PeerAddressChanged, SoftExpired

INTERVAL = 1.0
"""Seconds between two looks at the counters for limits."""
HOLDING_INTERVAL = 0.2
"""Seconds between two looks at dropped packets while a policy has no SA."""


class OwnerEvents:
    """The stream of events to the connection that watches; `step` is to be repeated."""

    def __init__(
        self,
        gateway: Gateway,
        sources: Sources,
        holding: Holding,
        on_failure: Callable[[str], None],
    ) -> None:
        self._gateway = gateway
        self._sources = sources
        self._holding = holding
        self._background = Background(on_failure)
        self._stream: EventStream | None = None
        self._acquires = Acquires()
        self._soft: dict[Key, str] = {}
        self._hard: dict[Key, str] = {}
        self._counted = 0.0
        gateway.takes_event = self._take

    def begin(self) -> EventStream:
        """Return a new stream, which begins with the SAs that have expired and are still held."""
        self._stream = EventStream()
        # Packets from before are nobody's wish any more.
        self._gateway.samples.peek()
        held = self._holding.held
        for key, sa in held.sas.items():
            if sa.expired:
                self._tell_expired(HARD, key, self._hard.get(key, RESTART))
            elif key in self._soft:
                self._tell_expired(SOFT, key, self._soft[key])
        return self._stream

    def stopping(self) -> None:
        """Tell that the gateway stops in order."""
        self._tell({"event": "Stopping"})

    async def stop(self) -> None:
        """End what is going on in the background."""
        await self._background.stop()

    async def step(self) -> None:
        """Look at dropped packets and counters once, and pause."""
        held, now = self._holding.held, _now()
        self._soft = {key: why for key, why in self._soft.items() if key in held.sas}
        self._hard = {key: why for key, why in self._hard.items() if key in held.sas}
        acquired = self._sources.acquired
        for gone in acquired.keys() - held.policies.keys():
            del acquired[gone]
        if held.holds and self._stream is not None:
            spd = self._gateway.policies
            for event in self._acquires.look(self._gateway.samples.peek(), spd, held, now):
                acquired[str(event["policy"])] = now
                self._tell(event)
        if held.sas and now - self._counted >= INTERVAL:
            self._counted = now
            counters = self._gateway.counters().sas
            for key, kind, why in list(self._holding.lifetimes.look(held, counters, now)):
                if kind == HARD:
                    await self._expire(key, why)
                else:
                    self._soften(key, why)
        with contextlib.suppress(TimeoutError):
            interval = HOLDING_INTERVAL if held.holds else INTERVAL
            await asyncio.wait_for(self._holding.changed.wait(), interval)
        self._holding.changed.clear()

    def _take(self, event: Event) -> bool:
        """Take an event of the engine about one of the owner's SAs; True if that is all."""
        key = key_of(event.sa) if isinstance(event, _OF_SAS) else None
        if key is None:
            return False
        match event:
            case PeerAddressChanged(_, address, port):
                self._tell(
                    {
                        "event": "PeerAddressChanged",
                        **key.plain(),
                        "address": str(address),
                        "port": port,
                    }
                )
                # The way to the new address is looked up, too.
                return False
            case SoftExpired():
                self._soften(key, NUMBERS)
            case HardExpired():
                self._background.retry("the end of an SA", lambda: self._expire(key, NUMBERS))
        return True

    def _soften(self, key: Key, why: str) -> None:
        self._soft[key] = why
        self._tell_expired(SOFT, key, why)

    async def _expire(self, key: Key, why: str) -> None:
        """Use an SA no more, and tell it. Raises EspGwError."""

        async def end() -> bool:
            held = self._holding.held
            if key not in held.sas or held.sas[key].expired:
                return False
            await self._holding.change(held.expire(key))
            return True

        if await self._sources.changes.run(end):
            self._hard[key] = why
            self._tell_expired(HARD, key, why)

    def _tell_expired(self, kind: str, key: Key, why: str) -> None:
        self._tell({"event": kind, **key.plain(), "why": why})

    def _tell(self, event: dict[str, object]) -> None:
        if self._stream is not None and self._stream.is_closed:
            self._stream = None
        if self._stream is not None:
            self._stream.put(event)


_OF_SAS = (PeerAddressChanged, SoftExpired, HardExpired)


def _now() -> float:
    return asyncio.get_running_loop().time()
