"""The keepalives of an outbound SA: their kind and their interval."""

from __future__ import annotations

from dataclasses import dataclass

from esp_gw.model import Direction, Encapsulation, Sa


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Keepalives of an SA: one at least every `interval` seconds without other traffic.

    An authentic one is a dummy packet (RFC 4303 2.6), the other a byte that keeps the mapping of a
    NAT (RFC 3948 4).
    """

    interval: int
    authentic: bool


def rhythm_of(sa: Sa) -> Rhythm | None:
    """Return the keepalives that an SA sends, or None.

    A dummy packet keeps a mapping, too: an SA with both intervals sends dummies by the smaller.
    """
    if sa.direction is Direction.INBOUND:
        return None
    nat = sa.keepalive if sa.encapsulation is Encapsulation.UDP else 0
    if sa.liveness:
        return Rhythm(min(sa.liveness, nat or sa.liveness), authentic=True)
    return Rhythm(nat, authentic=False) if nat else None
