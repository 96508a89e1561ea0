"""Both engines side by side, each with its own TUN and peer, fed with the same packets.

    [esp0] engine, wan 192.0.2.1 ==== wire ==== 192.0.2.2 wan, sockets of the peer

Packet sockets inject octets into the TUN and receive what the engine writes; plain sockets act as
the peer. Everything runs in one thread: a marker packet shows when an engine has processed all
packets before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from esp_gw.crypto.openssl import make_aead
from esp_gw.demo.netns import NETNS_DIR, Namespace, add_address, namespaces, wire
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import (
    Counters,
    Engine,
    EngineFailed,
    Event,
    Opening,
    OuterSocket,
    PathMtuChanged,
    Refused,
    SaCounters,
)
from esp_gw.engine.native import NativeEngine
from esp_gw.engine.python.engine import PythonEngine
from esp_gw.engine.python.esp import OutboundEsp
from esp_gw.engine.python.tun import open_tun
from esp_gw.model import AF_ALG_OFF, Direction, DropReason, Encapsulation, Lease, Policy, Sa
from tests.support.builders import OUTER, make_sa, protect, selector
from tests.support.esp import encap

PORT = 4500
DEVICE = "esp0"
PATIENCE = 2.0
"""Seconds after which a missing packet counts as lost."""

_ETH_P_ALL, _ETH_P_IP, _ETH_P_IPV6 = 0x0003, 0x0800, 0x86DD
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_UDP_SEGMENT = 103
_CLONE_NEWNET = 0x40000000
_VNET_LEN = 10
NO_OFFLOAD = bytes(_VNET_LEN)
NUMBERS = Lease(1, 2**40)
_MARK = 253
"""Protocol number of marker packets, one for experiments (RFC 3692)."""


@dataclass(frozen=True)
class Kind:
    """One of the four kinds of outer packets: in UDP or not, over IPv4 or IPv6."""

    version: int
    encapsulation: Encapsulation

    @property
    def number(self) -> int:
        return KINDS.index(self)

    @property
    def is_udp(self) -> bool:
        return self.encapsulation is Encapsulation.UDP


KINDS = [Kind(version, encapsulation) for version in (4, 6) for encapsulation in Encapsulation]


@dataclass(frozen=True)
class Octets:
    """Input of the TUN: a packet, or a super-packet, with its virtio_net_hdr."""

    octets: bytes
    vnet: bytes = NO_OFFLOAD


@dataclass(frozen=True)
class Datagrams:
    """Datagrams that the peer sends through one of its sockets; equal sizes go in one call."""

    kind: Kind
    datagrams: tuple[bytes, ...]
    tos: int = 0
    moved: bool = False
    """Send from another port, as after a NAT rebinding."""


@dataclass(frozen=True)
class Outcome:
    """The result of an example in one engine, which must be equal in both."""

    packets: list[tuple[bytes, int]]
    sas: dict[str, SaCounters]
    totals: Counter[str]
    drops: Counter[str]
    events: Counter[Event]
    refused: Counter[Refused]
    openings: list[Opening]


def marker_sa(kind: Kind, direction: Direction) -> Sa:
    outbound = direction is Direction.OUTBOUND
    local, remote = OUTER[kind.version]
    return make_sa(
        f"marker-{kind.number}-{direction}",
        direction,
        (0xF000 if outbound else 0xE000) + kind.number,
        selector("10.255.0.1/32", f"10.255.1.{kind.number}/32", _MARK),
        encapsulation=kind.encapsulation,
        local=local,
        remote=remote,
    )


def marker_packet(kind: Kind, direction: Direction) -> bytes:
    ends = [bytes((10, 255, 0, 1)), bytes((10, 255, 1, kind.number))]
    src, dst = ends if direction is Direction.OUTBOUND else reversed(ends)
    return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20, 0, 0, 64, _MARK, 0, src, dst)


MARKER_POLICIES = [
    protect(sa.name, sa.name, *sa.selectors)
    for sa in (marker_sa(kind, Direction.OUTBOUND) for kind in KINDS)
]


class Twin:
    """One engine, with the other ends of its TUN and its wire."""

    def __init__(self, engine: Engine, gateway: Namespace, peer: Namespace, af_alg: str) -> None:
        self.engine = engine
        self.gateway = gateway
        self.events: list[Event] = []
        self._stack = contextlib.ExitStack()
        engine.open(EngineSettings(DEVICE, PORT, 0xE5B, af_alg=af_alg), self._on_event)
        self._stack.callback(engine.close)
        engine.start()
        # Only the test's packets: no router solicitations, and no replies of the kernel.
        for setting in (f"ipv6/conf/{DEVICE}/disable_ipv6", f"ipv4/conf/{DEVICE}/rp_filter"):
            gateway.run("sh", "-c", f"echo 1 > /proc/sys/net/{setting}")
        gateway.ip("link", "set", DEVICE, "up")
        engine.set_outer_sockets([self._outer(kind) for kind in KINDS])
        self._into_tun = self._packet_socket(_ETH_P_IP)
        self._from_tun = self._packet_socket(_ETH_P_ALL)
        self._from_tun.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        with inside(peer):
            self._wire = {kind: self._peer_socket(kind, PORT) for kind in KINDS}
            self._moved = {
                kind: self._peer_socket(kind, PORT + 1) if kind.is_udp else self._wire[kind]
                for kind in KINDS
            }
        self._sealers: dict[Kind, OutboundEsp] = {}
        for kind in KINDS:
            engine.install_outbound(marker_sa(kind, Direction.OUTBOUND), NUMBERS)
            sa = marker_sa(kind, Direction.INBOUND)
            engine.install_inbound(sa, 0)
            self._sealers[kind] = OutboundEsp(sa, NUMBERS, make_aead(sa.suite, sa.keymat))

    def _on_event(self, event: Event) -> None:
        assert not isinstance(event, EngineFailed), event.reason
        self.events.append(event)

    def _outer(self, kind: Kind) -> OuterSocket:
        sa = marker_sa(kind, Direction.OUTBOUND)
        return OuterSocket(sa.local, sa.encapsulation)

    def _packet_socket(self, protocol: int) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._stack.callback(sock.close)
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 8 << 20)
        sock.bind((DEVICE, protocol))
        sock.setblocking(False)
        return sock

    def _peer_socket(self, kind: Kind, port: int) -> socket.socket:
        family = socket.AF_INET if kind.version == 4 else socket.AF_INET6
        how = (socket.SOCK_DGRAM, 0) if kind.is_udp else (socket.SOCK_RAW, 50)
        sock = socket.socket(family, *how)
        self._stack.callback(sock.close)
        if kind.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        else:
            if kind.is_udp:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.bind((OUTER[kind.version][1], port if kind.is_udp else 0))
        sock.setblocking(False)
        return sock

    def close(self) -> None:
        self._stack.close()

    async def outbound(
        self, kind: Kind, sas: Sequence[Sa], lease: Lease, policies: Sequence[Policy], steps: Any
    ) -> Outcome:
        """Run the steps: write octets to the TUN, or extend the lease.

        The outcome has the packets that the peer received, with their TOS.
        """
        before = self._begin()
        for sa in sas:
            self.engine.install_outbound(sa, lease)
        self.engine.replace_policies([*policies, *MARKER_POLICIES])
        sent = []
        for step in steps:
            if isinstance(step, Lease):
                # Earlier packets must have their numbers, or be dropped, before the extension.
                sent += await self._from_wire(kind)
                self.engine.extend_lease(sas[0].name, step)
            else:
                self._put(step)
        sent += await self._from_wire(kind)
        return await self._end(before, sent, sas)

    async def inbound(
        self, sas: Sequence[Sa], floor: int, steps: Sequence[Datagrams], split: Splitter
    ) -> Outcome:
        """Send datagrams from the peer.

        The outcome has the packets that the engine wrote to the TUN, super-packets segmented.
        """
        before = self._begin()
        for sa in sas:
            self.engine.install_inbound(sa, floor)
        for step in steps:
            self._send(step)
        written = []
        for kind in dict.fromkeys(step.kind for step in steps):
            written += await self._written(kind, split)
        # Where packets are merged, the marker overtakes other flows. New tables come behind them.
        self.engine.replace_policies(MARKER_POLICIES)
        with contextlib.suppress(BlockingIOError):
            while True:
                written += _packets(self._from_tun.recv(1 << 17), split)
        # The order of different flows is an engine's own.
        written.sort(key=_flow)
        return await self._end(before, [(packet, 0) for packet in written], sas)

    def _begin(self) -> Counters:
        self.events.clear()
        self.engine.refused()
        self.engine.openings()
        # Discard leftovers of a failed example, and ICMP errors on what was too big: when an engine
        # asks for the path MTU, and so how many it sends, is a matter of time.
        for sock in (self._from_tun, *self._wire.values(), *self._moved.values()):
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock.recv(1 << 17)
        return self.engine.counters()

    async def _end(
        self, before: Counters, packets: list[tuple[bytes, int]], sas: Sequence[Sa]
    ) -> Outcome:
        # Counters are final once an SA is removed.
        names = [sa.name for sa in sas]
        final = dict(zip(names, self.engine.remove_sas(names), strict=True))
        after = self.engine.counters()
        for _ in range(2):  # let the loop deliver events of the engine's threads
            await asyncio.sleep(0)
        events = Counter(self.events)
        # Engines may differ in how often they query the path MTU.
        events.update({e: 1 - n for e, n in events.items() if isinstance(e, PathMtuChanged)})
        return Outcome(
            packets=packets,
            sas={name: replace(c, drops=+Counter(c.drops)) for name, c in final.items()},
            totals=_totals(after) - _totals(before),
            drops=Counter(after.drops) - Counter(before.drops),
            events=events,
            # Of a batch that is too big the native engine samples one packet.
            refused=Counter(r for r in self.engine.refused() if r.reason is not DropReason.TOO_BIG),
            openings=self.engine.openings(),
        )

    def _put(self, packet: Octets) -> None:
        ipv6 = packet.octets[0] >> 4 == 6
        address = (DEVICE, _ETH_P_IPV6 if ipv6 else _ETH_P_IP)
        with contextlib.suppress(OSError):  # a virtio_net_hdr that the kernel refuses
            self._into_tun.sendto(packet.vnet + packet.octets, address)

    def _send(self, step: Datagrams) -> None:
        sock = (self._moved if step.moved else self._wire)[step.kind]
        if step.kind.version == 4:
            control = [(socket.IPPROTO_IP, socket.IP_TOS, struct.pack("=i", step.tos))]
        else:
            control = [(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("=i", step.tos))]
        to = (OUTER[step.kind.version][0], PORT if step.kind.is_udp else 0)
        sizes = {len(datagram) for datagram in step.datagrams}
        if step.kind.is_udp and len(step.datagrams) > 1 and len(sizes) == 1:
            control.append((socket.SOL_UDP, _UDP_SEGMENT, struct.pack("=H", *sizes)))
            sock.sendmsg([b"".join(step.datagrams)], control, 0, to)
            return
        for datagram in step.datagrams:
            sock.sendmsg([datagram], control, 0, to)

    async def _from_wire(self, kind: Kind) -> list[tuple[bytes, int]]:
        """Return the packets that the engine sent for its input so far, with their TOS."""
        self._put(Octets(marker_packet(kind, Direction.OUTBOUND)))
        spi = marker_sa(kind, Direction.OUTBOUND).spi.to_bytes(4)
        sent = []
        while True:
            octets, control, _, _ = await _ready(self._wire[kind], lambda s: s.recvmsg(1 << 17, 64))
            tos = control[0][2][0] if control else 0
            if kind == Kind(4, Encapsulation.NONE):
                octets, tos = octets[(octets[0] & 15) * 4 :], octets[1]
            if octets[:4] == spi:
                return sent
            sent.append((octets, tos))

    async def _written(self, kind: Kind, split: Splitter) -> list[bytes]:
        """Return the packets that the engine wrote to the TUN for the input of one socket."""
        marker = marker_packet(kind, Direction.INBOUND)
        self._send(Datagrams(kind, (encap(self._sealers[kind], marker),)))
        written: list[bytes] = []
        while True:
            frame = await _ready(self._from_tun, lambda s: s.recv(1 << 17))
            if frame[_VNET_LEN:] == marker:
                return written
            written += _packets(frame, split)


def _packets(frame: bytes, split: Splitter) -> list[bytes]:
    """Return the packets of a frame of the TUN."""
    vnet, octets = frame[:_VNET_LEN], frame[_VNET_LEN:]
    # Flag 1 is a partial checksum; a non-zero GSO type is a super-packet.
    packets = split(frame) if vnet[0] & 1 or vnet[1] else [octets]
    return [without_id(packet) for packet in packets]


def _flow(packet: bytes) -> bytes:
    """Return addresses, protocol and ports of a packet; of a fragment or another the addresses."""
    if packet[0] >> 4 == 6:
        ports = packet[40:44] if packet[6] in (6, 17) else b""
        return packet[8:40] + packet[6:7] + ports
    whole = packet[0] == 0x45 and not int.from_bytes(packet[6:8]) & 0x3FFF
    return packet[12:20] + (packet[9:10] + packet[20:24] if whole and packet[9] in (6, 17) else b"")


class Splitter:
    """Segments super-packets by the kernel, which does so for a TUN without offloads."""

    def __init__(self, namespace: Namespace) -> None:
        self._tun = open_tun("split0")
        namespace.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/split0/disable_ipv6")
        namespace.ip("link", "set", "split0", "up")
        self._into = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._into.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._into.bind(("split0", _ETH_P_IP))

    def __call__(self, frame: bytes) -> list[bytes]:
        ipv6 = frame[_VNET_LEN] >> 4 == 6
        self._into.sendto(frame, ("split0", _ETH_P_IPV6 if ipv6 else _ETH_P_IP))
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(os.read(self._tun, 1 << 17))
        return packets

    def close(self) -> None:
        self._into.close()
        os.close(self._tun)


def without_id(packet: bytes) -> bytes:
    """Return an IPv4 packet with DF set with its id zeroed, its checksum adjusted accordingly.

    The id of such a packet has no meaning (RFC 6864 4.1), and is lost by merging and segmenting.
    """
    if packet[0] >> 4 != 4 or not packet[6] & 0x40:
        return packet
    ident, checksum = (int.from_bytes(packet[at : at + 2]) for at in (4, 10))
    checksum = (checksum + ident) % 0xFFFF
    return packet[:4] + bytes(2) + packet[6:10] + checksum.to_bytes(2) + packet[12:]


async def _ready(sock: socket.socket, receive: Callable[[socket.socket], Any]) -> Any:
    """Receive from a socket, waiting up to PATIENCE seconds until it is readable."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return receive(sock)
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(sock, readable.set)
            try:
                await asyncio.wait_for(readable.wait(), PATIENCE)
            finally:
                loop.remove_reader(sock)


def _totals(counters: Counters) -> Counter[str]:
    names = ("packets_out", "bytes_out", "packets_in", "bytes_in", "keepalives_in")
    return Counter({name: getattr(counters, name) for name in names})


@contextlib.contextmanager
def inside(namespace: Namespace) -> Iterator[None]:
    """Open the sockets of this thread in a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        Path("/proc/thread-self/ns/net").open() as before,
        (NETNS_DIR / namespace.name).open() as there,
    ):
        assert libc.setns(there.fileno(), _CLONE_NEWNET) == 0
        try:
            yield
        finally:
            assert libc.setns(before.fileno(), _CLONE_NEWNET) == 0


class Twins:
    """The two engines on one event loop."""

    def __init__(self, python: Twin, native: Twin, splitter: Splitter, loop: Any) -> None:
        self._twins = (python, native)
        self.splitter = splitter
        self._loop = loop

    def compare(self, example: Callable[[Twin], Coroutine[Any, Any, Outcome]]) -> Outcome:
        """Run an example in both engines; return its outcome, which must be the same in both."""
        python, native = (self._run(twin, example(twin)) for twin in self._twins)
        for what in (field.name for field in fields(Outcome)):
            one, other = getattr(native, what), getattr(python, what)
            assert one == other, f"{what}: native {one}, python {other}"
        return python

    def _run(self, twin: Twin, example: Coroutine[Any, Any, Outcome]) -> Outcome:
        with inside(twin.gateway):
            outcome: Outcome = self._loop.run_until_complete(example)
        return outcome


@contextlib.contextmanager
def twins(native_af_alg: str = AF_ALG_OFF) -> Iterator[Twins]:
    """Create both engines, each with one worker, in separate namespaces.

    Only the native engine may use AF_ALG; the python engine is the reference.
    """
    allowed = os.sched_getaffinity(0)
    with contextlib.ExitStack() as stack:
        # On a single processor packets keep their order regardless of scheduling.
        os.sched_setaffinity(0, {min(allowed)})
        stack.callback(os.sched_setaffinity, 0, allowed)
        loop = asyncio.new_event_loop()
        stack.callback(loop.close)
        hosts = stack.enter_context(namespaces("py", "py-peer", "native", "native-peer"))

        async def make(
            engine: Callable[[], Engine], gateway: Namespace, peer: Namespace, af_alg: str
        ) -> Twin:
            return Twin(engine(), gateway, peer, af_alg)

        made = []
        engines = ((PythonEngine, AF_ALG_OFF), (NativeEngine, native_af_alg))
        for (engine, af_alg), gateway, peer in zip(engines, hosts[::2], hosts[1::2], strict=True):
            wire(gateway, peer)
            for version, length in ((4, 24), (6, 64)):
                for host, address in zip((gateway, peer), OUTER[version], strict=True):
                    add_address(host, f"{address}/{length}")
            with inside(gateway):
                twin = loop.run_until_complete(make(engine, gateway, peer, af_alg))
            stack.callback(twin.close)
            made.append(twin)
        with inside(hosts[1]):
            splitter = stack.enter_context(contextlib.closing(Splitter(hosts[1])))
        yield Twins(*made, splitter, loop)
