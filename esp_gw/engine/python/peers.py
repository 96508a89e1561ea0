"""Peer address tracking, shared by the SAs of a tunnel.

All SAs of a tunnel share one peer address, and so does a pair of SAs without a tunnel: an idle SA
would not learn from its own packets that the peer moved.

The newest packet of an SA gives the peer's address (RFC 7296 2.23). Sequence numbers order packets
only within one SA. After a move, the next packet of an idle SA may be a late one that was sent
before the move, and it must not move the other SAs back. An SA may therefore move its tunnel if its
last packet came from the tunnel's current address, because its new packet is then the newer one.
Any other SA has to wait until the tunnel has been at its address for SETTLE seconds, after which no
packet from before the move is still in flight.

The peer of `remote: any` is nowhere until one of its packets tells where it is.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakValueDictionary

from esp_gw.model import Encapsulation, IPAddress, Sa

SETTLE = 5.0
"""Seconds after a move in which only SAs heard at the current address can move the peer again."""
NOT_HEARD = -1
"""Value of `heard` for an SA that has not received a packet yet."""

SocketAddress = tuple[Any, ...]
"""An address in the form that socket.sendto takes."""
_Key = tuple[str, str, IPAddress, int]


class Peer:
    """The current address of a peer, shared by its SAs; `moves` counts its address changes.

    While `is_known` is False, nothing can be sent to it.
    """

    __slots__ = ("__weakref__", "_moved", "address", "is_known", "moves")

    def __init__(self, sa: Sa) -> None:
        # Raw sockets have port 0.
        port = sa.remote_port if sa.encapsulation is Encapsulation.UDP else 0
        self.address = _socket_address(sa.remote, port)
        self.is_known = not sa.learns_peer
        self.moves = 0
        self._moved = -math.inf

    def place(self, address: IPAddress, port: int) -> None:
        """Take the peer to be at an address, unless it is known or of the other IP version."""
        here = _socket_address(address, port)
        if not self.is_known and len(here) == len(self.address):
            self.address, self.is_known = here, True

    def follow(self, address: SocketAddress, heard: int, now: float) -> bool:
        """Move the peer to the source of an SA's newest packet; return True if it was allowed to.

        `heard` is the value of `moves` when the SA last received from the peer's current address.
        `now` is in seconds.
        """
        if heard != self.moves and now - self._moved < SETTLE:
            return False
        self.address, self.is_known = address, True
        self.moves += 1
        self._moved = now
        return True

    def ends(self, sa: Sa) -> tuple[IPAddress, int]:
        """Return the peer's IP address and port, as reported in the SA's counters."""
        host, port = self.address[:2]
        return sa.remote.__class__(host.partition("%")[0]), port or sa.remote_port


class Peers:
    """Registry of the peers of installed SAs."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[_Key, Peer] = WeakValueDictionary()

    def copy(self) -> Peers:
        """Return a registry of the same peers, to place SAs that may yet be refused."""
        copy = Peers()
        copy._known = self._known.copy()
        return copy

    def move(self, peer: Peer, before: Sa, sa: Sa) -> Peer:
        """Return the peer for an SA that replaces `before`, whose peer is `peer`.

        It stays the same while the SA's configured end does, unless the SA comes to a tunnel or
        pair that has a peer there.
        """
        if _end(before) != _end(sa):
            return self.place(sa)
        keys = _keys(sa)
        if (before.tunnel, before.pair) != (sa.tunnel, sa.pair):
            found = (self._known.get(key) for key in keys)
            peer = next((other for other in found if other is not None), peer)
        for key in keys:
            self._known.setdefault(key, peer)
        return peer

    def place(self, sa: Sa) -> Peer:
        """Return the peer for a new SA: the one of its tunnel or its pair, else a new one."""
        keys = _keys(sa)
        found = (self._known.get(key) for key in keys)
        peer = next((peer for peer in found if peer is not None), None) or Peer(sa)
        for key in keys:
            self._known.setdefault(key, peer)
        return peer


def _socket_address(address: IPAddress, port: int) -> SocketAddress:
    return (str(address), port) if address.version == 4 else (str(address), port, 0, 0)


def _end(sa: Sa) -> tuple[Encapsulation, IPAddress, int]:
    return sa.encapsulation, sa.remote, sa.remote_port


def _keys(sa: Sa) -> list[_Key]:
    """Return the keys that SAs of one peer share; none for peers that don't move."""
    if not sa.follows_peer:
        return []
    bonds = [("tunnel", sa.tunnel), ("sa", sa.pair), ("sa", sa.name)]
    return [(kind, name, sa.remote, sa.remote_port) for kind, name in bonds if name is not None]
