"""Packets in a capture of a machine's network card."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from esp_gw.model import IPAddress
from tests.support.labtools import frames

_IPV4, _IPV6 = 0x0800, 0x86DD


@dataclass(frozen=True, slots=True)
class Packet:
    """One IP packet, with the index of its frame."""

    index: int
    destination: IPAddress
    protocol: int
    port: int | None
    """Destination port, of UDP alone."""

    @property
    def is_esp(self) -> bool:
        return self.protocol == 50 or (self.protocol == 17 and self.port == 4500)


def packets_from(mac: str, capture: Path) -> Iterator[Packet]:
    """The IP packets that a machine sent; a frame that is still being written is left out."""
    sender = bytes.fromhex(mac.replace(":", ""))
    for index, frame in enumerate(frames(capture)):
        if frame[6:12] != sender:
            continue
        (kind,) = struct.unpack_from("!H", frame, 12)
        if kind == _IPV4:
            upper, protocol = 14 + ((frame[14] & 15) << 2), frame[23]
            destination: IPAddress = IPv4Address(frame[30:34])
        elif kind == _IPV6:
            upper, protocol = 54, frame[20]
            destination = IPv6Address(frame[38:54])
        else:
            continue
        port = struct.unpack_from("!H", frame, upper + 2)[0] if protocol == 17 else None
        yield Packet(index, destination, protocol, port)
