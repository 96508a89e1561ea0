"""What the python engine keeps of each SA while it runs: the SAD's entries (RFC 4301 4.4.2)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.base import SaCounters
from esp_gw.esp import InboundEsp, OutboundEsp
from esp_gw.model import Encapsulation, IPAddress, Lease, Mode, Sa
from esp_gw.spd import CompiledSelector

if TYPE_CHECKING:
    from esp_gw.engine.outer import Outer, SocketAddress

NEVER = 2**64 + 1
"""Beyond every sequence number, and beyond the one that follows the last."""


class OutboundState:
    """An outbound SA: its codec, where its packets go, and its counters."""

    __slots__ = (
        "address",
        "bytes",
        "drops",
        "esp",
        "expired",
        "low",
        "next_mtu_question",
        "notice_at",
        "outer",
        "packets",
        "sa",
        "selectors",
        "soft",
        "transport",
    )

    def __init__(self, sa: Sa, lease: Lease, outer: Outer) -> None:
        self.sa = sa
        self.esp = OutboundEsp(sa, lease, make_aead(sa.suite, sa.keymat))
        self.outer = outer
        self.selectors = [CompiledSelector(selector) for selector in sa.selectors]
        self.address = socket_address(sa.remote, sa.remote_port, sa.encapsulation)
        self.transport = sa.mode is Mode.TRANSPORT
        self.packets = 0
        self.bytes = 0
        self.drops: Counter[str] = Counter()
        self.expired = False
        self.next_mtu_question = 0.0
        # An eighth of the numbers is left: without ESN that is hours at a gigabit, time to act.
        self.soft = sa.last_seq - sa.last_seq // 8
        self.low = self.notice_at = NEVER
        self.watch()

    def watch(self) -> None:
        """Set the sequence number at which somebody must be told something of a new lease."""
        self.low = self.esp.low
        self.notice_at = min(self.low, self.soft)

    def counters(self) -> SaCounters:
        """Return the SA's counters as they are now."""
        return SaCounters(
            packets=self.packets,
            bytes=self.bytes,
            seq=self.esp.next_seq,
            lease_end=self.esp.lease_end,
            remote=self.sa.remote.__class__(self.address[0].partition("%")[0]),
            remote_port=self.address[1] or self.sa.remote_port,
            drops=dict(self.drops),
        )


class InboundState:
    """An inbound SA: its codec with the replay window, its selectors, and its counters.

    `peer` is the socket address that the newest packet came from.
    """

    __slots__ = (
        "bytes",
        "drops",
        "esp",
        "flows",
        "local",
        "packets",
        "peer",
        "remote",
        "sa",
        "selectors",
        "transport",
    )

    def __init__(self, sa: Sa, highest_seq: int) -> None:
        self.sa = sa
        self.esp = InboundEsp(sa, highest_seq, make_aead(sa.suite, sa.keymat))
        self.selectors = [CompiledSelector(selector) for selector in sa.selectors]
        self.flows: set[tuple[int, bytes]] = set()
        self.transport = sa.mode is Mode.TRANSPORT
        self.local, self.remote = int(sa.local), int(sa.remote)
        self.peer = socket_address(sa.remote, sa.remote_port, sa.encapsulation)
        self.packets = 0
        self.bytes = 0
        self.drops: Counter[str] = Counter()

    def counters(self) -> SaCounters:
        """Return the SA's counters as they are now."""
        return SaCounters(
            packets=self.packets,
            bytes=self.bytes,
            seq=self.esp.window.highest,
            lease_end=0,
            remote=self.sa.remote.__class__(self.peer[0].partition("%")[0]),
            remote_port=self.peer[1] or self.sa.remote_port,
            drops=dict(self.drops),
        )


def socket_address(address: IPAddress, port: int, encapsulation: Encapsulation) -> SocketAddress:
    """Return an address as the socket module has it; raw sockets have port 0."""
    number = port if encapsulation is Encapsulation.UDP else 0
    return (str(address), number) if address.version == 4 else (str(address), number, 0, 0)
