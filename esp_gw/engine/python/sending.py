"""The sending side of a socket, with the queue of the packets that it doesn't take."""

from __future__ import annotations

import asyncio
import errno
import socket

from esp_gw.engine.python.peers import SocketAddress
from esp_gw.engine.python.sockets import forbid_fragments, let_fragment, set_tos
from esp_gw.engine.python.waiting import (
    MAX_WAIT,
    TRY_INTERVAL,
    Sender,
    WaitingPacket,
    WaitingPackets,
)
from esp_gw.model import DropReason

_KEEPALIVE = b"\xff"


class SendingSocket:
    """A non-blocking socket and its send queue.

    `needed` is the time at which it was opened or found full.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self.sock = sock
        self.waiting = WaitingPackets()
        self.needed = loop.time()
        self._loop = loop
        self._next_try = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._tos = 0
        self._may_fragment = False

    def send(
        self,
        state: Sender,
        packet: memoryview | bytes,
        inner_len: int,
        tos: int,
        may_fragment: bool,
    ) -> DropReason | None:
        """Send one packet, counted for its SA; return the drop reason, if dropped.

        Raises BlockingIOError if the socket is full.
        """
        dropped = self._send(state, packet, tos, may_fragment)
        if dropped is None:
            state.packets += 1
            state.bytes += inner_len
        return dropped

    def send_now(self, state: Sender, packet: memoryview) -> DropReason | None:
        """Send one packet that is never queued nor counted; return the drop reason, if dropped."""
        try:
            return self._send(state, packet, 0, False)
        except BlockingIOError:
            return DropReason.QUEUE_FULL

    def _send(
        self, state: Sender, packet: memoryview | bytes, tos: int, may_fragment: bool
    ) -> DropReason | None:
        if tos != self._tos:
            self._set_tos(tos)
        if may_fragment is not self._may_fragment:
            (let_fragment if may_fragment else forbid_fragments)(self.sock)
            self._may_fragment = may_fragment
        try:
            self.sock.sendto(packet, state.peer.address)
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # a full raw socket (ip_append_data)
                raise BlockingIOError from error
            if error.errno == errno.EMSGSIZE:
                return DropReason.TOO_BIG
            return DropReason.SEND_ERROR
        return None

    def send_keepalive(self, address: SocketAddress) -> bool:
        """Send a NAT keepalive (RFC 3948 4); return True if the socket accepted it.

        A keepalive is never queued.
        """
        if self.waiting:
            return False
        try:
            if self._tos:
                self._set_tos(0)
            self.sock.sendto(_KEEPALIVE, address)
        except OSError:
            return False
        return True

    def wait(self, packet: WaitingPacket) -> None:
        """Queue a packet, because the socket is full."""
        self.needed = self._loop.time()
        if not self.waiting:
            self._next_try = self.needed + TRY_INTERVAL
            self._loop.add_writer(self.sock, self._writable)
            self._timer = self._loop.call_at(packet.since + MAX_WAIT, self._drop_late)
        self.waiting.add(packet)

    def retry(self) -> None:
        """Send the queued packets, unless the last try is less than TRY_INTERVAL ago."""
        if self._loop.time() >= self._next_try:
            self._send_waiting()

    def discard(self, state: Sender | None = None) -> None:
        """Drop the queued packets of an SA, or all, counted as send-error."""
        self.waiting.discard(state)
        self._stop_waiting()

    def hand_over(self, other: SendingSocket) -> None:
        """Move the queued packets to the queue of another socket."""
        for packet in self.waiting.take():
            other.wait(packet)
        self._stop_waiting()

    def close(self) -> None:
        """Close the socket; queued packets are dropped and counted as send-error."""
        self.discard()
        self.sock.close()

    def _writable(self) -> None:
        first = self.waiting.first
        self._send_waiting()
        if self.waiting and self.waiting.first is first:
            # The socket has room and refuses: waiting for more room would spin.
            self.waiting.refused()
            self._stop_waiting()

    def _send_waiting(self) -> None:
        while self.waiting:
            first = self.waiting.first
            state, inner_len = first.state, first.inner_len
            try:
                dropped = self.send(state, first.packet, inner_len, first.tos, first.may_fragment)
            except BlockingIOError:
                self._next_try = self._loop.time() + TRY_INTERVAL
                return
            if dropped is not None:
                state.drops[dropped] += 1
            self.waiting.taken()
        self._stop_waiting()

    def _drop_late(self) -> None:
        self.waiting.drop_late(self._loop.time())
        if self.waiting:
            self._timer = self._loop.call_at(self.waiting.deadline, self._drop_late)
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        """Stop polling for writing, and the timer, if the queue is empty."""
        if not self.waiting:
            self._loop.remove_writer(self.sock)
            if self._timer is not None:
                self._timer.cancel()

    def _set_tos(self, tos: int) -> None:
        set_tos(self.sock, tos)
        self._tos = tos
