"""The queue of a full outer socket: sealed packets, bounded in bytes and in time.

A queue that is full drops its oldest packet: it is worth least to its receiver, its sender learns
of the loss soonest, and what is sent at last is never older than the queue is long.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from esp_gw.engine.python.peers import Peer
from esp_gw.model import DropReason

MAX_BYTES = 512 * 1024
"""Bound on the bytes that wait for one socket."""
OVERHEAD = 128
"""Bytes that a packet costs beyond its own."""
MAX_WAIT = 0.1
"""Longest wait of a packet, in seconds."""
TRY_INTERVAL = 0.001
"""Least interval between two tries while packets come, in seconds.

The kernel reports a socket writable only when half of its buffer is free.
"""
MAX_REFUSALS = 2
"""Tries in a row at which a socket, reported writable, takes nothing.

Then its first packet is to blame, not its buffer.
"""


class Sender(Protocol):
    """An outbound SA as seen by its socket: the peer, and the counters of sent and lost packets."""

    peer: Peer
    packets: int
    bytes: int
    drops: Counter[str]


@dataclass(frozen=True, slots=True)
class WaitingPacket:
    """A sealed packet that waits since the loop's time `since`; the rest is as in `Outer.send`."""

    state: Sender
    packet: bytes
    inner_len: int
    tos: int
    may_fragment: bool
    since: float

    @property
    def cost(self) -> int:
        """The bytes that count towards MAX_BYTES."""
        return len(self.packet) + OVERHEAD


class WaitingPackets:
    """The packets that wait for one socket, in order; drops are counted for their SA."""

    def __init__(self) -> None:
        self._queue: deque[WaitingPacket] = deque()
        self._bytes = 0
        self._refusals = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def first(self) -> WaitingPacket:
        """The oldest packet."""
        return self._queue[0]

    @property
    def deadline(self) -> float:
        """The time at which the oldest packet will have waited too long."""
        return self.first.since + MAX_WAIT

    def add(self, packet: WaitingPacket) -> None:
        """Add a packet at the end; drop the oldest ones that have no room any more."""
        self._queue.append(packet)
        self._bytes += packet.cost
        while self._bytes > MAX_BYTES:
            self._drop(DropReason.QUEUE_FULL)

    def taken(self) -> None:
        """Remove the oldest packet, which the socket has taken or that was counted as a drop."""
        self._bytes -= self._queue.popleft().cost
        self._refusals = 0

    def refused(self) -> None:
        """Note that a socket, reported writable, took nothing; drop the packet to blame for it."""
        self._refusals += 1
        if self._refusals == MAX_REFUSALS:
            self._drop(DropReason.SEND_ERROR)

    def drop_late(self, now: float) -> None:
        """Drop the packets that have waited too long."""
        while self._queue and self.deadline <= now:
            self._drop(DropReason.QUEUE_TIMEOUT)

    def take(self) -> Iterator[WaitingPacket]:
        """Remove the packets, and yield them in order."""
        while self._queue:
            packet = self.first
            self.taken()
            yield packet

    def discard(self, state: Sender | None = None) -> None:
        """Drop the packets of an SA, or all, counted as send-error."""
        waiting, self._queue = self._queue, deque()
        self._bytes = 0
        for packet in waiting:
            if state is None or packet.state is state:
                packet.state.drops[DropReason.SEND_ERROR] += 1
            else:
                self.add(packet)

    def _drop(self, reason: DropReason) -> None:
        self.first.state.drops[reason] += 1
        self.taken()
