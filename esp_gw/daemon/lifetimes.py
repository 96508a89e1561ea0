"""Limits of IKE's SAs in bytes and packets, and the time of their last packet, by their counters.

They are as precise as the looks at the counters are frequent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from esp_gw.daemon.children import ChildSa
from esp_gw.daemon.held import Held, Key
from esp_gw.engine.base import SaCounters

SOFT, HARD = "SoftExpired", "HardExpired"
BYTES, PACKETS, NUMBERS, RESTART = "bytes", "packets", "sequence numbers", "restart"
"""Reasons of an expiry."""


@dataclass(slots=True)
class _Use:
    packets: int
    at: float | None = None
    soft: bool = False


class Lifetimes:
    """The use of each SA since it was seen first."""

    def __init__(self) -> None:
        self._uses: dict[Key, _Use] = {}

    def look(
        self, held: Held, counters: Mapping[str, SaCounters], now: float
    ) -> Iterator[tuple[Key, str, str]]:
        """Take the counters at `now`, in seconds; yield each SA that has reached a limit.

        Those are its key, SOFT once or HARD, and the reason.
        """
        self._uses = {key: use for key, use in self._uses.items() if key in held.sas}
        for key, sa in held.sas.items():
            there = counters.get(sa.sa.name)
            if sa.expired or there is None:
                continue
            use = self._take(key, there, now)
            hard = _reached(sa.entry.hard_bytes, sa.entry.hard_packets, there)
            soft = None if use.soft else _soft(sa.entry, there)
            if hard is not None:
                yield key, HARD, hard
            elif soft is not None:
                use.soft = True
                yield key, SOFT, soft

    def last_use(self, key: Key, there: SaCounters, now: float) -> float | None:
        """Return the seconds since an SA's last packet, or None if there was none."""
        use = self._take(key, there, now)
        return None if use.at is None else round(max(now - use.at, 0.0), 1)

    def forget(self, key: Key) -> None:
        """Forget an SA: another may have its SPI."""
        self._uses.pop(key, None)

    def _take(self, key: Key, there: SaCounters, now: float) -> _Use:
        use = self._uses.setdefault(key, _Use(0))
        if there.packets != use.packets:
            use.packets, use.at = there.packets, now
        return use


def _soft(entry: ChildSa, there: SaCounters) -> str | None:
    return _reached(entry.soft_bytes, entry.soft_packets, there)


def _reached(most_bytes: int | None, most_packets: int | None, there: SaCounters) -> str | None:
    if most_bytes and there.bytes >= most_bytes:
        return BYTES
    if most_packets and there.packets >= most_packets:
        return PACKETS
    return None
