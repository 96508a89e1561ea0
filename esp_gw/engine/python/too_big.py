"""Packets that exceed the path MTU: the control plane learns the MTU, and their senders do at once.

Sources: RFC 1191, RFC 8201, RFC 4301 8.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress

from esp_gw.engine.base import Event, PathMtuChanged
from esp_gw.engine.python.icmp import too_big
from esp_gw.engine.python.sad import OutboundState
from esp_gw.engine.python.sockets import path_mtu
from esp_gw.model import Mode
from esp_gw.protocol import IPV4_HEADER_LEN, IPV6_HEADER_LEN, MIN_IPV6_MTU

QUERY_INTERVAL = 0.2
"""Minimum seconds between two path MTU queries of an SA, however many packets were too big."""
MAX_ANSWERS = 8
"""Most ICMP errors for an SA's packets in one interval."""
_DF = 0x40


class TooBig:
    """Takes the packets that outer sockets refuse because of their size."""

    def __init__(self, tun: int, min_mtu: int, on_event: Callable[[Event], None]) -> None:
        self._tun = tun
        self._min_mtu = min_mtu
        self._on_event = on_event

    def is_fragmented(
        self, state: OutboundState, packet: memoryview, length: int, esp: int
    ) -> bool:
        """Return True if the outer packet is fragmented, never refused.

        That is an IPv6 packet that any link takes (RFC 8200 5), an IPv4 packet that may be
        fragmented (RFC 4301 8.1), and an outer packet up to min_mtu, below which no report is
        believed. `esp` is the length of the ESP packet.
        """
        if esp + state.outer.headers <= self._min_mtu:
            return True
        return length <= MIN_IPV6_MTU if packet[0] >> 4 == 6 else not packet[6] & _DF

    def ask(self, state: OutboundState) -> None:
        """Ask for the path MTU and report it, if that was not done a moment ago."""
        now = time.monotonic()
        if now < state.next_mtu_query:
            return
        state.next_mtu_query = now + QUERY_INTERVAL
        state.path_mtu = path_mtu(state.outer.sock, state.peer.address)
        state.answers_left = MAX_ANSWERS
        if state.path_mtu is not None:
            self._on_event(PathMtuChanged(state.peer.ends(state.sa)[0], state.path_mtu))

    def answer(self, state: OutboundState, packet: memoryview, length: int) -> None:
        """Answer a packet by an ICMP error into the TUN, if its SA has any left."""
        if state.path_mtu is None or not state.answers_left:
            return
        mtu = self._inner_mtu(state, state.path_mtu, packet[0] >> 4)
        error = too_big(packet, length, mtu) if length > mtu else None
        if error is not None:
            state.answers_left -= 1
            # A full TUN loses it, as any link does.
            with suppress(OSError):
                os.write(self._tun, error)

    def _inner_mtu(self, state: OutboundState, outer: int, version: int) -> int:
        mtu = state.sa.suite.max_payload(max(outer, self._min_mtu) - state.outer.headers)
        if state.sa.mode is Mode.TRANSPORT:
            mtu += IPV4_HEADER_LEN if version == 4 else IPV6_HEADER_LEN
        return max(mtu, MIN_IPV6_MTU) if version == 6 else mtu
