"""The packet paths of a gateway between a socket pair as TUN and fake outer sockets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from esp_gw.crypto.openssl import make_aead
from esp_gw.engine.base import NEVER, Event
from esp_gw.engine.python.inbound import InboundPath
from esp_gw.engine.python.lanes import LaneFlows
from esp_gw.engine.python.outbound import BATCH, OutboundPath
from esp_gw.engine.python.peers import Peers
from esp_gw.engine.python.sad import InboundState, OutboundState
from esp_gw.engine.python.samples import Samples
from esp_gw.model import (
    SUITES,
    Direction,
    DropReason,
    Encapsulation,
    Lease,
    Mode,
    Policy,
    Sa,
    Selector,
    Suite,
)
from tests.support.builders import OUTER, make_sa, mirrored, protect, selector

SPIS = {"ab": 0x1001, "ba": 0x1002}
MSG_TRUNC = 0x20

V4 = selector("10.1.0.0/24", "10.2.0.0/24")
V6 = selector("fd00:1::/64", "fd00:2::/64")
HOSTS = {4: selector("192.0.2.1/32", "192.0.2.2/32"), 6: selector("2001:db8::1", "2001:db8::2")}
HEADS = {
    4: IP(src="10.1.0.1", dst="10.2.0.1"),
    6: IPv6(src="fd00:1::1", dst="fd00:2::1"),
}
HOST_HEADS = {4: IP(src=OUTER[4][0], dst=OUTER[4][1]), 6: IPv6(src=OUTER[6][0], dst=OUTER[6][1])}


def packet(head: Packet = HEADS[4], payload: bytes = b"hello", **fields: Any) -> bytes:
    """Return an inner UDP packet."""
    ports = {"sport": 1000, "dport": 2000} | fields
    return bytes(head / UDP(**ports) / Raw(payload))


@dataclass(frozen=True)
class Sent:
    """A packet that a path passed to its outer socket."""

    packet: bytes
    address: tuple[Any, ...]
    tos: int
    may_fragment: bool


class FakeSocket:
    """The receiving half of an outer socket; an OSError in `waiting` is raised."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[bytes, int, int, tuple[Any, ...]] | OSError] = deque()

    def recvmsg_into(self, buffers: list[memoryview], control_len: int) -> tuple[Any, ...]:
        if not self.waiting:
            raise BlockingIOError
        item = self.waiting.popleft()
        if isinstance(item, OSError):
            raise item
        datagram, tos, flags, address = item
        buffers[0][: len(datagram)] = datagram
        control = [(0, 1, bytes([tos]))] if tos else []
        return len(datagram), control, flags, address


class FakeOuter:
    """Fake of Outer; `verdicts` are the return values of the next sends."""

    def __init__(self, version: int = 4, udp: bool = True) -> None:
        self.is_udp = udp
        self.is_ipv4 = version == 4
        self.has_ip_header = self.is_ipv4 and not udp
        self.headers = 28
        self.sock = FakeSocket()
        self.sent: list[Sent] = []
        self.verdicts: deque[DropReason | None] = deque()
        self.full = False

    def is_full(self, address: tuple[Any, ...]) -> bool:
        return self.full

    def send_now(self, state: OutboundState, packet: memoryview) -> DropReason | None:
        verdict = self.verdicts.popleft() if self.verdicts else None
        if verdict is None:
            self.sent.append(Sent(bytes(packet), state.peer.address, 0, False))
        return verdict

    def send(
        self, state: OutboundState, packet: memoryview, inner_len: int, tos: int, may_fragment: bool
    ) -> DropReason | None:
        verdict = self.verdicts.popleft() if self.verdicts else None
        if verdict is None:
            state.packets += 1
            state.bytes += inner_len
            self.sent.append(Sent(bytes(packet), state.peer.address, tos, may_fragment))
        return verdict

    def take(self) -> list[Sent]:
        """Return the packets sent since the last call."""
        sent, self.sent = self.sent, []
        return sent


class FakeTimer:
    """A callback of FakeLoop at a time."""

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class FakeLoop:
    """Fake event loop: writer callbacks, timers and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.writers: dict[int, Callable[[], None]] = {}
        self.timers: list[FakeTimer] = []

    def call_at(self, when: float, callback: Callable[[], None]) -> FakeTimer:
        self.timers.append(FakeTimer(when, callback))
        return self.timers[-1]

    def advance(self, seconds: float) -> None:
        """Move the clock, and call what is due."""
        self.now += seconds
        while due := [t for t in self.timers if not t.cancelled and t.when <= self.now]:
            self.timers.remove(due[0])
            due[0].callback()

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        del self.writers[fd]

    def time(self) -> float:
        return self.now


class Side:
    """One gateway: `tun` is the kernel's end of its TUN device."""

    def __init__(self, version: int = 4, udp: bool = True) -> None:
        self.tun, self._inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.tun, self._inner):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.events: list[Event] = []
        self.outer = FakeOuter(version, udp)
        self.loop = FakeLoop()
        self.peers = Peers()
        fd = self._inner.fileno()
        self.samples = Samples()
        events, samples, lane_flows = self.events.append, self.samples, LaneFlows()
        self.outbound = OutboundPath(fd, 0, events, samples, lane_flows, self.loop.time)
        self.inbound = InboundPath(fd, events, cast("Any", self.loop), samples, lane_flows)

    def install_outbound(self, sa: Sa, lease: Lease | None = None) -> OutboundState:
        aead = make_aead(sa.suite, sa.keymat)
        outer = cast("Any", self.outer)
        state = OutboundState(sa, lease or Lease(1, 2**31), aead, outer, self.peers.place(sa))
        self.outbound.sas[sa.name] = state
        self.outbound.forget_flows()
        return state

    def install_inbound(self, sa: Sa, highest_seq: int = 0, fence: int = 0) -> InboundState:
        numbers = (highest_seq, fence, NEVER)
        state = InboundState(sa, numbers, make_aead(sa.suite, sa.keymat), self.peers.place(sa))
        self.inbound.sas[sa.spi] = state
        return state

    def forward(self, *packets: bytes) -> list[Sent]:
        """Write packets to the TUN; return those that reached the outer socket."""
        for batch in batches(packets):
            for packet in batch:
                self.tun.send(packet)
            self.outbound.drain()
        return self.outer.take()

    def receive(
        self,
        *datagrams: bytes,
        tos: int = 0,
        flags: int = 0,
        address: tuple[Any, ...] | None = None,
        outer: FakeOuter | None = None,
    ) -> list[bytes]:
        """Deliver datagrams to an outer socket; return the packets that reached the TUN."""
        outer = outer or self.outer
        address = address or peer_address(outer)
        taken: list[bytes] = []
        for batch in batches(datagrams):
            outer.sock.waiting.extend((datagram, tos, flags, address) for datagram in batch)
            self.inbound.drain(cast("Any", outer))
            taken += self.from_tun()
        return taken

    def from_tun(self) -> list[bytes]:
        """Return the packets written to the TUN."""
        taken = []
        with contextlib.suppress(BlockingIOError):
            while True:
                taken.append(self.tun.recv(1 << 17))
        return taken

    def drops_out(self) -> Counter[str]:
        """Return all outbound drops, with or without an SA."""
        return sum((s.drops for s in self.outbound.sas.values()), Counter(self.outbound.drops))

    def drops_in(self) -> Counter[str]:
        """Return all inbound drops, with or without an SA."""
        return sum((s.drops for s in self.inbound.sas.values()), Counter(self.inbound.drops))

    def close(self) -> None:
        self.inbound.close()
        self.tun.close()
        self._inner.close()


@dataclass
class Pair:
    """Gateways a and b with an SA in each direction."""

    a: Side
    b: Side
    a_out: OutboundState
    b_in: InboundState
    b_out: OutboundState
    a_in: InboundState
    policy: Policy

    def a_to_b(self, *packets: bytes) -> list[bytes]:
        """Send packets through a, over the wire, through b."""
        return carry(self.a, self.b, *packets)

    def b_to_a(self, *packets: bytes) -> list[bytes]:
        return carry(self.b, self.a, *packets)


def carry(source: Side, target: Side, *packets: bytes) -> list[bytes]:
    arrived = []
    for packet in packets:
        for sent in source.forward(packet):
            datagram = on_the_wire(source.outer, sent)
            arrived += target.receive(datagram, tos=sent.tos)
    return arrived


def on_the_wire(outer: FakeOuter, sent: Sent) -> bytes:
    """Return the datagram as the receiving socket returns it: raw IPv4 includes the IP header."""
    if not outer.has_ip_header:
        return sent.packet
    src, dst = OUTER[4]
    return bytes(IP(src=src, dst=dst, proto=50, tos=sent.tos) / Raw(sent.packet))


def peer_address(outer: FakeOuter) -> tuple[Any, ...]:
    port = 4500 if outer.is_udp else 0
    return (OUTER[4][1], port) if outer.is_ipv4 else (OUTER[6][1], port, 0, 0)


def batches(items: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


@contextlib.contextmanager
def pair(
    *selectors: Selector,
    mode: Mode = Mode.TUNNEL,
    version: int = 4,
    encapsulation: Encapsulation = Encapsulation.UDP,
    suite: Suite = SUITES["aes128gcm16"],
    esn: bool = True,
) -> Iterator[Pair]:
    """Yield two gateways; `selectors` are as seen from a."""
    udp = encapsulation is Encapsulation.UDP
    here, there = OUTER[version]
    ab = make_sa(
        "ab",
        Direction.OUTBOUND,
        SPIS["ab"],
        *selectors,
        suite=suite,
        mode=mode,
        encapsulation=encapsulation,
        local=here,
        remote=there,
        esn=esn,
    )
    ba = replace(ab, name="ba", spi=SPIS["ba"], keymat=make_sa(spi=SPIS["ba"], suite=suite).keymat)
    at_b = {"local": ab.remote, "remote": ab.local, "selectors": mirrored(ab.selectors)}
    a, b = Side(version, udp), Side(version, udp)
    policy = protect("ab", "ab", *ab.selectors)
    a.outbound.replace_policies([policy])
    b.outbound.replace_policies([protect("ba", "ba", *mirrored(ab.selectors))])
    try:
        yield Pair(
            a=a,
            b=b,
            a_out=a.install_outbound(ab),
            b_in=b.install_inbound(replace(ab, direction=Direction.INBOUND, **at_b)),
            b_out=b.install_outbound(replace(ba, **at_b)),
            a_in=a.install_inbound(replace(ba, direction=Direction.INBOUND)),
            policy=policy,
        )
    finally:
        a.close()
        b.close()


def fill(side: Side) -> int:
    """Fill the engine's end of the TUN; return the number of packets written."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(side._inner.fileno(), bytes(1400))
            count += 1
    return count
