"""SPIs that the owner has reserved for inbound SAs to come, without I/O or a clock."""

from __future__ import annotations

import secrets
from collections.abc import Collection

from esp_gw.errors import ControlError

FIRST_SPI, LAST_SPI = 0xC0000000, 0xCFFFFFFF
"""The SPIs that charon chooses among by default."""
LIFETIME = 300.0
"""Seconds for which an SPI stays reserved: longer than an exchange of IKE takes."""
MAX_RESERVED = 4096


class Reservations:
    """The reserved SPIs, each with the time of its end."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def reserve(self, used: Collection[int], now: float) -> int:
        """Return a random SPI that is neither in use nor reserved. Raises ControlError."""
        self._until = {spi: until for spi, until in self._until.items() if now < until}
        if len(self._until) >= MAX_RESERVED:
            raise ControlError(
                "Refused", f"{MAX_RESERVED} SPIs are reserved already", hint="try again later"
            )
        while True:
            spi = FIRST_SPI + secrets.randbelow(LAST_SPI - FIRST_SPI + 1)
            if spi not in used and spi not in self._until:
                self._until[spi] = now + LIFETIME
                return spi

    def end(self, spi: int) -> None:
        """End the reservation of an SPI, if there is one: an SA has it now, or none will."""
        self._until.pop(spi, None)

    def clear(self) -> None:
        """End all reservations."""
        self._until.clear()
