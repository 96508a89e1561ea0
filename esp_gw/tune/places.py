"""The places of the kernel that `esp-gw tune` changes, read and written below a root folder."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from esp_gw.tune.ethtool import Ethtool
from esp_gw.tune.knobs import (
    FEATURE,
    INTERRUPT,
    KNOBS,
    OFF,
    ON,
    Place,
    as_written,
    in_one_form,
)

ROOT = Path("/")
_UP = 1
"""IFF_UP (linux/if.h)."""


class Places:
    """The places below a root folder; ethtool is opened when it is first needed."""

    def __init__(self, root: Path = ROOT, ethtool: Callable[[], Ethtool] = Ethtool) -> None:
        self._root = root
        self._open = ethtool
        self._ethtool: Ethtool | None = None

    def close(self) -> None:
        """Close what was opened."""
        if self._ethtool is not None:
            self._ethtool.close()

    @property
    def ethtool(self) -> Ethtool:
        """ethtool's interface. Raises OSError."""
        if self._ethtool is None:
            self._ethtool = self._open()
        return self._ethtool

    def read(self, place: Place) -> str:
        """Return the value of a place. Raises OSError."""
        if place.knob == FEATURE:
            features = self.ethtool.features(place.card)
            return ON if place.part in features.wanted else OFF
        try:
            return in_one_form(place.knob, self._path(place).read_text())
        except ValueError:
            raise OSError(errno.EINVAL, "it has a value of no known form") from None

    def write(self, place: Place, value: str) -> None:
        """Set a place. Raises OSError."""
        if place.knob == FEATURE:
            self._set_feature(place.card, place.part, value == ON)
        else:
            # Not created where it isn't: there is no such knob.
            descriptor = os.open(self._path(place), os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
            try:
                os.write(descriptor, f"{as_written(place.knob, value)}\n".encode())
            finally:
                os.close(descriptor)

    def _set_feature(self, card: str, name: str, value: bool) -> None:
        self.ethtool.set_feature(card, name, value)
        if (name in self.ethtool.features(card).active) != value:
            self.ethtool.set_feature(card, name, not value)
            raise OSError(errno.EOPNOTSUPP, "the card did not take it")

    def _path(self, place: Place) -> Path:
        if place.knob == INTERRUPT:
            number = dict(interrupts_of(self._root, place.card)).get(place.part)
            if number is None and self._is_down(place.card):
                raise OSError(errno.ENETDOWN, "the card has no interrupts while it is down")
            if number is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return self._root / f"proc/irq/{number}/smp_affinity"
        knob = KNOBS[place.knob]
        return self._root / knob.path.format(card=place.card, part=place.part)

    def _is_down(self, card: str) -> bool:
        try:
            return not int((self._root / "sys/class/net" / card / "flags").read_text(), 16) & _UP
        except FileNotFoundError:
            return False


def interrupts_of(root: Path, card: str) -> Iterator[tuple[str, int]]:
    """Yield label and number of each interrupt of a card's queues.

    The label is the name in /proc/interrupts, and its index among those of this name: numbers
    differ from boot to boot.
    """
    names = {card}
    device = root / "sys/class/net" / card / "device"
    if device.exists():
        # virtio0-input.0, fd580000.ethernet
        names.add(device.resolve().name)
    seen: dict[str, int] = {}
    for line in (root / "proc/interrupts").read_text().splitlines():
        number, _, rest = line.strip().partition(":")
        words = rest.split()
        if not number.isdecimal() or not words:
            continue
        name = words[-1]
        base = re.split(r"[-@:]", name)[0]
        if not ({name, base} & names) or re.search(r"config|control|event|link|mbx|misc", name):
            continue
        index = seen.get(name, 0)
        seen[name] = index + 1
        yield f"{name}#{index}", int(number)
