"""Samples of refused packets and of openings, of both engines with several workers."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from ipaddress import ip_address

import pytest
import pytest_asyncio

from esp_gw.demo.netns import add_address
from esp_gw.engine.base import MAX_SAMPLES, Opening, Refused
from esp_gw.model import DropReason, Encapsulation, Mode
from tests.support.builders import OUTER
from tests.support.engine_pair import (
    INNER,
    PORT,
    Side,
    engine_pair,
    install,
    outbound,
    remove,
    until,
)
from tests.support.engines import ENGINES
from tests.support.kernel_peer import inside

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDS = tuple(ip_address(end) for end in INNER)
OUTER_ENDS = tuple(ip_address(end) for end in OUTER[4])


@pytest_asyncio.fixture(params=ENGINES, loop_scope="module", scope="module")
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Side, Side]]:
    async with engine_pair(request.param) as sides:
        yield sides


@pytest.mark.parametrize("way", list(Encapsulation))
async def test_a_packet_that_exceeds_the_path_mtu_leaves_its_flow(
    pair: tuple[Side, Side], way: Encapsulation
) -> None:
    a, b = pair
    sa = outbound(way=way)
    a.namespace.ip("route", "add", f"{OUTER[4][1]}/32", "dev", "wan", "mtu", "1000")
    install(pair, sa)
    with inside(b.namespace):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with (
        receiver,
        inside(a.namespace),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        # A closed port would be answered by ICMP, a `no-policy` drop at any later time.
        receiver.bind((INNER[1], 7200))
        sock.bind((INNER[0], 7100))
        # The kernel forgets what it is told of the path: all go on to the engine, with DF.
        sock.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
        for size in (100, 1300, 1350):
            sock.sendto(bytes(size), (INNER[1], 7200))
        receiver.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(receiver, 2000) == bytes(100)
    await until(
        lambda: a.engine.counters().sas[sa.name].drops.get(DropReason.TOO_BIG) == 2, "too big"
    )
    # The small one left.
    assert a.carried(sa.name) == 1
    assert a.engine.refused() == [
        Refused(DropReason.TOO_BIG, sa.name, ENDS[0], 7100, ENDS[1], 7200, 17, None)
    ]
    remove(pair, sa)
    a.namespace.ip("route", "del", f"{OUTER[4][1]}/32", "dev", "wan", "mtu", "1000")


async def test_a_flood_leaves_a_few_samples_of_every_worker(pair: tuple[Side, Side]) -> None:
    a, b = pair
    sa = outbound()
    install(pair, sa)
    add_address(a.namespace, "192.0.2.77/24")
    count = 3000
    with inside(a.namespace), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("192.0.2.77", 4600))
        sock.connect((OUTER[4][1], PORT))
        for number in range(count):
            sock.send((0x5000 + number).to_bytes(4) + bytes(40))
            sock.send(sa.spi.to_bytes(4) + (100).to_bytes(4) + bytes(56))
            if number % 100 == 0:
                await until(
                    lambda sent=number: b.engine.counters().drops.get("auth-failed", 0) > sent,
                    "the flood is read",
                )
    await until(
        lambda: (
            {"unknown-spi": count, "auth-failed": count}.items()
            <= b.engine.counters().drops.items()
        ),
        "all are counted",
    )
    found = b.engine.refused()
    source = ip_address("192.0.2.77")
    strays = [refused for refused in found if refused.reason is DropReason.UNKNOWN_SPI]
    workers = b.engine.status().workers
    assert len(strays) == workers * MAX_SAMPLES
    assert {refused.spi for refused in strays} <= {0x5000 + n for n in range(2 * MAX_SAMPLES)}
    assert [refused for refused in found if refused not in strays] == [
        Refused(DropReason.AUTH_FAILED, "b/in", source, 4600, None, 0, 17, sa.spi)
    ]
    assert {(r.sa, r.source, r.source_port, r.protocol) for r in strays} == {
        (None, source, 4600, 17)
    }
    assert b.engine.refused() == []
    a.namespace.ip("address", "del", "192.0.2.77/24", "dev", "wan")
    remove(pair, sa)


@pytest.mark.parametrize("mode", list(Mode))
async def test_flows_that_ask_for_an_answer_are_seen_once(
    pair: tuple[Side, Side], mode: Mode
) -> None:
    a, b = pair
    sa = outbound(mode)
    install(pair, sa)
    ends = ENDS
    if mode is Mode.TRANSPORT:
        # Into the TUN, as a rule would lead it.
        ends = OUTER_ENDS
        a.namespace.ip("route", "add", f"{ends[1]}/32", "dev", "esp0", "table", "77")
        a.namespace.ip("rule", "add", "not", "fwmark", "0xe5b", "table", "77")
    try:
        with inside(a.namespace), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.bind((str(ends[0]), 0))
            sock.connect_ex((str(ends[1]), 443))
            a.namespace.run(
                *("ping", "-q", "-c", "2", "-i", "0.2", "-W", "1"),
                *("-I", str(ends[0]), str(ends[1])),
                check=False,
            )
        await until(lambda: b.engine.counters().sas["b/in"].packets >= 3, "they arrive")
    finally:
        if mode is Mode.TRANSPORT:
            a.namespace.ip("rule", "del", "not", "fwmark", "0xe5b", "table", "77")
            a.namespace.ip("route", "flush", "table", "77")
    assert sorted(b.engine.openings(), key=lambda opening: opening.protocol) == [
        Opening("b/in", ends[0], ends[1], 1, 0),
        Opening("b/in", ends[0], ends[1], 6, 443),
    ]
    assert b.engine.openings() == []
    remove(pair, sa)
