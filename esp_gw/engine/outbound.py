"""The way out, in the order in which it happens: TUN, selectors, sequence number, seal, socket.

drain       read a packet from the TUN, at most BATCH a call
_forward    its length, its SA, its payload; encap; send
  _find       selectors, once a flow
  _payload    what transport mode protects of it
  _sent       counters, lease and lifetime marks
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence

from esp_gw.engine.base import Event, HardExpired, LeaseLow, PathMtuChanged, SoftExpired
from esp_gw.engine.outer import path_mtu
from esp_gw.engine.sad import NEVER, OutboundState
from esp_gw.esp import Drop
from esp_gw.model import Action, DropReason, Policy
from esp_gw.reassembly import Reassembler
from esp_gw.spd import Spd
from esp_gw.wire import (
    HOP_BY_HOP,
    IPPROTO_IPIP,
    IPPROTO_IPV6,
    IPV4_HEADER_LEN,
    IPV6_HEADER_LEN,
    ROUTING,
    flow_key,
    packet_length,
    parse,
    traffic_class,
)

BATCH = 64
"""Packets a call of the reader: about a millisecond, then everything else has its turn."""
MAX_PACKET = 65535
ROOM = 512
"""Bytes beyond the largest packet for the ESP header, IV, trailer and ICV."""
MAX_FLOWS = 4096
"""Flows whose policy is remembered; when a scan fills the table it starts anew."""

Target = OutboundState | DropReason


class OutboundPath:
    """From the TUN to the outer sockets."""

    def __init__(self, tun: int, on_event: Callable[[Event], None]) -> None:
        self._tun = tun
        self._on_event = on_event
        self._packet = memoryview(bytearray(MAX_PACKET + ROOM))
        self._out = memoryview(bytearray(MAX_PACKET + ROOM))
        self._read_into = [self._packet[:MAX_PACKET]]
        self._spd = Spd(())
        self._flows: dict[tuple[int, bytes], Target] = {}
        self._reassembler = Reassembler()
        self.sas: dict[str, OutboundState] = {}
        self.drops: Counter[str] = Counter()

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Look packets up in a new SPD from the next one on."""
        self._spd = Spd(policies)
        self._flows.clear()

    def forget_flows(self) -> None:
        """Look every flow up again: an SA came, went, or changed."""
        self._flows.clear()

    def drain(self) -> None:
        """Forward what the TUN has, at most BATCH packets.

        Raises OSError where the device is gone.
        """
        for _ in range(BATCH):
            try:
                length = os.readv(self._tun, self._read_into)
            except BlockingIOError:
                return
            try:
                self._forward(self._packet, length)
            except Drop as drop:
                self.drops[drop.reason] += 1

    def _forward(self, packet: memoryview, length: int) -> None:
        if packet_length(packet, length) != length:
            raise Drop(DropReason.MALFORMED_INNER)
        key = flow_key(packet)
        target = self._flows.get(key) if key else None
        if target is None:
            target = self._find(packet, length, key)
        if not isinstance(target, OutboundState):
            raise Drop(target)
        tos = traffic_class(packet)
        try:
            if target.transport:
                self._forward_transport(target, packet, length, tos)
            else:
                next_header = IPPROTO_IPIP if packet[0] >> 4 == 4 else IPPROTO_IPV6
                self._protect(target, packet, 0, length, next_header, tos, False)
        except Drop as drop:
            target.drops[drop.reason] += 1
            if drop.reason is DropReason.SEQ_EXHAUSTED and not target.expired:
                target.expired = True
                self._on_event(HardExpired(target.sa.name))

    def _find(self, packet: memoryview, length: int, key: tuple[int, bytes] | None) -> Target:
        policy = self._spd.lookup(parse(packet, length))
        target: Target
        if policy is None:
            target = DropReason.NO_POLICY
        elif policy.action is Action.DISCARD:
            target = DropReason.POLICY_DISCARD
        elif policy.action is Action.BYPASS:
            target = DropReason.POLICY_BYPASS
        else:
            target = self.sas.get(policy.sa or "", DropReason.NO_SA)
        if key is not None:
            if len(self._flows) >= MAX_FLOWS:
                self._flows.clear()
            self._flows[key] = target
        return target

    def _forward_transport(
        self, state: OutboundState, packet: memoryview, length: int, tos: int
    ) -> None:
        inner = parse(packet, length)
        whole = False
        if inner.fragment:
            datagram = self._reassembler.add(packet, length, time.monotonic())
            if datagram is None:
                return
            length, whole = len(datagram), True
            packet[:length] = datagram
        start, next_header = _payload(packet)
        self._protect(state, packet, start, length, next_header, tos, whole)

    def _protect(
        self,
        state: OutboundState,
        packet: memoryview,
        start: int,
        end: int,
        next_header: int,
        tos: int,
        may_fragment: bool,
    ) -> None:
        size = state.esp.encap(packet, start, end, next_header, self._out)
        dropped = state.outer.send(self._out[:size], state.address, tos, may_fragment)
        if state.esp.next_seq >= state.notice_at:
            self._notice(state)
        if dropped is not None:
            if dropped is DropReason.TOO_BIG:
                self._too_big(state)
            raise Drop(dropped)
        state.packets += 1
        state.bytes += end

    def _notice(self, state: OutboundState) -> None:
        # Each mark is told once: extend_lease sets the next one.
        state.notice_at = NEVER
        if state.esp.next_seq >= state.soft:
            state.soft = NEVER
            self._on_event(SoftExpired(state.sa.name))
            state.watch()
        if state.esp.next_seq >= state.esp.low:
            state.notice_at = state.soft
            self._on_event(LeaseLow(state.sa.name))

    def _too_big(self, state: OutboundState) -> None:
        mtu = path_mtu(state.outer, state.address)
        if mtu is not None:
            self._on_event(PathMtuChanged(state.sa.remote, mtu))


def _payload(packet: memoryview) -> tuple[int, int]:
    """Return where the payload begins that transport mode protects, and its protocol.

    A socket can't send the headers that RFC 4303 3.1.1 leaves in front of ESP: options of IPv4,
    hop-by-hop and routing headers of IPv6. Such packets raise Drop(UNSUPPORTED_HEADER).
    """
    if packet[0] == 0x45:
        return IPV4_HEADER_LEN, packet[9]
    if packet[0] >> 4 == 6 and packet[6] not in (HOP_BY_HOP, ROUTING):
        return IPV6_HEADER_LEN, packet[6]
    raise Drop(DropReason.UNSUPPORTED_HEADER)
