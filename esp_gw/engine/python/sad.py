"""SAD entries of the python engine: the run-time state of each SA (RFC 4301 4.4.2)."""

from __future__ import annotations

from collections import Counter

from esp_gw.crypto.aead import Aead
from esp_gw.engine.base import SaCounters
from esp_gw.engine.python.checksums import address_change
from esp_gw.engine.python.esp import InboundEsp, OutboundEsp
from esp_gw.engine.python.fragments import Fragments, fragment_of
from esp_gw.engine.python.outer import Outer
from esp_gw.engine.python.peers import NOT_HEARD, Peer
from esp_gw.engine.python.spd import CompiledSelector
from esp_gw.engine.python.wire import Inner
from esp_gw.model import Lease, Mode, Sa

Watched = tuple[int, int, int]
"""Numbers of an inbound SA: the highest one, the fence, and the one above which it is reported."""
NEVER = 2**64 + 1
"""A threshold above every sequence number, and above the one after the last."""


class OutboundState:
    """An outbound SA: its codec, socket and peer, and its counters.

    `path_mtu` is the answer to the last query, None if there is none; until the next query, at
    `next_mtu_query`, `answers_left` of the packets that are too big get an ICMP error.
    """

    __slots__ = (
        "aead",
        "answers_left",
        "bytes",
        "drops",
        "esp",
        "expired",
        "low",
        "next_mtu_query",
        "notice_at",
        "outer",
        "packets",
        "path_mtu",
        "peer",
        "sa",
        "selectors",
        "soft",
        "transport",
    )

    def __init__(self, sa: Sa, lease: Lease, aead: Aead, outer: Outer, peer: Peer) -> None:
        self.aead = aead
        self.esp = OutboundEsp(sa, lease, aead)
        self.packets = 0
        self.bytes = 0
        self.drops: Counter[str] = Counter()
        self.next_mtu_query = 0.0
        self.path_mtu: int | None = None
        self.answers_left = 0
        self._set(sa, outer, peer)
        self._live(sa)
        self.watch()

    def become(self, sa: Sa, outer: Outer, peer: Peer) -> None:
        """Carry an SA with the same key instead, from the next packet on.

        Queued packets leave by the former socket, to where the peer is when they do.
        """
        former, before = self.sa, self.outer
        self._set(sa, outer, peer)
        self.esp.become(sa)
        if (outer.is_udp, outer.is_ipv4) != (before.is_udp, before.is_ipv4):
            # The former socket can't reach the peer's new address.
            before.discard(self)
        elif not peer.is_known:
            before.discard(self)
        if sa.last_seq != former.last_seq:
            self._live(sa)
        if sa.name != former.name:
            # LeaseLow may have been reported with the former name.
            self.low = self.esp.low
        self.notice_at = min(self.low, self.soft)

    def _set(self, sa: Sa, outer: Outer, peer: Peer) -> None:
        self.sa = sa
        self.outer = outer
        self.peer = peer
        self.selectors = [CompiledSelector(selector) for selector in sa.selectors]
        self.transport = sa.mode is Mode.TRANSPORT

    def _live(self, sa: Sa) -> None:
        """Begin the lifetime of an SA with this last sequence number."""
        self.expired = False
        # Reported with an eighth of the numbers left: without ESN, still hours at 1 Gbit/s.
        self.soft = sa.last_seq - sa.last_seq // 8

    def watch(self) -> None:
        """Set the sequence number of the next threshold to report, after the lease changed."""
        self.low = self.esp.low
        self.notice_at = min(self.low, self.soft)

    def may_carry(self, inner: Inner) -> bool:
        """Return True if the selectors match an outbound packet."""
        return any(selector.matches_outbound(inner) for selector in self.selectors)

    @property
    def is_exhausted(self) -> bool:
        """True if the last sequence number is used."""
        return self.esp.next_seq > self.sa.last_seq

    def counters(self) -> SaCounters:
        """Return a snapshot of the SA's counters."""
        remote, remote_port = self.peer.ends(self.sa)
        return SaCounters(
            packets=self.packets,
            bytes=self.bytes,
            seq=self.esp.next_seq,
            lease_end=self.esp.lease_end,
            remote=remote,
            remote_port=remote_port,
            drops=dict(self.drops),
        )


class InboundState:
    """An inbound SA: its codec with the replay window, its selectors, and its counters.

    `heard` is the value of `peer.moves` when it last received from the peer's current address.
    `reported_floor` is the highest sequence number reported to the control plane. Numbers up to
    `fence` don't tell where a peer is that may be anywhere. The first one above `notice_at` is
    reported. `address_change` mends the checksums of transport mode, 0 if there is nothing to mend.
    `is_bulk` is true for an SA that is a bulk lane of its tunnel.
    """

    __slots__ = (
        "address_change",
        "aead",
        "bytes",
        "drops",
        "esp",
        "fence",
        "flows",
        "follows",
        "fragments",
        "heard",
        "is_bulk",
        "local",
        "notice_at",
        "packets",
        "peer",
        "remote",
        "reported_floor",
        "sa",
        "selectors",
        "transport",
    )

    def __init__(self, sa: Sa, numbers: Watched, aead: Aead, peer: Peer) -> None:
        highest_seq, self.fence, self.notice_at = numbers
        self.aead = aead
        self.esp = InboundEsp(sa, highest_seq, aead)
        self.reported_floor = highest_seq
        self.heard = NOT_HEARD
        self.packets = 0
        self.bytes = 0
        self.drops: Counter[str] = Counter()
        self._set(sa, peer)

    def become(self, sa: Sa, peer: Peer) -> None:
        """Carry an SA with the same key instead, from the next packet on."""
        if peer is not self.peer:
            self.heard = NOT_HEARD
        self.esp.become(sa)
        self._set(sa, peer)

    def _set(self, sa: Sa, peer: Peer) -> None:
        self.sa = sa
        self.peer = peer
        self.follows = sa.follows_peer
        self.is_bulk = bool(sa.lane)
        self.selectors = [CompiledSelector(selector) for selector in sa.selectors]
        self.flows: set[tuple[int, bytes]] = set()
        self.fragments: Fragments[bool] = Fragments()
        self.transport = sa.mode is Mode.TRANSPORT
        self.local, self.remote = int(sa.local), int(sa.remote)
        self.address_change = address_change(sa)

    def carries(self, inner: Inner) -> bool:
        """Return True if the SA may carry a packet that was opened with it (RFC 4301 5.2)."""
        return any(selector.matches_inbound(inner) for selector in self.selectors)

    def carries_fragment(self, packet: memoryview, inner: Inner) -> bool:
        """Return carries() of a packet, or of the first fragment, which alone has the ports."""
        carries = self.carries(inner)
        fragment = fragment_of(packet, inner)
        if fragment is None:
            return carries
        if fragment.is_first:
            self.fragments.remember(fragment, carries)
            return carries
        return carries or self.fragments.get(fragment) is True

    def counters(self) -> SaCounters:
        """Return a snapshot of the SA's counters."""
        remote, remote_port = self.peer.ends(self.sa)
        return SaCounters(
            packets=self.packets,
            bytes=self.bytes,
            seq=self.esp.window.highest,
            lease_end=0,
            remote=remote,
            remote_port=remote_port,
            drops=dict(self.drops),
        )
