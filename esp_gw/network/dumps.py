"""Addresses and links of the host, by rtnetlink dumps.

Sources: rtnetlink(7), linux/if_addr.h, linux/if_link.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from esp_gw.model import IPAddress, IPNetwork
from esp_gw.network.messages import FAMILY, NUMBER, MessageSocket, attribute, attributes, text

_ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, interface."""
_LINK = struct.Struct("=BxHiII")
"""struct ifinfomsg: family, type, interface, flags, changed flags."""
_RTM_GETLINK, _RTM_GETADDR = 18, 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFLA_IFNAME, _IFLA_IFALIAS, _IFLA_EXT_MASK = 3, 20, 29
_SKIP_STATS = 1 << 3
"""RTEXT_FILTER_SKIP_STATS: the counters are most of a link's message."""


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """An address of an interface; `network` is that of the peer on a point-to-point link."""

    index: int
    address: IPAddress
    network: IPNetwork
    scope: int


def addresses(messages: MessageSocket, index: int = 0) -> Iterator[InterfaceAddress]:
    """Yield the addresses of an interface, of all for 0. Raises NetworkError, OSError."""
    for family in FAMILY.values():
        request = _ADDRESS.pack(family, 0, 0, 0, index)
        for body in messages.dump(_RTM_GETADDR, request, "addresses"):
            found = _read_address(body, family)
            if found is not None and index in (0, found.index):
                yield found


def links(messages: MessageSocket) -> Iterator[tuple[int, str, str]]:
    """Yield index, name and alias of each interface. Raises NetworkError, OSError."""
    request = _LINK.pack(0, 0, 0, 0, 0) + attribute(_IFLA_EXT_MASK, NUMBER.pack(_SKIP_STATS))
    for body in messages.dump(_RTM_GETLINK, request, "links"):
        _, _, index, _, _ = _LINK.unpack_from(body)
        fields = dict(attributes(body[_LINK.size :]))
        yield index, text(fields.get(_IFLA_IFNAME)) or "", text(fields.get(_IFLA_IFALIAS)) or ""


def _read_address(body: bytes, family: int) -> InterfaceAddress | None:
    """Return the address in a message body, None if it is of another family."""
    found, bits, _, scope, index = _ADDRESS.unpack_from(body)
    fields = dict(attributes(body[_ADDRESS.size :]))
    # On a point-to-point link IFA_ADDRESS is the peer's address.
    peer = fields.get(_IFA_ADDRESS)
    own = fields.get(_IFA_LOCAL, peer)
    if found != family or own is None or peer is None:
        return None
    network = ip_network((peer, bits), strict=False)
    return InterfaceAddress(index, ip_address(own), network, scope)
