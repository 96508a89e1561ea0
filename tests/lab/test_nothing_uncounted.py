"""Everything that arrives at the outer sockets is delivered, a keepalive, or a drop by a reason."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
import pytest_asyncio
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from esp_gw.demo.netns import add_address
from esp_gw.engine.base import OuterSocket
from esp_gw.model import Direction, DropReason, Encapsulation, Sa
from tests.support.builders import OUTER, make_sa, selector
from tests.support.engine_pair import INNER, PORT, Side, engine_pair, until
from tests.support.engines import ENGINES
from tests.support.esp import padded, seal
from tests.support.kernel_peer import inside

pytestmark = pytest.mark.asyncio(loop_scope="module")

KINDS = [(version, way) for version in (4, 6) for way in Encapsulation]
SOCKETS = [OuterSocket(ip_address(OUTER[version][1]), way) for version, way in KINDS]
# An echo reply, which nobody answers.
INNER_PACKET = bytes(IP(src=INNER[0], dst=INNER[1]) / ICMP(type=0) / Raw(b"hello"))
TEXT = padded(INNER_PACKET, 4, -(len(INNER_PACKET) + 2) % 4)
DUMMY = padded(bytes(4), 59, 2)
OUTSIDE = bytes(IP(src="10.9.0.1", dst=INNER[1]) / ICMP(type=0))


@pytest_asyncio.fixture(params=ENGINES, loop_scope="module", scope="module")
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Side, Side]]:
    async with engine_pair(request.param) as sides:
        for number, side in enumerate(sides):
            add_address(side.namespace, f"{OUTER[6][number]}/64")
        with inside(sides[1].namespace):
            sides[1].engine.set_outer_sockets(SOCKETS)
        yield sides


class Mix:
    """Packets of a hostile and a friendly peer, of one outer kind; `sent` counts them."""

    def __init__(self, number: int, version: int, way: Encapsulation) -> None:
        self.version, self.way = version, way
        there, here = OUTER[version]
        self.sa: Sa = make_sa(
            f"{number}/in",
            Direction.INBOUND,
            0x2000 + number,
            selector(INNER[1], INNER[0]),
            encapsulation=way,
            local=here,
            remote=there,
        )
        self.udp = way is Encapsulation.UDP
        self._to = (here, PORT)
        self._raw_to = (here, 0)
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._udp = socket.socket(family, socket.SOCK_DGRAM)
        self._udp.bind((there, 0))
        self._esp = socket.socket(family, socket.SOCK_RAW, 50)
        self._forge = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
        self.sent = 0

    def send(self, *datagrams: bytes, other_way: bool = False) -> None:
        for datagram in datagrams:
            if self.udp is not other_way:
                self._udp.sendto(datagram, self._to)
            else:
                self._esp.sendto(datagram, self._raw_to)
            self.sent += 1

    def send_damaged(self, payload: bytes) -> None:
        """Send a datagram whose UDP checksum is wrong."""
        there, here = OUTER[self.version]
        head = IP(src=there, dst=here) if self.version == 4 else IPv6(src=there, dst=here)
        datagram = bytearray(bytes((head / UDP(sport=PORT, dport=PORT) / Raw(payload))[UDP]))
        datagram[-1] ^= 1
        self._forge.sendto(datagram, self._raw_to)
        self.sent += 1

    def everything(self) -> Counter[str]:
        """Send some of all that there is; return the expected drops."""
        sa = self.sa
        good = [seal(sa, seq, TEXT) for seq in range(200, 204)]
        self.send(*good, good[2], seal(sa, 205, DUMMY), seal(sa, 204, TEXT))
        self.send(good[3][:-1] + bytes([good[3][-1] ^ 1]), seal(sa, 300, TEXT)[:-4] + bytes(4))
        self.send(b"\0\0\x99\x99" + bytes(60), sa.spi.to_bytes(4) + bytes(4))
        self.send(seal(sa, 206, bytes(4) + bytes([9, 9, 2, 4])))
        outside = padded(OUTSIDE, 4, -(len(OUTSIDE) + 2) % 4)
        self.send(seal(sa, 207, outside))
        self.send(seal(sa, 208, TEXT), other_way=True)
        self.send(b"", b"\x01", b"\x01\x02\x03", b"\x01\x02\x03\x04\x05\x06\x07")
        expected = Counter({
            DropReason.REPLAY_DUPLICATE: 2,
            DropReason.DUMMY: 1,
            DropReason.AUTH_FAILED: 1,
            DropReason.UNKNOWN_SPI: 1,
            DropReason.TOO_SHORT: 5,
            DropReason.BAD_PADDING: 1,
            DropReason.SELECTOR_MISMATCH: 1,
            DropReason.WRONG_ENCAPSULATION: 1,
        })  # fmt: skip
        if self.udp:
            self.send(b"\xff", b"\xff", bytes(4) + bytes(40))
            for _ in range(3):
                self.send_damaged(sa.spi.to_bytes(4) + bytes(200))
            expected += Counter({DropReason.IKE_DATAGRAM: 1, DropReason.SOCKET_OVERFLOW: 3})
        else:
            self.send(b"\xff")
            expected += Counter({DropReason.TOO_SHORT: 1})
        return expected

    def close(self) -> None:
        for sock in (self._udp, self._esp, self._forge):
            sock.close()


def outer_sockets() -> Iterator[socket.socket]:
    """Yield the engine's sockets of both kinds, which are descriptors of this process."""
    ours = {OUTER[4][1], OUTER[6][1]}
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if path.is_socket():
                with socket.socket(fileno=os.dup(int(path.name))) as sock:
                    if sock.family in (2, 10) and sock.getsockname()[0] in ours:
                        yield sock


async def test_the_sum_of_what_came_is_the_sum_of_what_was_delivered_and_dropped(
    pair: tuple[Side, Side],
) -> None:
    engine = pair[1].engine
    before = engine.counters()
    with inside(pair[0].namespace):
        mixes = [Mix(number, *kind) for number, kind in enumerate(KINDS)]
    expected: Counter[str] = Counter()
    for mix in mixes:
        engine.install_inbound(mix.sa, 0)
        expected += mix.everything()
    sent = sum(mix.sent for mix in mixes)

    def accounted() -> int:
        now = engine.counters()
        carried = now.packets_in - before.packets_in + now.keepalives_in - before.keepalives_in
        return carried + sum(now.drops.values()) - sum(before.drops.values())

    await until(lambda: accounted() >= sent, f"{sent} datagrams are accounted for")
    found = Counter(engine.counters().drops)
    found.subtract(before.drops)
    assert +found == expected
    assert accounted() == sent
    for mix in mixes:
        mix.close()
    engine.remove_sas([mix.sa.name for mix in mixes])


async def test_what_a_full_socket_loses_is_counted_and_stays_so_when_it_is_closed(
    pair: tuple[Side, Side],
) -> None:
    engine = pair[1].engine
    for sock in outer_sockets():
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    before = sum(engine.counters().drops.values())
    with inside(pair[0].namespace):
        mixes = [Mix(number, *kind) for number, kind in enumerate(KINDS)]

    def lost() -> int:
        return engine.counters().drops.get(DropReason.SOCKET_OVERFLOW, 0)

    for mix in mixes:
        already, stray = lost(), b"\0\0\x99\x99" + bytes(1000)
        for _ in range(100):
            # At once, as far as the kernel's queue between the two takes them.
            mix.send(*[stray] * 100)
            await until(
                lambda: (
                    sum(engine.counters().drops.values()) - before
                    == sum(each.sent for each in mixes)
                ),
                "all are accounted for",
            )
            if lost() > already:
                break
        assert lost() > already
        mix.close()
    counted = lost()
    with inside(pair[1].namespace):
        engine.set_outer_sockets(SOCKETS[:1])
        await until(lambda: len(list(outer_sockets())) <= 2, "sockets are closed")
        assert lost() == counted
        engine.set_outer_sockets(SOCKETS)
        assert lost() == counted
