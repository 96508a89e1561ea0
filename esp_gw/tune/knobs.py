"""The knobs of the kernel that `esp-gw tune` changes, without I/O: no other one can be named.

A place is a knob, and where it is for several: a card, and a part of it. Values are texts in one
form, however the kernel pads them.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from esp_gw.tune.machine import parse_mask

_CARD = re.compile(r"(?!\.{1,2}$)[^/\s:%]{1,15}")
"""The name of an interface (dev_valid_name in net/core/dev.c), without what ethtool takes apart."""
_MASK, _NUMBER, _WORD = "[0-9a-f]{1,1024}", "[0-9]{1,10}", "[a-z_]{1,30}"
FEATURE, INTERRUPT = "feature", "irq_cpus"
RPS, XPS, FLOWS = "rps_cpus", "xps_cpus", "rps_flow_cnt"
GOVERNOR, HUGE_PAGES, SWAPPINESS = "governor", "huge_pages", "swappiness"
FLOW_TABLE, BACKLOG = "rps_sock_flow_entries", "netdev_max_backlog"
ON, OFF = "on", "off"
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


@dataclass(frozen=True, slots=True)
class Place:
    """A place: `knob` is a key of KNOBS; `card` and `part` are empty where there is one for all."""

    knob: str
    card: str = ""
    part: str = ""

    def __str__(self) -> str:
        return " ".join(word for word in (self.card, self.part, self.knob) if word)


@dataclass(frozen=True, slots=True)
class Knob:
    """The form of a knob: patterns of its part and of its values; `path` is its file, if it is one.

    With a card, its places are those of cards.
    """

    values: str
    path: str = ""
    part: str = ""
    has_card: bool = False


KNOBS = {
    RPS: Knob(_MASK, "sys/class/net/{card}/queues/{part}/rps_cpus", r"rx-[0-9]{1,4}", True),
    XPS: Knob(_MASK, "sys/class/net/{card}/queues/{part}/xps_cpus", r"tx-[0-9]{1,4}", True),
    FLOWS: Knob(_NUMBER, "sys/class/net/{card}/queues/{part}/rps_flow_cnt", r"rx-[0-9]{1,4}", True),
    INTERRUPT: Knob(_MASK, "", r"[^/\s]{1,60}#[0-9]{1,3}", True),
    FEATURE: Knob("on|off", "", r"(rx|tx)-[a-z0-9-]{1,40}", True),
    GOVERNOR: Knob(
        _WORD, "sys/devices/system/cpu/cpufreq/{part}/scaling_governor", r"policy[0-9]{1,4}"
    ),
    HUGE_PAGES: Knob(_WORD, "sys/kernel/mm/transparent_hugepage/enabled"),
    SWAPPINESS: Knob(_NUMBER, "proc/sys/vm/swappiness"),
    FLOW_TABLE: Knob(_NUMBER, "proc/sys/net/core/rps_sock_flow_entries"),
    BACKLOG: Knob(_NUMBER, "proc/sys/net/core/netdev_max_backlog"),
}


def fault_of(place: Place, *values: str) -> str | None:
    """Return in words what is wrong with a place or with values for it, or None."""
    knob = KNOBS.get(place.knob)
    if knob is None:
        return f"there is no knob {place.knob!r}"
    if knob.has_card != bool(place.card) or (place.card and not _CARD.fullmatch(place.card)):
        return f"{place.knob} of the card {place.card!r}"
    if not re.fullmatch(knob.part, place.part):
        return f"{place.knob} of {place.part!r}"
    for value in values:
        if not re.fullmatch(knob.values, value):
            return f"{place.knob} has no value {value!r}"
    return None


def in_one_form(knob: str, text: str) -> str:
    """Return a value as the kernel shows it in its one form. Raises ValueError."""
    text = text.strip()
    if KNOBS[knob].values == _MASK:
        return f"{parse_mask(text):x}"
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else text


def as_written(knob: str, value: str) -> str:
    """Return a value as the kernel takes it: a mask in words of 32 bits."""
    if KNOBS[knob].values != _MASK:
        return value
    padded = value.zfill(-len(value) % 8 + len(value))
    return ",".join(padded[at : at + 8] for at in range(0, len(padded), 8))


def is_gone(error: OSError) -> bool:
    """True for a place that isn't there: of a card that was taken out, say."""
    return error.errno in _GONE


def is_away(error: OSError) -> bool:
    """True for a place that isn't there now: it is gone, or its card is down."""
    return is_gone(error) or error.errno == errno.ENETDOWN
