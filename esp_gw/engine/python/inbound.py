"""The inbound path, in order: socket, SPI, window, open, selectors, TUN.

drain       one turn: receive datagrams, at most BATCH and TURN_BYTES
_receive    classify the datagram and demultiplex it by SPI
  _accept     decap; track the peer's address, whatever an authentic packet holds
  _tunnel     the inner packet, its ECN (RFC 6040)
  _transport  rebuild the IP header of the payload, mend its checksum after a NAT
_deliver    check the SA's selectors (RFC 4301 5.2, 6.2); note what comes by a bulk lane
_write      write to the TUN
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

from esp_gw.engine.base import NEVER, CeilingNear, Event, PeerAddressChanged
from esp_gw.engine.python.checksums import mend
from esp_gw.engine.python.drop import AuthenticDrop, Drop
from esp_gw.engine.python.icmp import answered
from esp_gw.engine.python.ike_relay import IkeRelay
from esp_gw.engine.python.lanes import LaneFlows, fold
from esp_gw.engine.python.outbound import BATCH, MAX_FLOWS, MAX_PACKET, ROOM, TURN_BYTES
from esp_gw.engine.python.outer import Outer
from esp_gw.engine.python.peers import SocketAddress
from esp_gw.engine.python.sad import InboundState
from esp_gw.engine.python.samples import Samples
from esp_gw.engine.python.wire import (
    address_key,
    flow_key,
    packet_length,
    parse,
    set_ecn,
    traffic_class,
    write_ipv4_header,
    write_ipv6_header,
)
from esp_gw.model import DropReason, Encapsulation
from esp_gw.protocol import IPPROTO_IPIP, IPPROTO_IPV6, IPV4_HEADER_LEN, IPV6_HEADER_LEN

NOT_ECT, CE = 0, 3
"""ECN codepoints: not ECN-capable transport, congestion experienced (RFC 3168)."""
_ECN = 3
_KEEPALIVE = 0xFF
_NON_ESP_MARKER = 0
_CONTROL_LEN = 64
_MSG_TRUNC = 0x20
_NOWHERE = tuple(str(kind(0)) for kind in (IPv4Address, IPv6Address))
MAX_QUEUED = 256
"""Bound on packets queued for the TUN; further ones are dropped as tun-queue-full."""


class InboundPath:
    """The packet path from the outer sockets to the TUN."""

    def __init__(
        self,
        tun: int,
        on_event: Callable[[Event], None],
        loop: asyncio.AbstractEventLoop,
        samples: Samples,
        lane_flows: LaneFlows,
    ) -> None:
        self._tun = tun
        self._on_event = on_event
        self._loop = loop
        self._samples = samples
        self._lane_flows = lane_flows
        self._datagram = memoryview(bytearray(MAX_PACKET + ROOM))
        self._receive_into = [self._datagram]
        # Headroom for the largest IP header that transport mode rebuilds in front of the payload.
        self._plain = memoryview(bytearray(IPV6_HEADER_LEN + MAX_PACKET + ROOM))
        self._payload = self._plain[IPV6_HEADER_LEN:]
        self._queue: deque[tuple[InboundState, bytes]] = deque()
        self.sas: dict[int, InboundState] = {}
        self.drops: Counter[str] = Counter()
        self.keepalives = 0
        self.ike = IkeRelay()

    def drain(self, outer: Outer) -> None:
        """Receive one turn's datagrams: what the socket has, at most BATCH and TURN_BYTES."""
        room = TURN_BYTES
        receive = outer.sock.recvmsg_into
        for _ in range(BATCH):
            try:
                size, control, flags, address = receive(self._receive_into, _CONTROL_LEN)
            except BlockingIOError:
                return
            except OSError:
                # A pending ICMP error for an earlier packet; the socket itself is fine.
                continue
            try:
                if flags & _MSG_TRUNC:
                    raise Drop(DropReason.TRUNCATED)
                self._receive(outer, size, _tos(control), address)
            except Drop as drop:
                self.drops[drop.reason] += 1
            room -= size
            if room <= 0:
                return

    def discard(self, state: InboundState) -> None:
        """Drop the packets of one SA that are queued for the TUN, counted as tun-error."""
        kept = [item for item in self._queue if item[0] is not state]
        if lost := len(self._queue) - len(kept):
            state.drops[DropReason.TUN_ERROR] += lost
            self._queue = deque(kept)
            if not kept:
                self._loop.remove_writer(self._tun)

    def close(self) -> None:
        """Drop all packets queued for the TUN, counted as tun-error, and relay no IKE datagrams."""
        self.ike.close()
        for state in {id(state): state for state, _ in self._queue}.values():
            self.discard(state)

    def _receive(self, outer: Outer, size: int, tos: int, address: SocketAddress) -> None:
        datagram = self._datagram
        start = 0
        if outer.has_ip_header:
            tos = datagram[1]
            start = (datagram[0] & 15) << 2
        elif outer.is_udp and size == 1 and datagram[0] == _KEEPALIVE:
            self.keepalives += 1
            return
        if size - start < 8:
            raise Drop(DropReason.TOO_SHORT)
        spi = int.from_bytes(datagram[start : start + 4])
        if spi == _NON_ESP_MARKER and outer.is_udp:
            self.ike.pass_on(datagram[start:size], address, outer)
            return
        state = self.sas.get(spi)
        if state is None:
            self._samples.outer(DropReason.UNKNOWN_SPI, None, spi, address, outer.is_udp)
            raise Drop(DropReason.UNKNOWN_SPI)
        try:
            self._accept(state, outer, datagram[start:size], tos, address)
        except Drop as drop:
            state.drops[drop.reason] += 1
            self._samples.outer(drop.reason, state.sa.name, spi, address, outer.is_udp)

    def _accept(
        self,
        state: InboundState,
        outer: Outer,
        datagram: memoryview,
        tos: int,
        address: SocketAddress,
    ) -> None:
        udp = state.sa.encapsulation is Encapsulation.UDP
        ipv4 = state.sa.local.version == 4
        if udp is not outer.is_udp or ipv4 is not outer.is_ipv4:
            raise Drop(DropReason.WRONG_ENCAPSULATION)
        # Only the newest packet counts: a delayed or replayed one must not redirect replies. The
        # content of an authentic packet decides nothing about where it came from.
        try:
            length, next_header, newest = state.esp.decap(datagram, self._payload)
        except AuthenticDrop as drop:
            if drop.newest:
                self._take_newest(state, address)
            raise
        if newest:
            self._take_newest(state, address)
        if state.transport:
            packet = self._transport(state, length, next_header, tos)
        else:
            packet = self._tunnel(length, next_header, tos)
        self._deliver(state, packet)

    def _take_newest(self, state: InboundState, address: SocketAddress) -> None:
        seq = state.esp.window.highest
        if seq > state.notice_at:
            state.notice_at = NEVER
            self._on_event(CeilingNear(state.sa.name, seq))
        if not state.follows:
            return
        peer = state.peer
        if address == peer.address:
            state.heard = peer.moves
        elif (state.sa.learns_peer and seq <= state.fence) or _is_nowhere(address):
            # It may be a replay from before a crash; or no answer can reach it.
            return
        elif peer.follow(address, state.heard, self._loop.time()):
            state.heard = peer.moves
            remote, port = peer.ends(state.sa)
            self._on_event(PeerAddressChanged(state.sa.name, remote, port))

    def _tunnel(self, length: int, next_header: int, tos: int) -> memoryview:
        if next_header not in (IPPROTO_IPIP, IPPROTO_IPV6):
            raise Drop(DropReason.BAD_NEXT_HEADER)
        if self._payload[0] >> 4 != (4 if next_header == IPPROTO_IPIP else 6):
            raise Drop(DropReason.MALFORMED_INNER)
        # Any bytes after the inner packet are TFC padding (RFC 4303 2.7).
        packet = self._payload[: packet_length(self._payload, length)]
        # RFC 6040 4.2: only an outer ECT(1) or CE, the odd codepoints, can change the inner field.
        if tos & 1:
            outer_ecn, ecn = tos & _ECN, traffic_class(packet) & _ECN
            if ecn == NOT_ECT:
                if outer_ecn == CE:
                    raise Drop(DropReason.ECN_NOT_ECT)
            elif ecn != CE:
                set_ecn(packet, outer_ecn)
        return packet

    def _transport(
        self, state: InboundState, length: int, next_header: int, tos: int
    ) -> memoryview:
        ipv4 = state.sa.local.version == 4
        header_len = IPV4_HEADER_LEN if ipv4 else IPV6_HEADER_LEN
        if length + header_len > MAX_PACKET:
            raise Drop(DropReason.MALFORMED_INNER)
        start = IPV6_HEADER_LEN - header_len
        packet = self._plain[start : IPV6_HEADER_LEN + length]
        write = write_ipv4_header if ipv4 else write_ipv6_header
        # The SA's addresses, not the datagram's: the selectors and the sockets of this host know
        # no others, wherever the peer has moved.
        write(packet, state.remote, state.local, next_header, length, tos)
        if state.address_change:
            mend(packet, state.address_change)
        return packet

    def _deliver(self, state: InboundState, packet: memoryview) -> None:
        key = flow_key(packet)
        if key is None or key not in state.flows:
            inner = parse(packet, len(packet))
            if not state.carries_fragment(packet, inner):
                # Never cached: another packet between the same addresses quotes something else.
                flow = None if state.transport else answered(packet, len(packet), inner)
                if flow is None or not state.carries(flow):
                    self._samples.inner(DropReason.SELECTOR_MISMATCH, state.sa.name, inner)
                    raise Drop(DropReason.SELECTOR_MISMATCH)
            elif key is not None:
                self._samples.opening(state.sa.name, packet, inner)
                if len(state.flows) >= MAX_FLOWS:
                    state.flows.clear()
                state.flows.add(key)
        if state.is_bulk:
            folded = fold(key or address_key(packet))
            self._lane_flows.heard(folded, len(packet), int(self._loop.time() * 1000))
        if self._queue:
            self._enqueue(state, packet)
            return
        try:
            self._write(state, packet)
        except BlockingIOError:
            self._enqueue(state, packet)

    def _write(self, state: InboundState, packet: memoryview | bytes) -> None:
        try:
            os.write(self._tun, packet)
        except BlockingIOError:
            raise
        except OSError:
            raise Drop(DropReason.TUN_ERROR) from None
        state.packets += 1
        state.bytes += len(packet)

    def _enqueue(self, state: InboundState, packet: memoryview) -> None:
        if len(self._queue) >= MAX_QUEUED:
            raise Drop(DropReason.TUN_QUEUE_FULL)
        if not self._queue:
            self._loop.add_writer(self._tun, self._drain_queue)
        self._queue.append((state, bytes(packet)))

    def _drain_queue(self) -> None:
        while self._queue:
            state, packet = self._queue[0]
            try:
                self._write(state, packet)
            except BlockingIOError:
                return
            except Drop as drop:
                state.drops[drop.reason] += 1
            self._queue.popleft()
        self._loop.remove_writer(self._tun)


def _is_nowhere(address: SocketAddress) -> bool:
    return address[0] in _NOWHERE


def _tos(control: list[tuple[int, int, bytes]]) -> int:
    # IP_TOS is one byte; IPV6_TCLASS is a native int, whose low byte is first on x86 and ARM.
    return control[0][2][0] if control else 0
