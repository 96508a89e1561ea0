"""IKE datagrams that come to the port of ESP in UDP (RFC 3948 2.2), of both engines."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv6Address, ip_address

import pytest
import pytest_asyncio

from esp_gw.demo.netns import add_address
from esp_gw.engine.base import RELAY_HEADER, OuterSocket
from esp_gw.errors import EngineError
from esp_gw.model import DropReason, Encapsulation
from tests.support.builders import OUTER
from tests.support.engine_pair import PORT, Side, engine_pair, until
from tests.support.engines import ENGINES
from tests.support.kernel_peer import inside

pytestmark = pytest.mark.asyncio(loop_scope="module")

MARKER = bytes(4)
UDP_SEGMENT = 103
IKE_PORT = 4500


@pytest_asyncio.fixture(params=ENGINES, loop_scope="module", scope="module")
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Side, Side]]:
    async with engine_pair(request.param) as sides:
        for side, address in zip(sides, OUTER[6], strict=True):
            add_address(side.namespace, f"{address}/64")
        ends = [OuterSocket(ip_address(OUTER[v][1]), Encapsulation.UDP) for v in (4, 6)]
        sides[0].engine.set_outer_sockets([])
        with inside(sides[1].namespace):
            sides[1].engine.set_outer_sockets(ends)
        yield sides


@contextlib.contextmanager
def reader(side: Side) -> Iterator[socket.socket]:
    """Yield the end of a socket pair at which an engine's IKE datagrams come out."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        side.engine.relay_ike(theirs.fileno())
        # The engine has a copy.
        theirs.close()
        ours.settimeout(0)
        try:
            yield ours
        finally:
            side.engine.relay_ike(None)


@contextlib.contextmanager
def sender(side: Side, version: int) -> Iterator[socket.socket]:
    """Yield a UDP socket, as a peer's charon has it, connected to the other side."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with inside(side.namespace), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.bind((OUTER[version][0], IKE_PORT))
        sock.connect((OUTER[version][1], PORT))
        yield sock


def mapped(address: str) -> bytes:
    """An address in 16 bytes."""
    there = ip_address(address)
    return (there if there.version == 6 else IPv6Address(f"::ffff:{address}")).packed


async def read(sock: socket.socket, count: int) -> list[bytes]:
    """Return that many datagrams."""
    found: list[bytes] = []

    def comes() -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(sock.recv(65535))
        return len(found) >= count

    await until(comes, f"{count} datagrams are relayed")
    return found


def dropped(side: Side) -> int:
    return side.engine.counters().drops.get(DropReason.IKE_DATAGRAM, 0)


@pytest.mark.parametrize("version", [4, 6])
async def test_an_ike_datagram_comes_out_behind_its_addresses_and_ports(
    pair: tuple[Side, Side], version: int
) -> None:
    a, b = pair
    before = b.engine.counters().ike_passed
    with reader(b) as sock, sender(a, version) as peer:
        for message in (b"a message of IKE", bytes(1400), b"four"):
            peer.send(MARKER + message)
            (datagram,) = await read(sock, 1)
            header = (*map(mapped, OUTER[version]), IKE_PORT, PORT)
            assert RELAY_HEADER.unpack(datagram[: RELAY_HEADER.size]) == header
            assert datagram[RELAY_HEADER.size :] == message
    assert b.engine.counters().ike_passed == before + 3
    assert dropped(b) == 0


@pytest.mark.parametrize("version", [4, 6])
async def test_each_datagram_of_a_run_comes_out_and_the_esp_packets_of_it_do_not(
    pair: tuple[Side, Side], version: int
) -> None:
    a, b = pair
    size = 200
    unknown = b.engine.counters().drops.get(DropReason.UNKNOWN_SPI, 0)
    run = [MARKER + bytes([n]) * (size - 4) for n in range(1, 7)]
    run[2] = run[4] = (0x7777).to_bytes(4) + bytes(size - 4)
    with reader(b) as sock, sender(a, version) as peer:
        peer.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        peer.send(b"".join(run))
        found = await read(sock, 4)
        assert [each[-1] for each in found] == [1, 2, 4, 6]
        assert {len(each) for each in found} == {RELAY_HEADER.size + size - 4}
        await until(
            lambda: b.engine.counters().drops.get(DropReason.UNKNOWN_SPI, 0) == unknown + 2,
            "both ESP packets are counted",
        )


async def test_what_nobody_reads_is_dropped_and_counted(pair: tuple[Side, Side]) -> None:
    a, b = pair
    with sender(a, 4) as peer:
        before = dropped(b)
        peer.send(MARKER + b"nobody")
        await until(lambda: dropped(b) == before + 1, "without a reader it is counted")
        with reader(b) as sock:
            passed, before = b.engine.counters().ike_passed, dropped(b)

            def arrived() -> int:
                counters = b.engine.counters()
                return counters.ike_passed - passed + dropped(b) - before

            for sent in range(1, 2000):
                peer.send(MARKER + bytes(1000))
                await until(lambda at=sent: arrived() == at, "each is passed on or counted")
                if dropped(b) > before:
                    break
            # The reader's queue was full.
            assert dropped(b) == before + 1
            assert len(await read(sock, sent - 1)) == sent - 1
            sock.close()
            peer.send(MARKER + b"closed")
            await until(lambda: dropped(b) == before + 2, "the reader's end is counted")


async def test_a_socket_of_another_kind_is_refused_and_the_former_one_stays(
    pair: tuple[Side, Side],
) -> None:
    a, b = pair
    with reader(b) as sock, sender(a, 4) as peer:
        pairs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for wrong in (*pairs, udp):
            with wrong, pytest.raises(EngineError, match="IKE datagrams can't be passed on"):
                b.engine.relay_ike(wrong.fileno())
        peer.send(MARKER + b"still here")
        assert (await read(sock, 1))[0].endswith(b"still here")
