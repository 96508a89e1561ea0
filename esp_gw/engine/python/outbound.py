"""The outbound path, in order: TUN, selectors, sequence number, seal, socket.

drain       one turn: read packets from the TUN, at most BATCH and TURN_BYTES
_forward    carry one packet through the steps below
  _reassemble join fragments for transport mode
  _state      look up the SA by the selectors, once per flow; an ICMP error's by what it quotes
  _by_lane    choose among several SAs of a tunnel, for each packet
  _protect    encap the payload and send
  _notice     report lease and lifetime thresholds

send_dummy  seal and send a packet without a payload of the TUN
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from esp_gw.engine.base import Event, HardExpired, LeaseLow, SoftExpired
from esp_gw.engine.python.drop import Drop
from esp_gw.engine.python.fragments import Fragments, fragment_of
from esp_gw.engine.python.icmp import answered
from esp_gw.engine.python.lanes import LaneFlows, bulk_lane, choose, fold
from esp_gw.engine.python.reassembly import Reassembler
from esp_gw.engine.python.sad import NEVER, OutboundState
from esp_gw.engine.python.samples import Samples
from esp_gw.engine.python.spd import Spd
from esp_gw.engine.python.too_big import TooBig
from esp_gw.engine.python.wire import (
    Inner,
    address_key,
    flow_key,
    packet_length,
    parse,
    spread,
    traffic_class,
)
from esp_gw.model import Action, DropReason, Policy
from esp_gw.protocol import (
    HOP_BY_HOP,
    IPPROTO_IPIP,
    IPPROTO_IPV6,
    IPV4_HEADER_LEN,
    IPV6_HEADER_LEN,
    NO_NEXT_HEADER,
    ROUTING,
)

BATCH = 64
"""Packets per reader callback: about a millisecond before other callbacks get their turn."""
TURN_BYTES = 256 * 1024
"""Bytes per reader callback; the last packet may exceed it."""
MAX_PACKET = 65535
ROOM = 512
"""Bytes beyond the largest packet for the ESP header, IV, trailer and ICV."""
MAX_FLOWS = 4096
"""Bound on the flow cache; when a scan fills it, it is cleared."""

DUMMY_LEN = 4
"""Bytes of a dummy packet's payload (RFC 4303 2.6), all zero."""


class LanedFlow(NamedTuple):
    """A flow of a tunnel with several SAs: its folded key, its bulk lane, and the lanes' SAs.

    A lane is None if its SA is not installed, or may not carry the flow.
    """

    key: tuple[int, bytes]
    bulk_lane: int
    lanes: tuple[OutboundState | None, ...]

    @property
    def transport(self) -> bool:
        """True in transport mode, which all lanes share."""
        return any(lane is not None and lane.transport for lane in self.lanes)


Target = OutboundState | LanedFlow | DropReason


class OutboundPath:
    """The packet path from the TUN to the outer sockets."""

    def __init__(
        self,
        tun: int,
        min_mtu: int,
        on_event: Callable[[Event], None],
        samples: Samples,
        lane_flows: LaneFlows,
        clock: Callable[[], float],
    ) -> None:
        self._tun = tun
        self._too_big = TooBig(tun, min_mtu, on_event)
        self._on_event = on_event
        self._samples = samples
        self._lane_flows = lane_flows
        self._clock = clock
        self._packet = memoryview(bytearray(MAX_PACKET + ROOM))
        self._out = memoryview(bytearray(MAX_PACKET + ROOM))
        self._read_into = [self._packet[:MAX_PACKET]]
        self._spd = Spd(())
        self._flows: dict[tuple[int, bytes], Target] = {}
        self._fragments: Fragments[Target] = Fragments()
        self._reassembler = Reassembler()
        self.sas: dict[str, OutboundState] = {}
        self.drops: Counter[str] = Counter()

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        """Use a new SPD from the next packet on."""
        self._spd = Spd(policies, self._spd)
        self.forget_flows()

    def forget_flows(self) -> None:
        """Clear the flow cache, because an SA was added, removed or changed."""
        self._flows.clear()
        self._fragments.clear()

    def drain(self) -> None:
        """Forward one turn's packets: what the TUN has, at most BATCH and TURN_BYTES.

        Raises OSError if the device is gone.
        """
        room = TURN_BYTES
        for _ in range(BATCH):
            try:
                length = os.readv(self._tun, self._read_into)
            except BlockingIOError:
                return
            try:
                self._forward(self._packet, length)
            except Drop as drop:
                self.drops[drop.reason] += 1
                self._samples.packet(drop.reason, None, self._packet, length)
            room -= length
            if room <= 0:
                return

    def _forward(self, packet: memoryview, length: int) -> None:
        if packet_length(packet, length) != length:
            raise Drop(DropReason.MALFORMED_INNER)
        key = flow_key(packet)
        whole = False
        if key is None and (candidate := self._transport_candidate(packet, length)) is not None:
            # Before the lookup: a later fragment has no ports to match, the whole packet has.
            length = self._reassemble(candidate, packet, length)
            if not length:
                return
            key, whole = flow_key(packet), True
        state = self._state(packet, length, key)
        try:
            self._protect(state, packet, length, whole)
        except Drop as drop:
            self._dropped(state, drop.reason)
            self._samples.packet(drop.reason, state.sa.name, packet, length)

    def send_dummy(self, state: OutboundState) -> bool:
        """Send a dummy packet (RFC 4303 2.6) as a keepalive; return True if the socket took it.

        It is never queued: one that is not taken is a drop of its SA.
        """
        try:
            if state.outer.is_full(state.peer.address):
                raise Drop(DropReason.QUEUE_FULL)
            self._packet[:DUMMY_LEN] = bytes(DUMMY_LEN)
            size = state.esp.encap(self._packet, 0, DUMMY_LEN, NO_NEXT_HEADER, self._out)
            if state.esp.next_seq >= state.notice_at:
                self._notice(state)
            dropped = state.outer.send_now(state, self._out[:size])
            if dropped is not None:
                raise Drop(dropped)
        except Drop as drop:
            self._dropped(state, drop.reason)
            return False
        return True

    def _dropped(self, state: OutboundState, reason: DropReason) -> None:
        state.drops[reason] += 1
        if reason is DropReason.SEQ_EXHAUSTED:
            self._expire(state)

    def _expire(self, state: OutboundState) -> None:
        if not state.expired:
            state.expired = True
            self._on_event(HardExpired(state.sa.name))

    def _state(
        self, packet: memoryview, length: int, key: tuple[int, bytes] | None
    ) -> OutboundState:
        target = self._flows.get(key) if key else None
        if target is None:
            inner = parse(packet, length)
            target = self._find_parsed(packet, inner, key or address_key(packet))
            if key is not None:
                if len(self._flows) >= MAX_FLOWS:
                    self._flows.clear()
                self._flows[key] = target
        if target is DropReason.NO_POLICY:
            # Never cached: another packet between the same addresses quotes something else.
            target = self._find_answered(packet, length, key)
        if not isinstance(target, OutboundState):
            if isinstance(target, DropReason):
                raise Drop(target)
            target = self._by_lane(target, length)
        if not target.peer.is_known:
            raise Drop(DropReason.NO_PEER)
        return target

    def _by_lane(self, target: LanedFlow, length: int) -> OutboundState:
        """Return the SA for the next packet of a flow. Raises Drop(NO_SA)."""
        flow = self._lane_flows.sent(target.key, length, int(self._clock() * 1000))
        wanted = target.bulk_lane if flow.is_bulk else 0
        state = choose(target.lanes, wanted)
        first = target.lanes[wanted]
        if first is None or first.is_exhausted:
            for lane in target.lanes:
                if lane is not None and lane.is_exhausted:
                    self._expire(lane)
        if state is None:
            raise Drop(DropReason.NO_SA)
        flow.carrier = state.sa.name
        return state

    def _find_answered(
        self, packet: memoryview, length: int, key: tuple[int, bytes] | None
    ) -> Target:
        """Return the tunnel's SA of the flow that an ICMP error answers (RFC 4301 6.2)."""
        flow = answered(packet, length, parse(packet, length))
        if flow is None:
            return DropReason.NO_POLICY
        target = self._find(flow, key or address_key(packet))
        # Transport mode has no room for the address of a router.
        if isinstance(target, DropReason) or target.transport:
            return DropReason.NO_POLICY
        return target

    def _find_parsed(self, packet: memoryview, inner: Inner, flow: tuple[int, bytes]) -> Target:
        """Return the SA of a packet; a later fragment, without ports, has that of the first one."""
        fragment = fragment_of(packet, inner)
        if fragment is None:
            return self._find(inner, flow)
        known = None if fragment.is_first else self._fragments.get(fragment)
        if known is not None:
            return known
        target = self._find(inner, flow)
        if fragment.is_first:
            self._fragments.remember(fragment, target)
        return target

    def _find(self, inner: Inner, flow: tuple[int, bytes]) -> Target:
        policy = self._spd.lookup(inner)
        if policy is None:
            return DropReason.NO_POLICY
        if policy.action is Action.DISCARD:
            return DropReason.POLICY_DISCARD
        if policy.action is Action.BYPASS:
            return DropReason.POLICY_BYPASS
        there = tuple(self.sas.get(name) for name in policy.sas)
        if not any(there):
            return DropReason.NO_SA
        # While a reload replaces SAs, an old policy may name a new SA that leads to another peer.
        lanes = tuple(state if state and state.may_carry(inner) else None for state in there)
        if len(lanes) > 1 and any(lanes):
            return LanedFlow(fold(flow), bulk_lane(spread(flow), len(lanes)), lanes)
        return lanes[0] or DropReason.SELECTOR_MISMATCH

    def _transport_candidate(self, packet: memoryview, length: int) -> OutboundState | None:
        """Return the transport-mode SA that may carry the datagram this packet is a fragment of.

        None if the packet is no fragment or no such SA exists.
        """
        inner = parse(packet, length)
        if inner.fragment:
            for policy in self._spd.candidates(inner):
                for name in policy.sas:
                    state = self.sas.get(name)
                    if state is not None and state.transport:
                        return state
        return None

    def _reassemble(self, state: OutboundState, packet: memoryview, length: int) -> int:
        """Return the length of the whole packet, now in `packet`; 0 while fragments are missing."""
        before = self._reassembler.dropped
        try:
            datagram = self._reassembler.add(packet, length, time.monotonic())
        except Drop as drop:
            state.drops[drop.reason] += 1
            return 0
        if self._reassembler.dropped != before:
            state.drops[DropReason.FRAGMENT] += self._reassembler.dropped - before
        if datagram is None:
            return 0
        packet[: len(datagram)] = datagram
        return len(datagram)

    def _protect(self, state: OutboundState, packet: memoryview, end: int, whole: bool) -> None:
        tos = traffic_class(packet)
        start, next_header = _transport_payload(packet) if state.transport else _tunneled(packet)
        size = state.esp.encap(packet, start, end, next_header, self._out)
        if state.esp.next_seq >= state.notice_at:
            self._notice(state)
        dropped = state.outer.send(state, self._out[:size], end, tos, whole)
        if dropped is DropReason.TOO_BIG:
            self._too_big.ask(state)
            if self._too_big.is_fragmented(state, packet, end, size):
                dropped = state.outer.send(state, self._out[:size], end, tos, True)
            else:
                self._too_big.answer(state, packet, end)
        if dropped is not None:
            raise Drop(dropped)

    def _notice(self, state: OutboundState) -> None:
        # Each threshold is reported once; extend_lease sets the next `low`.
        if state.esp.next_seq >= state.low:
            state.low = NEVER
            self._on_event(LeaseLow(state.sa.name))
        if state.esp.next_seq >= state.soft:
            state.soft = NEVER
            self._on_event(SoftExpired(state.sa.name))
        state.notice_at = min(state.low, state.soft)


def _tunneled(packet: memoryview) -> tuple[int, int]:
    return 0, IPPROTO_IPIP if packet[0] >> 4 == 4 else IPPROTO_IPV6


def _transport_payload(packet: memoryview) -> tuple[int, int]:
    """Return the offset and the protocol of the payload that transport mode protects.

    A socket can't send the headers that RFC 4303 3.1.1 leaves in front of ESP: IPv4 options, and
    IPv6 hop-by-hop and routing headers. Raises Drop(UNSUPPORTED_HEADER) for them.
    """
    if packet[0] == 0x45:
        return IPV4_HEADER_LEN, packet[9]
    if packet[0] >> 4 == 6 and packet[6] not in (HOP_BY_HOP, ROUTING):
        return IPV6_HEADER_LEN, packet[6]
    raise Drop(DropReason.UNSUPPORTED_HEADER)
