"""Features, coalescing, rings and energy saving of a network card, by ethtool's netlink interface.

pyroute2's class for it has none of them but the rings, its ioctl can't tell a parameter that a card
lacks from one that is 0, and importing it takes longer than `esp-gw doctor` may.

Sources: Documentation/networking/ethtool-netlink.rst, linux/ethtool_netlink.h, linux/genetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from esp_gw.network.messages import NUMBER, MessageSocket, attribute, attributes, number, text

_GENERIC = 16
"""NETLINK_GENERIC."""
_HEAD = struct.Struct("=BBH")
"""struct genlmsghdr: command, version, reserved."""
_ID = struct.Struct("=H")
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_NESTED = 0x8000

_FEATURES_GET, _FEATURES_SET = 11, 12
_RINGS_GET, _COALESCE_GET, _EEE_GET = 15, 19, 23
_HEADER, _HEADER_NAME, _HEADER_FLAGS = 1, 2, 3
_OMIT_REPLY = 2
"""ETHTOOL_FLAG_OMIT_REPLY: a request that changes something is answered by an ACK alone."""
_FEATURES_HW, _FEATURES_WANTED, _FEATURES_ACTIVE, _FEATURES_NOCHANGE = 2, 3, 4, 5
_BITSET_NOMASK, _BITSET_BITS, _BIT, _BIT_NAME, _BIT_VALUE = 1, 3, 1, 2, 3
_RINGS_RX_MAX, _RINGS_RX = 2, 6
_EEE_ENABLED = 5
_COALESCE_ADAPTIVE = 11


@dataclass(frozen=True, slots=True)
class Features:
    """The features of a card by name: those that can be changed, are wanted, and are in use."""

    changeable: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    active: frozenset[str] = frozenset()


class Ethtool:
    """ethtool's netlink interface; all methods raise OSError, with the kernel's number."""

    def __init__(self) -> None:
        self._messages = MessageSocket(_open_socket)
        try:
            name = attribute(_FAMILY_NAME, b"ethtool\0")
            body = self._messages.get(_CONTROL, _HEAD.pack(_GET_FAMILY, 1, 0) + name)
            self._family = _ID.unpack(dict(attributes(body[_HEAD.size :]))[_FAMILY_ID])[0]
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._messages.close()

    def features(self, card: str) -> Features:
        """Return the features of a card."""
        found = self._get(_FEATURES_GET, card)
        hw, wanted, active, never = (
            frozenset(_set_bits(found.get(kind, b"")))
            for kind in (_FEATURES_HW, _FEATURES_WANTED, _FEATURES_ACTIVE, _FEATURES_NOCHANGE)
        )
        return Features(hw - never, wanted, active)

    def set_feature(self, card: str, name: str, value: bool) -> None:
        """Switch a feature of a card on or off."""
        told = attribute(_BIT_NAME, name.encode() + b"\0")
        if value:
            told += attribute(_BIT_VALUE, b"")
        bits = attribute(_BITSET_BITS | _NESTED, attribute(_BIT | _NESTED, told))
        self._set(_FEATURES_SET, card, attribute(_FEATURES_WANTED | _NESTED, bits))

    def is_adaptive(self, card: str) -> bool | None:
        """Return True if the pause between interrupts follows the load; None without the knob."""
        found = self._get(_COALESCE_GET, card).get(_COALESCE_ADAPTIVE)
        return None if found is None else found != b"\0"

    def receive_ring(self, card: str) -> tuple[int, int]:
        """Return size and greatest size of the receive ring in packets; 0 is unknown."""
        found = self._get(_RINGS_GET, card)
        return number(found.get(_RINGS_RX)), number(found.get(_RINGS_RX_MAX))

    def has_eee(self, card: str) -> bool:
        """Return True if the card may save energy between packets (IEEE 802.3az)."""
        return self._get(_EEE_GET, card).get(_EEE_ENABLED, b"\0") != b"\0"

    def _get(self, command: int, card: str) -> dict[int, bytes]:
        body = self._messages.get(self._family, _HEAD.pack(command, 1, 0) + _header(card, 0))
        return dict(attributes(body[_HEAD.size :]))

    def _set(self, command: int, card: str, told: bytes) -> None:
        codes: list[int] = []
        body = _HEAD.pack(command, 1, 0) + _header(card, _OMIT_REPLY) + told
        self._messages.change(self._family, 0, [body], lambda code, _: codes.append(code))
        for code in codes:
            raise OSError(code, os.strerror(code))


def _open_socket() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC)
    opened.bind((0, 0))
    return opened


def _header(card: str, flags: int) -> bytes:
    told = attribute(_HEADER_NAME, card.encode() + b"\0")
    if flags:
        told += attribute(_HEADER_FLAGS, NUMBER.pack(flags))
    return attribute(_HEADER | _NESTED, told)


def _set_bits(bitset: bytes) -> Iterator[str]:
    """Yield the names of the bits that are set; with a mask the others are listed, too."""
    parts = dict(attributes(bitset))
    is_list = _BITSET_NOMASK in parts
    for _, body in attributes(parts.get(_BITSET_BITS, b"")):
        bit = dict(attributes(body))
        if is_list or _BIT_VALUE in bit:
            yield text(bit.get(_BIT_NAME)) or ""
