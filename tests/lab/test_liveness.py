"""Authentic keepalives between two engines: dummy packets of idle SAs, in UDP and without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
import pytest_asyncio

from esp_gw.demo.netns import add_address
from esp_gw.engine.base import LeaseLow, OuterSocket
from esp_gw.model import Direction, DropReason, Encapsulation, Lease, Mode, Sa
from tests.support.builders import OUTER, make_sa, mirrored, protect, selector
from tests.support.engine_pair import INNER, Side, engine_pair, until
from tests.support.engines import ENGINES
from tests.support.floors import CountingLedger, installed
from tests.support.kernel_peer import inside

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAYS = [(mode, version, way) for mode in Mode for version in (4, 6) for way in Encapsulation]


@pytest_asyncio.fixture(params=ENGINES, loop_scope="module", scope="module")
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Side, Side]]:
    async with engine_pair(request.param) as sides:
        for number, side in enumerate(sides):
            add_address(side.namespace, f"{OUTER[6][number]}/64")
            with inside(side.namespace):
                ends = [ip_address(OUTER[version][number]) for version in (4, 6)]
                side.engine.set_outer_sockets(
                    [OuterSocket(end, way) for end in ends for way in Encapsulation]
                )
        yield sides


def outbound(number: int, mode: Mode, version: int, way: Encapsulation) -> Sa:
    here, there = OUTER[version]
    hosts = selector(here, there) if mode is Mode.TRANSPORT else selector(*INNER)
    sa = make_sa(
        f"{number}/out",
        Direction.OUTBOUND,
        0x1001 + number,
        hosts,
        mode=mode,
        encapsulation=way,
        local=here,
        remote=there,
    )
    return replace(sa, liveness=1)


def inbound(sa: Sa) -> Sa:
    return replace(
        sa,
        name=sa.name.replace("out", "in"),
        direction=Direction.INBOUND,
        local=sa.remote,
        remote=sa.local,
        selectors=mirrored(sa.selectors),
        liveness=0,
    )


async def test_idle_sas_prove_their_life_each_half_interval(pair: tuple[Side, Side]) -> None:
    a, b = pair
    sas = [outbound(number, *way) for number, way in enumerate(WAYS)]
    for sa in sas:
        b.engine.install_inbound(inbound(sa), 0)
        # Half of the lease is used by the fourth dummy.
        a.engine.install_outbound(sa, Lease(1, 7))
    before = a.engine.counters().keepalives_out

    def heard() -> bool:
        counters = b.engine.counters().sas
        return all(counters[inbound(sa).name].drops.get("dummy", 0) >= 4 for sa in sas)

    began = asyncio.get_running_loop().time()
    await until(heard, "four dummies of every SA")
    # Four halves of the interval, no sooner.
    assert asyncio.get_running_loop().time() - began > 1.9
    counters = a.engine.counters()
    final = a.engine.remove_sas([sa.name for sa in sas])
    heard_by = b.engine.remove_sas([inbound(sa).name for sa in sas])
    for sa, ours, theirs in zip(sas, final, heard_by, strict=True):
        assert (ours.packets, ours.bytes, ours.drops) == (0, 0, {})
        assert ours.seq - 1 == theirs.seq == theirs.drops.pop(DropReason.DUMMY)
        assert (theirs.packets, theirs.drops) == (0, {})
        assert LeaseLow(sa.name) in a.events
    assert counters.keepalives_out - before >= 4 * len(sas)
    assert a.engine.counters().keepalives_out == counters.keepalives_out
    assert b.engine.counters().keepalives_in == 0


async def test_an_exhausted_lease_makes_drops_and_traffic_stands_in_for_dummies(
    pair: tuple[Side, Side],
) -> None:
    a, b = pair
    busy, poor = (outbound(number, Mode.TUNNEL, 4, Encapsulation.UDP) for number in (20, 21))
    for sa in (busy, poor):
        b.engine.install_inbound(inbound(sa), 0)
    a.engine.install_outbound(busy, Lease(1, 1000))
    a.engine.install_outbound(poor, Lease(1, 2))
    a.engine.replace_policies([protect("p", busy.name, *busy.selectors)])
    pings = a.namespace.start("ping", "-q", "-i", "0.2", "-I", INNER[0], INNER[1])
    try:
        await until(
            lambda: a.engine.counters().sas[poor.name].drops.get("lease-exhausted", 0) >= 2,
            "dummies without a number",
        )
    finally:
        pings.kill()
        pings.wait()
    counters = b.engine.counters().sas
    assert counters[inbound(poor).name].drops == {DropReason.DUMMY: 1}
    assert counters[inbound(busy).name].packets >= 4
    # At most in the half before the first ping.
    assert counters[inbound(busy).name].drops.get(DropReason.DUMMY, 0) <= 1
    a.engine.replace_policies([])
    a.engine.remove_sas([busy.name, poor.name])
    b.engine.remove_sas([inbound(sa).name for sa in (busy, poor)])


async def test_a_replaced_sa_goes_on_or_ends_its_dummies(pair: tuple[Side, Side]) -> None:
    a, b = pair
    sa = outbound(30, Mode.TUNNEL, 4, Encapsulation.NONE)
    b.engine.install_inbound(inbound(sa), 0)
    a.engine.install_outbound(sa, Lease(1, 1000))
    a.engine.replace_sa(sa.name, replace(sa, name="renamed"))

    def dummies() -> int:
        return b.engine.counters().sas[inbound(sa).name].drops.get(DropReason.DUMMY, 0)

    await until(lambda: dummies() >= 1, "a dummy of the new name")
    a.engine.replace_sa("renamed", replace(sa, liveness=0))
    sent = a.engine.counters().keepalives_out
    other = outbound(31, Mode.TUNNEL, 4, Encapsulation.NONE)
    a.engine.install_outbound(other, Lease(1, 1000))
    await until(lambda: a.engine.counters().sas[other.name].seq >= 3, "dummies of another SA")
    ours = a.engine.counters()
    assert ours.keepalives_out - sent == ours.sas[other.name].seq - 1
    a.engine.remove_sas([sa.name, other.name])
    b.engine.remove_sas([inbound(sa).name])


async def test_an_idle_pair_writes_no_floor_until_a_packet_comes(pair: tuple[Side, Side]) -> None:
    a, b = pair
    sa = outbound(40, Mode.TUNNEL, 4, Encapsulation.UDP)
    ledger = CountingLedger()
    book = await installed(b.engine, ledger, inbound(sa))
    a.engine.install_outbound(sa, Lease(1, 1000))
    loop = asyncio.get_running_loop()

    async def floors() -> int:
        """Write the floors, far more often than a gateway does; return the number of writes."""
        await book.write_floors(loop.time())
        return len(ledger.writes)

    while b.engine.counters().sas[inbound(sa).name].drops.get(DropReason.DUMMY, 0) < 4:
        assert await floors() == 0
        await asyncio.sleep(0.02)
    a.engine.replace_policies([protect("p", sa.name, *sa.selectors)])
    ping = a.namespace.start("ping", "-q", "-c", "1", "-W", "1", "-I", INNER[0], INNER[1])
    try:
        for _ in range(500):
            if await floors():
                break
            await asyncio.sleep(0.02)
    finally:
        ping.kill()
        ping.wait()
    (written,) = ledger.writes[0].values()
    assert written >= 5
    a.engine.replace_policies([])
    a.engine.remove_sas([sa.name])
    await book.remove_all()
