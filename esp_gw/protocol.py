"""Numbers assigned by the RFCs, and sizes of headers and ESP packets in bytes."""

from __future__ import annotations

UDP_ENCAP_PORT = 4500
"""The port of UDP-encapsulated ESP (RFC 3948)."""
BOOTPS_PORT, BOOTPC_PORT = 67, 68
"""The ports of a DHCP server and its client (RFC 2131 4.1)."""
IKE_PORT = 500
"""The port of IKE (RFC 7296 2)."""
MIN_SPI = 256
"""The first SPI that is not reserved (RFC 4303 2.1)."""
MAX_SPI = 2**32 - 1

IPPROTO_ICMP = 1
IPPROTO_IPIP = 4
IPPROTO_TCP = 6
IPPROTO_UDP = 17
IPPROTO_DCCP = 33
IPPROTO_IPV6 = 41
IPPROTO_ESP = 50
IPPROTO_ICMPV6 = 58
IPPROTO_SCTP = 132
IPPROTO_UDPLITE = 136
PORT_PROTOCOLS = frozenset((IPPROTO_TCP, IPPROTO_UDP, IPPROTO_DCCP, IPPROTO_SCTP, IPPROTO_UDPLITE))
"""The protocols whose packets carry ports (RFC 4301 4.4.1.1)."""
NO_NEXT_HEADER = 59
"""The next header of a dummy packet (RFC 4303 2.6)."""
HOP_BY_HOP, ROUTING, FRAGMENT_HEADER, DESTINATION_OPTIONS = 0, 43, 44, 60
"""IPv6 extension headers (RFC 8200 4)."""

IPV4_HEADER_LEN = 20
IPV6_HEADER_LEN = 40
UDP_HEADER_LEN = 8
MIN_IPV6_MTU = 1280
"""The smallest MTU of an IPv6 link (RFC 8200 5)."""

ESP_HEADER_LEN = 8
"""SPI and seq_lo, 4 bytes each (RFC 4303 2)."""
SALT_LEN = 4
IV_LEN = 8
TEXT_OFFSET = ESP_HEADER_LEN + IV_LEN
"""Offset of the first encrypted byte of an ESP packet."""
TRAILER_LEN = 2
"""pad_len and next_header (RFC 4303 2)."""
