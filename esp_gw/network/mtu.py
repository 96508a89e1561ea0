"""MTUs: the largest inner packet of an SA, and the MTU of a route into the TUN."""

from __future__ import annotations

from esp_gw.model import Encapsulation, IPNetwork, Mode, Sa
from esp_gw.network.prefixes import PrefixIndex
from esp_gw.protocol import IPV4_HEADER_LEN, IPV6_HEADER_LEN, MIN_IPV6_MTU, UDP_HEADER_LEN

DEFAULT_PATH_MTU = 1500


def inner_mtu(sa: Sa, path_mtu: int) -> int:
    """Return the largest inner packet whose outer packet fits `path_mtu` bytes."""
    header = IPV4_HEADER_LEN if sa.remote.version == 4 else IPV6_HEADER_LEN
    udp = UDP_HEADER_LEN if sa.encapsulation is Encapsulation.UDP else 0
    payload = sa.suite.max_payload(path_mtu - header - udp)
    return payload + header if sa.mode is Mode.TRANSPORT else payload


def prefix_mtu(prefix: IPNetwork, protected: PrefixIndex[int], limit: int | None) -> int:
    """Return the smallest inner MTU of the SAs that a packet to the prefix may take.

    They are those of the prefix and of all wider ones: its route, the longest match, also carries
    packets that match only the policy of a wider prefix.
    """
    mtu = min(protected.around(prefix), default=DEFAULT_PATH_MTU)
    if prefix.version == 6:
        # IPv6 has no smaller links (RFC 8200 5): the outer packet is fragmented instead.
        mtu = max(mtu, MIN_IPV6_MTU)
    return min(mtu, limit) if limit else mtu
