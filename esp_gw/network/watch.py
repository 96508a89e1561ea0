"""Keeps what was planned in place while other programs change the kernel's network.

It wakes when the kernel says that something changed, and never otherwise, but to try again what
could not be mended. With a program that keeps undoing it, it doesn't race: it pauses longer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from esp_gw.errors import EspGwError
from esp_gw.logs import log

FIRST_PAUSE = 1.0
"""Seconds after something was mended before the next look."""
LONGEST_PAUSE = 60.0
_LOOK_SHARE = 10
"""A look is followed by a rest of this many times its length: routing daemons may be busy."""
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the network found: what was missing, and what was done.

    `fault` says why not all could be done now; `waits` that an event will tell when it can.
    """

    missing: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    fault: str | None = None
    waits: bool = False


class Watch:
    """Looks after the network, and remembers for `status` what it found."""

    def __init__(
        self, changed: Callable[[], Awaitable[None]], look: Callable[[], Awaitable[Look]]
    ) -> None:
        self._changed = changed
        self._look = look
        self._mended = 0
        self._loss: str | None = None
        self._fault: str | None = None

    @property
    def warnings(self) -> list[str]:
        """What a person should know: what was taken away, and what is amiss."""
        return [text for text in (self._loss, self._fault) if text is not None]

    def forget(self) -> None:
        """Warn no more of what was mended: a person has looked at it."""
        self._mended, self._loss = 0, None

    async def run(self) -> None:
        """Watch until cancelled."""
        pause, rested = FIRST_PAUSE, 0.0
        again = False
        while True:
            if not again:
                await self._changed()
            began = time.monotonic()
            try:
                found = await self._look()
            except EspGwError as error:
                found = Look(fault=str(error))
            self._tell(found)
            again = found.fault is not None and not found.waits
            if not again and not found.done:
                await asyncio.sleep(_LOOK_SHARE * (time.monotonic() - began))
                continue
            in_a_row = rested and began - rested < pause
            pause = min(2 * pause, LONGEST_PAUSE) if in_a_row else FIRST_PAUSE
            await asyncio.sleep(pause)
            rested = time.monotonic()

    def _tell(self, found: Look) -> None:
        if found.missing:
            self._mended += 1
            names = ", ".join(found.missing[:_NAMED])
            if len(found.missing) > _NAMED:
                names += f" and {len(found.missing) - _NAMED} more"
            log.warning("another program took away what is ours", missing=names)
            self._loss = (
                f"another program took away {names}, at {time.strftime('%Y-%m-%d %H:%M:%S')}, "
                f"repair {self._mended} since the last reload; tell it to leave the gateway's "
                "routing alone, then run 'esp-gw reload'"
            )
        elif found.done:
            log.info("the network changed", changes=", ".join(found.done))
        if found.fault != self._fault:
            if found.fault is None:
                log.info("the gateway's network is in place again")
            else:
                log.warning("the gateway's network is not in place", reason=found.fault)
        self._fault = found.fault
