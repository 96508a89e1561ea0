"""Recommendation of a suite for a machine, from given measurements; nothing is measured here.

The choice is between the two suites with keys of 256 bits. AES-128-GCM never gains so much on
AES-256-GCM that a shorter key would be worth it.
"""

from __future__ import annotations

from collections.abc import Mapping

from esp_gw.model import DEFAULT_SUITE, NO_AES

SIZES = (64, 576, 1400)
"""Sizes of the measured packets in bytes: an acknowledgement, a medium and a full packet."""
OTHER_SUITE = "chacha20poly1305"
"""The suite that is fast without dedicated instructions (RFC 7634)."""
CHOICE = (DEFAULT_SUITE.name, OTHER_SUITE)
MARGIN = 1.5
"""Factor of slowness from which another suite is recommended; noise stays below it."""

Figures = Mapping[int, float]
"""Nanoseconds to seal a packet, by its size in bytes."""


def times_as_long(suite: Figures, other: Figures) -> float:
    """Ratio of the time of `suite` to that of `other`, for one packet of each size."""
    return sum(suite[size] for size in SIZES) / sum(other[size] for size in SIZES)


def recommended(figures: Mapping[str, Figures]) -> str:
    """Return the suite for a machine with these figures; a suite without figures is unavailable.

    It is the default, unless that takes at least `MARGIN` times as long as the other.
    """
    default = figures.get(DEFAULT_SUITE.name)
    other = figures.get(OTHER_SUITE)
    if other is None:
        return DEFAULT_SUITE.name
    if default is None or times_as_long(default, other) >= MARGIN:
        return OTHER_SUITE
    return DEFAULT_SUITE.name


def reason(figures: Mapping[str, Figures], aes: str) -> str:
    """Return the reason for `recommended`; `aes` names the instructions, as from `aes_path`."""
    default, other = CHOICE
    for name in CHOICE:
        if name not in figures:
            return f"This machine has no {name}."
    factor = times_as_long(figures[default], figures[other])
    if factor >= MARGIN:
        return f"It is {factor:.1f} times as fast as {default} on this machine."
    compared = f"{1 / factor:.1f} times" if 1 / factor >= MARGIN else "about"
    has = "" if aes == NO_AES else f", which has AES instructions ({aes})"
    return f"It is {compared} as fast as {other} on this machine{has}."


def peers(suite: str) -> str:
    """Return the peers for which a recommended suite is right: the slower end decides."""
    if suite == OTHER_SUITE:
        use = "use it with every peer that has it"
    else:
        use = f"{OTHER_SUITE} is right where the peer has no AES instructions (Raspberry Pi 3, 4)"
    return f"A tunnel is as fast as its slower end: {use}."
