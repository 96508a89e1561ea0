"""The packet that an ICMP error quotes, by which its SA is found (RFC 4301 6.2).

Sources: RFC 792, RFC 4443.
"""

from __future__ import annotations

from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.wire import Inner, parse
from esp_gw.protocol import IPPROTO_ICMP, IPPROTO_ICMPV6, IPV4_HEADER_LEN, IPV6_HEADER_LEN

_HEADER_LEN = 8
_ERRORS = {
    4: (IPPROTO_ICMP, frozenset((3, 4, 11, 12))),
    6: (IPPROTO_ICMPV6, frozenset((1, 2, 3, 4))),
}


def answered(packet: memoryview, length: int, inner: Inner) -> Inner | None:
    """Return the selector fields of the flow that an ICMP error answers, in the error's direction.

    They are those of the quoted packet, reversed. None if the packet is no whole ICMP error, or
    doesn't go to the source of what it quotes. `inner` is what parse returned for the packet.
    """
    protocol, errors = _ERRORS[inner.version]
    start = inner.upper + _HEADER_LEN
    if inner.protocol != protocol or inner.fragment or start >= length:
        return None
    if packet[inner.upper] not in errors or packet[start] >> 4 != inner.version:
        return None
    quoted = packet[start:length]
    header = (quoted[0] & 15) << 2 if inner.version == 4 else IPV6_HEADER_LEN
    if not IPV4_HEADER_LEN <= header <= len(quoted):
        return None
    try:
        sent = parse(quoted, len(quoted))
    except Drop:
        return None
    if sent.src != inner.dst:
        return None
    return sent._replace(src=sent.dst, dst=sent.src, src_port=sent.dst_port, dst_port=sent.src_port)
