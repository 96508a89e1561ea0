"""Samples of refused packets and of openings, taken beside the path of good packets."""

from __future__ import annotations

from collections.abc import Hashable
from ipaddress import IPv4Address, IPv6Address, ip_address

from esp_gw.engine.base import MAX_SAMPLES, Opening, Refused
from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.peers import SocketAddress
from esp_gw.engine.python.wire import NO_PORT, Inner, parse
from esp_gw.model import DropReason, IPAddress
from esp_gw.protocol import IPPROTO_ESP, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP

_OUTER = frozenset(
    (
        DropReason.UNKNOWN_SPI,
        DropReason.WRONG_ENCAPSULATION,
        DropReason.AUTH_FAILED,
        DropReason.REPLAY_OLD,
        DropReason.REPLAY_DUPLICATE,
    )
)
_INNER = frozenset(
    (
        DropReason.NO_POLICY,
        DropReason.NO_SA,
        DropReason.SELECTOR_MISMATCH,
        DropReason.TOO_BIG,
    )
)
_SYN, _ACK = 0x02, 0x10
_FLAGS_OFFSET = 13
_ECHO_REQUESTS = {(4, IPPROTO_ICMP): 8, (6, IPPROTO_ICMPV6): 128}
"""Types of echo requests by IP version and protocol: ICMP, ICMPv6."""


class Samples:
    """The samples of an engine since they were last taken."""

    def __init__(self) -> None:
        self._refused: dict[DropReason, dict[Hashable, Refused]] = {}
        self._openings: list[Opening] = []

    def outer(
        self, reason: DropReason, sa: str | None, spi: int, address: SocketAddress, udp: bool
    ) -> None:
        """Sample a datagram that was dropped; `address` is its source."""
        if reason not in _OUTER:
            return
        held, key = self._refused.setdefault(reason, {}), (spi, address[0])
        if len(held) < MAX_SAMPLES and key not in held:
            source = ip_address(address[0].partition("%")[0])
            port, protocol = (address[1], IPPROTO_UDP) if udp else (0, IPPROTO_ESP)
            held[key] = Refused(reason, sa, source, port, None, 0, protocol, spi)

    def inner(self, reason: DropReason, sa: str | None, inner: Inner) -> None:
        """Sample an inner packet that was dropped."""
        held, key = self._refused.setdefault(reason, {}), (inner.version, inner.src, inner.dst)
        if len(held) < MAX_SAMPLES and key not in held:
            source, destination = _addresses(inner)
            ports = _port(inner.src_port), _port(inner.dst_port)
            held[key] = Refused(
                reason, sa, source, ports[0], destination, ports[1], inner.protocol, None
            )

    def packet(self, reason: DropReason, sa: str | None, packet: memoryview, length: int) -> None:
        """Sample a packet of the TUN that was dropped."""
        if reason in _INNER and len(self._refused.get(reason, ())) < MAX_SAMPLES:
            try:
                inner = parse(packet, length)
            except Drop:
                # After a reassembly `length` is that of the last fragment, not of the packet.
                return
            self.inner(reason, sa, inner)

    def opening(self, sa: str, packet: memoryview, inner: Inner) -> None:
        """Sample a flow's first packet, without extension headers, if it asks for an answer."""
        if len(self._openings) < MAX_SAMPLES and _asks(packet, inner):
            source, destination = _addresses(inner)
            port = _port(inner.dst_port)
            self._openings.append(Opening(sa, source, destination, inner.protocol, port))

    def take_refused(self) -> list[Refused]:
        """Return the samples of refused packets, and forget them."""
        taken, self._refused = self._refused, {}
        return [refused for held in taken.values() for refused in held.values()]

    def take_openings(self) -> list[Opening]:
        """Return the openings, and forget them."""
        taken, self._openings = self._openings, []
        return taken


def _asks(packet: memoryview, inner: Inner) -> bool:
    upper = packet[inner.payload :]
    if inner.protocol == IPPROTO_TCP:
        return len(upper) > _FLAGS_OFFSET and upper[_FLAGS_OFFSET] & (_SYN | _ACK) == _SYN
    request = _ECHO_REQUESTS.get((inner.version, inner.protocol))
    return request is not None and len(upper) > 0 and upper[0] == request


def _addresses(inner: Inner) -> tuple[IPAddress, IPAddress]:
    kind = IPv4Address if inner.version == 4 else IPv6Address
    return kind(inner.src), kind(inner.dst)


def _port(port: int) -> int:
    return 0 if port == NO_PORT else port
