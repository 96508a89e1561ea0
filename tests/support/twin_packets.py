"""Hypothesis strategies for the input of both engines: SAs, inner packets, datagrams."""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import (
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from esp_gw.model import SUITES, Direction, Lease, Mode, Policy, PortRange, Sa, Selector
from tests.support.builders import OUTER, bypass, discard, make_sa, protect, selector
from tests.support.esp import padded, seal
from tests.support.twins import KINDS, Datagrams, Kind, Octets

V4 = selector("10.1.0.0/24", "10.2.0.0/24")
V6 = selector("fd00:1::/64", "fd00:2::/64")
INNER = {
    4: ("10.1.0.1", ["10.2.0.1", "10.2.0.2", "10.2.0.9", "10.3.0.1", "10.4.0.1", "10.9.0.1"]),
    6: ("fd00:1::1", ["fd00:2::1", "fd00:2::2", "fd00:9::1"]),
}
"""Local address and remote addresses, the latter for each policy of `policies` and for none."""
PORTS = st.sampled_from([0, 1000, 2000, 2001, 4500])
TOS = st.sampled_from([0, 0, 0, 1, 2, 3, 0xB8, 0xBB])
SIZES = st.one_of(
    st.integers(0, 64), st.integers(0, 1400), st.sampled_from([1399, 1440, 1460, 3000])
)
TCP_FLAGS = st.sampled_from(["A", "A", "A", "PA", "FA", "S", "AU", "AEC"])


@dataclass(frozen=True)
class Plan:
    """An SA under test, with further SAs and policies installed beside it."""

    kind: Kind
    sas: tuple[Sa, ...]
    policies: tuple[Policy, ...] = ()

    @property
    def sa(self) -> Sa:
        return self.sas[0]


@st.composite
def plans(draw: st.DrawFn, direction: Direction) -> Plan:
    kind = draw(st.sampled_from(KINDS))
    mode = draw(st.sampled_from(Mode))
    here, there = OUTER[kind.version]
    narrow = draw(st.sampled_from([{}, {"protocol": 17}, {"remote_port": PortRange(2000, 2001)}]))
    if mode is Mode.TRANSPORT:
        bits = 32 if kind.version == 4 else 128
        chosen = (selector(f"{here}/{bits}", f"{there}/{bits}"),)
    else:
        chosen = draw(st.sampled_from([(V4,), (V6,), (V4, V6)]))
    selectors = tuple(replace(one, **narrow) for one in chosen)
    sa = make_sa(
        "sa",
        direction,
        0x1001,
        *selectors,
        suite=draw(st.sampled_from(list(SUITES.values()))),
        mode=mode,
        encapsulation=kind.encapsulation,
        local=here,
        remote=there,
        esn=draw(st.booleans()),
    )
    window = draw(st.sampled_from([64, 100, 1024]))
    other = replace(
        sa,
        name="other",
        spi=0x1002,
        mode=Mode.TUNNEL,
        selectors=(selector("10.1.0.0/24", "10.3.0.0/24"),),
    )
    other = replace(other, keymat=make_sa(spi=0x1002, suite=sa.suite).keymat)
    sa = replace(sa, replay_window=window)
    return Plan(kind, (sa, other), draw(policies(chosen, selectors)))


@st.composite
def policies(
    draw: st.DrawFn, wide: tuple[Selector, ...], exact: tuple[Selector, ...]
) -> tuple[Policy, ...]:
    """Policies, some wider than the SA, so that its selectors refuse, some with several SAs.

    One of several is installed: the lane of a flow depends on time, which the twins don't share.
    """
    sas = draw(st.sampled_from([("sa",), ("sa", "gone"), ("gone", "sa", "gone")]))
    entries = [
        discard("d", selector("10.1.0.0/24", "10.2.0.9/32", draw(st.sampled_from([None, 17])))),
        bypass("b", selector("10.1.0.0/24", "10.2.0.2/32", 6)),
        replace(protect("p", "sa", *draw(st.sampled_from([exact, exact, wide]))), sas=sas),
        protect("o", "other", selector("10.1.0.0/24", "10.3.0.0/24")),
        protect("gone", "gone", selector("10.1.0.0/24", "10.4.0.0/24")),
    ]
    return tuple(entries[draw(st.integers(0, 2)) :])


def leases(sa: Sa) -> st.SearchStrategy[Lease]:
    """Long and short leases, some at the end of the sequence numbers."""
    last = sa.last_seq
    first = st.sampled_from([1, 2**31, 2**32 - 15, last - last // 8 - 3, last - 9])
    size = st.sampled_from([4, 20, 2**16])
    return st.builds(lambda first, size: lease_of(sa, first, size), first, size)


def lease_of(sa: Sa, first: int, size: int) -> Lease:
    """Return a lease as the ledger grants it: nothing past the SA's last number."""
    return Lease(first, min(first + size, sa.last_seq + 1))


@st.composite
def heads(draw: st.DrawFn, plan: Plan, *, inbound: bool = False) -> Packet:
    """An IP header between hosts of the plan, or with addresses outside it."""
    if plan.sa.mode is Mode.TRANSPORT and draw(st.integers(0, 7)):
        version, ends = plan.kind.version, (str(plan.sa.local), str(plan.sa.remote))
    else:
        inner = [one.local.version for one in plan.sa.selectors]
        version = draw(st.sampled_from([*(inner * 6), 4, 6]))
        here, far = INNER[version]
        ends = (here, draw(st.sampled_from([far[0]] * 8 + far)))
    src, dst = reversed(ends) if inbound else ends
    if version == 4:
        fields = {"tos": draw(TOS), "id": draw(st.integers(0, 3)), "ttl": draw(st.integers(1, 2))}
        return IP(src=src, dst=dst, flags=draw(st.sampled_from(["", "DF"])), **fields)
    return IPv6(src=src, dst=dst, tc=draw(TOS), hlim=draw(st.integers(1, 2)))


@st.composite
def extended(draw: st.DrawFn, head: Packet) -> Packet:
    """A header, sometimes with options or extension headers."""
    if draw(st.integers(0, 5)):
        return head
    if head.version == 4:
        return IP(**{**head.fields, "options": [IPOption(b"\x01\x01\x01\x00")]})
    extensions = [IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt, IPv6ExtHdrRouting]
    for extension in draw(st.lists(st.sampled_from(extensions), min_size=1, max_size=2)):
        head = head / extension()
    return head


@st.composite
def uppers(draw: st.DrawFn) -> Packet:
    ports = {"sport": draw(PORTS), "dport": draw(PORTS)}
    match draw(st.sampled_from(["udp", "udp", "tcp", "tcp", "icmp", "other"])):
        case "udp":
            return UDP(**ports)
        case "tcp":
            options = draw(st.sampled_from([[], [("Timestamp", (1, 2))]]))
            return TCP(**ports, seq=7, flags=draw(TCP_FLAGS), options=options)
        case "icmp":
            return ICMP()
    return Raw(b"")


def payload(size: int) -> Raw:
    return Raw((b"0123456789abcdef" * (size // 16 + 1))[:size])


@st.composite
def single(draw: st.DrawFn, plan: Plan, *, inbound: bool = False) -> bytes:
    head = draw(extended(draw(heads(plan, inbound=inbound))))
    return bytes(head / draw(uppers()) / payload(draw(SIZES)))


@st.composite
def error(draw: st.DrawFn, plan: Plan, *, inbound: bool = False) -> bytes:
    """An ICMP error, usually of a router outside the selectors, that quotes a packet."""
    quoted = draw(extended(draw(heads(plan, inbound=not inbound))))
    octets = bytes(quoted / draw(uppers()) / payload(draw(st.integers(0, 40))))
    octets = octets[: draw(st.sampled_from([1500, 1500, 1500, 48, 44, 28, 24, 23, 20, 19]))]
    version = quoted.version
    head = draw(heads(plan, inbound=inbound)).copy()
    router = {4: "172.16.0.2", 6: "2001:db8:16::2"}
    if head.version != version or draw(st.integers(0, 5)):
        source = router[version]
        target = quoted.src if draw(st.integers(0, 5)) else draw(st.sampled_from(INNER[version][1]))
        head = (IP if version == 4 else IPv6)(src=source, dst=target)
    if version == 4:
        message: Packet = ICMP(type=draw(st.sampled_from([3, 4, 5, 8, 11, 12])))
    else:
        message = ICMPv6TimeExceeded(type=draw(st.sampled_from([0, 1, 2, 3, 4, 128])))
    return bytes(head / message / Raw(octets))


@st.composite
def train(draw: st.DrawFn, plan: Plan, *, inbound: bool = False) -> list[bytes]:
    """Adjacent packets of one flow, which GSO may send together and GRO may merge."""
    head, upper = draw(heads(plan, inbound=inbound)), draw(uppers())
    size, count = draw(st.integers(1, 1300)), draw(st.integers(2, 12))
    last = draw(st.integers(1, size))
    fixed_id, gap = draw(st.booleans()), draw(st.sampled_from([0, 0, 0, 1]))
    packets = []
    for k in range(count):
        head, upper = head.copy(), upper.copy()
        if upper.name == "TCP":
            upper.seq = (0xFFFFF000 + k * (size + gap)) % 2**32
        if head.version == 4 and not fixed_id:
            head.id = 65530 + k if 65530 + k < 65536 else k - 6
        packets.append(bytes(head / upper / payload(last if k + 1 == count else size)))
    broken = draw(st.integers(0, 3 * count))
    if broken < count:
        # Damaged before the tunnel, so the checksum is wrong: engines carry it unchanged.
        octets = packets[broken]
        packets[broken] = octets[:-1] + bytes([octets[-1] ^ 1])
    return packets


def pseudo_sum(octets: bytes, upper: int, protocol: int) -> int:
    """Return the pseudo-header sum, not inverted, with which the kernel seeds partial checksums."""
    addresses = octets[12:20] if octets[0] >> 4 == 4 else octets[8:40]
    words = struct.unpack(f"!{len(addresses) // 2}H", addresses)
    total = sum(words) + protocol + len(octets) - upper
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@st.composite
def super_packet(draw: st.DrawFn, plan: Plan) -> Octets:
    """A super-packet, or a small packet with a partial checksum."""
    head = draw(extended(draw(heads(plan))))
    upper = draw(uppers().filter(lambda upper: upper.name in ("TCP", "UDP")))
    gso_size = draw(st.one_of(st.integers(1, 1300), st.sampled_from([1400, 1460])))
    size = draw(st.integers(0, min(40_000, gso_size * 40)))
    octets = bytearray(bytes(head / upper / payload(size)))
    start = len(octets) - size - len(upper)
    tcp = upper.name == "TCP"
    offset = 16 if tcp else 6
    protocol = 6 if tcp else 17
    struct.pack_into("!H", octets, start + offset, pseudo_sum(octets, start, protocol))
    kind = (1 if octets[0] >> 4 == 4 else 4) if tcp else 5
    if draw(st.integers(0, 5)) == 0 or size <= gso_size:
        octets, kind, gso_size = octets[: min(len(octets), start + len(upper) + 1300)], 0, 0
        if octets[0] >> 4 == 4:
            struct.pack_into("!H", octets, 2, len(octets))
        else:
            struct.pack_into("!H", octets, 4, len(octets) - 40)
    vnet = struct.pack("=BBHHHH", 1, kind, start + len(upper), gso_size, start, offset)
    return Octets(bytes(octets), vnet)


@st.composite
def fragments(draw: st.DrawFn, plan: Plan) -> list[bytes]:
    """The fragments of a datagram, usually all, and a last one that contradicts them.

    The contradiction ends the reassembly, so that no fragment is left for the next example.
    """
    head, upper = draw(heads(plan)), draw(uppers())
    whole = bytes(head / upper / payload(draw(st.integers(60, 4000))))
    header_len = 20 if head.version == 4 else 40
    data, protocol = whole[header_len:], whole[9] if head.version == 4 else whole[6]
    ident = draw(st.integers(1, 2))
    step = draw(st.sampled_from([8, 512, 1024])) if len(data) < 200 else 1024

    def piece(offset: int, part: bytes, more: bool) -> bytes:
        if head.version == 4:
            begin = IP(src=head.src, dst=head.dst, tos=head.tos, proto=protocol, id=ident)
            begin.frag, begin.flags = offset // 8, int(more)
            return bytes(begin / Raw(part))
        begin = IPv6(src=head.src, dst=head.dst, tc=head.tc)
        extension = IPv6ExtHdrFragment(nh=protocol, offset=offset // 8, m=int(more), id=ident)
        return bytes(begin / extension / Raw(part))

    pieces = [
        piece(at, data[at : at + step], at + step < len(data)) for at in range(0, len(data), step)
    ]
    if draw(st.integers(0, 3)) == 0:
        pieces = draw(st.permutations(pieces))
    if draw(st.integers(0, 5)) == 0:
        del pieces[draw(st.integers(0, len(pieces) - 1))]
    return [*pieces, piece(8, b"odd", True)]


@st.composite
def mangled(draw: st.DrawFn, plan: Plan) -> bytes:
    """A packet with changed header bytes, truncated or extended; or random bytes."""
    if draw(st.booleans()):
        return draw(st.binary(min_size=1, max_size=80))
    octets = bytearray(draw(single(plan)))
    for at in draw(st.lists(st.integers(0, min(len(octets), 60) - 1), max_size=2)):
        octets[at] = draw(st.integers(0, 255))
    return bytes(octets[: draw(st.integers(1, len(octets)))] + draw(st.binary(max_size=2)))


@st.composite
def outbound_steps(draw: st.DrawFn, plan: Plan, lease: Lease) -> list[Octets | Lease]:
    steps: list[Octets | Lease] = []
    for what in draw(
        st.lists(
            st.sampled_from(["single", "train", "super", "fragments", "mangled", "error", "lease"]),
            min_size=1,
            max_size=8,
        )
    ):
        match what:
            case "single":
                steps.append(Octets(draw(single(plan))))
            case "train":
                steps += [Octets(octets) for octets in draw(train(plan))]
            case "super":
                steps.append(draw(super_packet(plan)))
            case "fragments":
                steps += [Octets(octets) for octets in draw(fragments(plan))]
            case "error":
                steps.append(Octets(draw(error(plan))))
            case "mangled":
                steps.append(Octets(draw(mangled(plan))))
            case "lease" if lease.end + 3 <= plan.sa.last_seq:
                first = lease.end + draw(st.sampled_from([0, 0, 3]))
                lease = lease_of(plan.sa, first, draw(st.sampled_from([1, 10, 100])))
                steps.append(lease)
    return steps


@st.composite
def texts(draw: st.DrawFn, plan: Plan, octets: bytes) -> bytes:
    """The ESP plaintext of an inner packet, usually valid."""
    if plan.sa.mode is Mode.TRANSPORT:
        ipv4 = octets[0] >> 4 == 4
        header_len = (octets[0] & 15) * 4 if ipv4 else 40
        body, next_header = octets[header_len:], octets[9] if ipv4 else octets[6]
    else:
        body, next_header = octets, 4 if octets[0] >> 4 == 4 else 41
    odd = draw(st.integers(0, 12))
    if odd == 0:
        next_header = draw(st.sampled_from([4, 41, 59, 17, 6, 0, 255]))
    if odd == 1:
        body += bytes(draw(st.integers(1, 40)))  # TFC padding
    if odd == 2:
        body = body[: draw(st.integers(0, len(body)))]
    more = 4 * draw(st.integers(0, 3)) if odd == 3 else 0
    text = bytearray(padded(body, next_header, -(len(body) + 2) % 4 + more))
    if odd == 4:
        text[-draw(st.integers(1, min(6, len(text))))] ^= draw(st.integers(1, 255))
    if odd == 5:
        text = text[: draw(st.integers(0, len(text)))]
    return bytes(text)


@st.composite
def numbers(draw: st.DrawFn, newest: int, window: int, last: int) -> int:
    """The next sequence number, or one around the window's edges."""
    gap = draw(st.sampled_from([1] * 12 + [2, 5, 63, 64, window, 0, -1, -window + 1, -window]))
    return min(max(newest + gap, 0), last)


@st.composite
def inbound_steps(draw: st.DrawFn, plan: Plan, floor: int) -> list[Datagrams]:
    sa, steps, newest = plan.sa, list[Datagrams](), floor
    sent: list[bytes] = []
    for what in draw(
        st.lists(
            st.sampled_from(
                ["single", "error", "train", "train", "replay", "damage", "noise", "stray"]
            ),
            min_size=1,
            max_size=8,
        )
    ):
        tos, moved = draw(TOS), draw(st.integers(0, 3)) == 0
        datagrams: list[bytes] = []
        kind = plan.kind
        match what:
            case "single" | "error" | "train":
                inner = (
                    draw(train(plan, inbound=True))
                    if what == "train"
                    else [draw((single if what == "single" else error)(plan, inbound=True))]
                )
                for octets in inner:
                    seq = draw(numbers(newest, sa.replay_window, sa.last_seq))
                    datagrams.append(seal(sa, seq, draw(texts(plan, octets))))
                    newest = max(newest, seq)
                sent += datagrams
            case "replay" if sent:
                datagrams = draw(st.lists(st.sampled_from(sent), min_size=1, max_size=3))
            case "stray" if sent:
                datagrams = [draw(st.sampled_from(sent))]
                kind = draw(st.sampled_from(KINDS))
            case "damage" if sent:
                octets = draw(st.sampled_from(sent))
                at = draw(st.integers(0, len(octets) - 1))
                flipped = octets[:at] + bytes([octets[at] ^ draw(st.integers(1, 255))])
                cut = flipped + octets[at + 1 :]
                datagrams = [cut[: draw(st.sampled_from([len(cut), at, len(cut) - 4]))]]
            case _:
                spi = sa.spi.to_bytes(4)
                noise = [b"\xff", b"\xff\xff", b"", bytes(4), bytes(12), spi, spi + bytes(40)]
                datagrams = [draw(st.one_of(st.sampled_from(noise), st.binary(max_size=60)))]
        steps += in_calls(draw(st.booleans()), kind, datagrams, tos, moved)
    return steps


def in_calls(
    together: bool, kind: Kind, datagrams: list[bytes], tos: int, moved: bool
) -> list[Datagrams]:
    """Group datagrams into send calls: one each, or runs of equal sizes, which GRO keeps merged."""
    calls: list[list[bytes]] = []
    for datagram in datagrams:
        fits = together and calls and len(calls[-1][0]) == len(datagram) <= 1400
        if fits and datagram:
            calls[-1].append(datagram)
        else:
            calls.append([datagram])
    return [Datagrams(kind, tuple(call), tos, moved) for call in calls]
