"""Upper-layer checksums of transport mode through a NAT (RFC 3948 3.1.2), mended in place.

They cover the addresses, which the sender had otherwise. A wrong checksum stays wrong.
Sources: RFC 1624 3, RFC 9293 3.1, RFC 768, RFC 8200 8.1, RFC 3828 3.1, RFC 4340 9.1, RFC 4443 2.3.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from esp_gw.engine.python.fragments import fragment_of
from esp_gw.engine.python.wire import parse
from esp_gw.model import IPAddress, Sa
from esp_gw.protocol import (
    IPPROTO_DCCP,
    IPPROTO_ICMPV6,
    IPPROTO_TCP,
    IPPROTO_UDP,
    IPPROTO_UDPLITE,
)


class _Place(NamedTuple):
    """Offset of a checksum; True if 0 stands for none, so that a sum of 0 is sent as 0xFFFF."""

    offset: int
    zero_is_none: bool


_PLACES = {
    4: {
        IPPROTO_TCP: _Place(16, False),
        IPPROTO_UDP: _Place(6, True),
        IPPROTO_DCCP: _Place(6, False),
        IPPROTO_UDPLITE: _Place(6, True),
    }
}
_PLACES[6] = _PLACES[4] | {IPPROTO_ICMPV6: _Place(2, False)}


def address_change(sa: Sa) -> int:
    """Return the sum of what a NAT changed in the addresses of an inbound SA's inner packets.

    It is the 16-bit one's complement sum of ~m and m' of RFC 1624; 0 if nothing was changed.
    """
    before = _words(sa.remote_original or sa.remote) + _words(sa.local_original or sa.local)
    after = _words(sa.remote) + _words(sa.local)
    if before == after:
        return 0
    return _folded(sum(~word & 0xFFFF for word in before) + sum(after))


def mend(packet: memoryview, change: int) -> None:
    """Update the checksum of a packet behind its IP header, if it covers the addresses.

    A later fragment has none. `change` comes from address_change. Raises Drop(MALFORMED_INNER) for
    a broken header.
    """
    inner = parse(packet, len(packet))
    place = _PLACES[inner.version].get(inner.protocol)
    if place is None:
        return
    if inner.fragment:
        fragment = fragment_of(packet, inner)
        if fragment is None or not fragment.is_first:
            return
    at = inner.upper + place.offset
    if at + 2 > len(packet):
        return
    checksum = packet[at] << 8 | packet[at + 1]
    if place.zero_is_none and not checksum:
        return
    mended = ~_folded((~checksum & 0xFFFF) + change) & 0xFFFF
    if place.zero_is_none and not mended:
        mended = 0xFFFF
    packet[at], packet[at + 1] = mended >> 8, mended & 0xFF


def _words(address: IPAddress) -> tuple[int, ...]:
    packed = address.packed
    return struct.unpack(f"!{len(packed) // 2}H", packed)


def _folded(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
