"""Where the peers are. All SAs of a tunnel have one address between them, and so has a pair of SAs
without a tunnel: an SA that is quiet would not hear from its own packets that the peer moved.

The newest packet of an SA tells where its peer is (RFC 7296 2.23). Sequence numbers say which that
is, but only within one SA: after a move the next packet of a quiet SA may be one that was sent
before the move and came late, and it must not turn the others back. So an SA moves its tunnel if it
was heard where the tunnel is, for then its packet is the newer one; any other has to wait until the
tunnel has been there for SETTLE, after which nothing on the way is that old.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakValueDictionary

from esp_gw.model import Encapsulation, IPAddress, Sa

SETTLE = 5.0
"""Seconds after a move in which only SAs that were heard where the peer is can move it again."""
NOT_HEARD = -1
"""What `follow` takes for an SA that was not heard yet."""

SocketAddress = tuple[Any, ...]
"""An address as socket.sendto takes it."""
_Key = tuple[str, str, IPAddress, int]


class Peer:
    """Where a peer is now, for the SAs that share it; `moves` is how often it has moved."""

    __slots__ = ("__weakref__", "_moved", "address", "moves")

    def __init__(self, sa: Sa) -> None:
        # Raw sockets have port 0.
        port = sa.remote_port if sa.encapsulation is Encapsulation.UDP else 0
        ipv6_rest = () if sa.remote.version == 4 else (0, 0)
        self.address: SocketAddress = (str(sa.remote), port, *ipv6_rest)
        self.moves = 0
        self._moved = -math.inf

    def follow(self, address: SocketAddress, heard: int, now: float) -> bool:
        """Go to where an SA's newest packet came from; return whether it may, and did.

        `heard`: after which of the moves the SA was last heard where the peer is. `now`: seconds.
        """
        if heard != self.moves and now - self._moved < SETTLE:
            return False
        self.address = address
        self.moves += 1
        self._moved = now
        return True

    def ends(self, sa: Sa) -> tuple[IPAddress, int]:
        """Return its address, and its port as the SA's counters tell it."""
        host, port = self.address[:2]
        return sa.remote.__class__(host.partition("%")[0]), port or sa.remote_port


class Peers:
    """The peers of the SAs that are there, for those that come."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[_Key, Peer] = WeakValueDictionary()

    def place(self, sa: Sa) -> Peer:
        """Return the peer of an SA that comes: that of its tunnel or its pair, if there is one."""
        keys = _keys(sa)
        found = (self._known.get(key) for key in keys)
        peer = next((peer for peer in found if peer is not None), None) or Peer(sa)
        for key in keys:
            self._known.setdefault(key, peer)
        return peer


def _keys(sa: Sa) -> list[_Key]:
    """What SAs of one peer have in common; nothing without UDP: that peer doesn't move."""
    if sa.encapsulation is not Encapsulation.UDP:
        return []
    bonds = [("tunnel", sa.tunnel), ("sa", sa.pair), ("sa", sa.name)]
    return [(kind, name, sa.remote, sa.remote_port) for kind, name in bonds if name is not None]
