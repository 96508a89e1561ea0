"""The last addresses of peers that may be anywhere: kept on disk, and no more than a hint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Set
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from esp_gw.daemon.peers import INTERVAL, PEERS_NAME, Peers
from esp_gw.engine.base import SaCounters
from esp_gw.model import Direction, IPAddress, Sa
from tests.support.builders import desired, make_sa
from tests.support.fakes import FakeEngine
from tests.support.virtual_time import run_virtually

NOWHERE = ip_address("0.0.0.0")
ONE, TWO = (ip_address(text) for text in ("192.0.2.7", "192.0.2.8"))
IN = replace(make_sa("t/in", Direction.INBOUND, 0x2001), remote=NOWHERE, tunnel="t")
OUT = replace(make_sa("t/out", Direction.OUTBOUND, 0x2002), remote=NOWHERE, tunnel="t")
FIXED = make_sa("u/in", Direction.INBOUND, 0x2003)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / PEERS_NAME


def by_name(*sas: Sa) -> dict[str, Sa]:
    return {sa.name: sa for sa in sas}


def placed(path: Path, *sas: Sa) -> dict[str, tuple[IPAddress, int]]:
    """Return where a new process sends to."""

    async def begin() -> dict[str, tuple[IPAddress, int]]:
        engine = FakeEngine()
        peers = Peers(path)
        peers.place(engine, by_name(*sas))
        assert peers.have_moved == bool(engine.placed)
        return engine.placed

    return run_virtually(begin())


def learn(path: Path, *moves: tuple[Sa, IPAddress, int], sas: tuple[Sa, ...]) -> None:
    async def work() -> None:
        peers = Peers(path)
        peers.place(FakeEngine(), by_name(*sas))
        for sa, address, port in moves:
            peers.follow(sa, address, port, 0.0)
        await peers.keep()

    run_virtually(work())


def test_a_tunnels_last_address_is_that_of_all_its_sas_after_a_restart(path: Path) -> None:
    assert placed(path, IN, OUT) == {}
    learn(path, (IN, ONE, 4500), (IN, TWO, 40001), sas=(IN, OUT))
    assert placed(path, IN, OUT, FIXED) == {"t/in": (TWO, 40001), "t/out": (TWO, 40001)}


@pytest.mark.parametrize("names", [("in", None), (None, "out"), ("in", "out")])
def test_a_pair_shares_its_address_whichever_names_the_other(
    path: Path, names: tuple[str | None, str | None]
) -> None:
    of_out, of_in = names
    into = replace(IN, name="in", tunnel=None, pair=of_in)
    out = replace(OUT, name="out", tunnel=None, pair=of_out)
    learn(path, (into, ONE, 4501), sas=(into, out))
    assert placed(path, into, out) == {"in": (ONE, 4501), "out": (ONE, 4501)}


def test_a_peer_with_an_address_of_its_own_is_not_kept(path: Path) -> None:
    learn(path, (FIXED, ONE, 4500), sas=(FIXED,))
    assert not path.exists()


def test_peers_that_nobody_wants_any_more_leave_the_file(path: Path) -> None:
    learn(path, (IN, ONE, 4500), sas=(IN,))
    other = replace(IN, name="v/in", tunnel="v")
    learn(path, (other, TWO, 4500), sas=(other,))
    assert list(json.loads(path.read_text())) == ["tunnel v"]


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "[" * 100_000, '{"tunnel t": 5}', '{"tunnel t": ["x", 4500]}'),
        *('{"tunnel t": ["192.0.2.7", 0]}', '{"tunnel t": ["192.0.2.7", "4500"]}'),
        *('{"tunnel t": ["192.0.2.7", 70000]}', '{"tunnel t": ["0.0.0.0", 4500]}'),
        *('{"tunnel t": ["224.0.0.1", 4500]}', '{"tunnel t": ["fe80::1%lo", 4500]}'),
    ],
)
def test_a_file_of_rubbish_is_no_file(path: Path, content: str) -> None:
    path.write_text(content)
    assert placed(path, IN) == {}


def test_a_peer_that_flaps_is_written_at_once_and_then_now_and_then(path: Path) -> None:
    writes: list[float] = []

    async def live() -> None:
        peers = Peers(path)
        peers.place(FakeEngine(), by_name(IN))
        loop = asyncio.get_running_loop()

        async def steps() -> None:
            while True:
                await peers.step()
                writes.append(loop.time())

        task = asyncio.create_task(steps())
        began = loop.time()
        for number in range(600):
            peers.follow(IN, (ONE, TWO)[number % 2], 4500 + number, loop.time())
            await asyncio.sleep(0.1)
        task.cancel()
        writes[:] = [at - began for at in writes]

    run_virtually(live())
    assert 4 <= len(writes) <= 60 / INTERVAL


def test_a_file_that_can_not_be_written_costs_no_more_than_itself(tmp_path: Path) -> None:
    learn(tmp_path / "gone" / PEERS_NAME, (IN, ONE, 4500), sas=(IN,))


def test_an_sa_that_is_to_have_another_peer_is_not_where_the_former_one_went(path: Path) -> None:
    async def moved() -> dict[str, IPAddress]:
        peers = Peers(path)
        there = {
            sa.name: SaCounters(0, 0, 0, 0, ip_address("192.0.2.99"), 4500) for sa in (IN, FIXED)
        }
        other = replace(FIXED, remote=ip_address("2001:db8::7"))
        found = {}
        for sa in (FIXED, other):
            peers.doubt()
            placed = peers.placed(desired((sa, OUT), ()), by_name(IN, FIXED), lambda _: there)
            found[str(sa.remote)] = placed.sas[0].remote
            assert placed.sas[1] == OUT
        return found

    assert run_virtually(moved()) == {
        str(FIXED.remote): ip_address("192.0.2.99"),
        "2001:db8::7": ip_address("2001:db8::7"),
    }


def counters(address: IPAddress) -> SaCounters:
    return SaCounters(0, 0, 0, 0, address, 4500)


def test_only_the_sas_of_a_peer_that_moved_are_asked_for_it(path: Path) -> None:
    asked: list[set[str]] = []
    now = {"t/in": ONE, "t/out": ONE, "u/in": FIXED.remote}

    def counted(names: Set[str]) -> dict[str, SaCounters]:
        asked.append(set(names))
        return {name: counters(now[name]) for name in names}

    async def work() -> None:
        peers = Peers(path)
        state, there = desired((IN, OUT, FIXED), ()), by_name(IN, OUT, FIXED)
        peers.follow(IN, ONE, 4500, 0.0)
        first = peers.placed(state, there, counted)
        assert [sa.remote for sa in first.sas] == [ONE, ONE, FIXED.remote]
        # The same objects as long as nothing changes: what is made of them costs nothing.
        again = peers.placed(state, there, counted)
        assert all(one is other for one, other in zip(first.sas, again.sas, strict=True))
        assert first.sas[2] is FIXED
        assert asked == [{"t/in", "t/out"}] * 2
        now["t/in"] = TWO
        assert peers.placed(state, there, counted).sas[0].remote == TWO
        # An event that got lost is made up for when the network is looked at.
        now["u/in"] = TWO
        assert peers.placed(state, there, counted).sas[2] is FIXED
        peers.doubt()
        assert peers.placed(state, there, counted).sas[2].remote == TWO
        assert peers.placed(state, there, counted).sas[2].remote == TWO
        # One that is back is asked for no more after that.
        now["u/in"] = FIXED.remote
        peers.doubt()
        assert peers.placed(state, there, counted).sas[2] is FIXED
        peers.placed(state, there, counted)
        assert asked[-1] == {"t/in", "t/out"}

    run_virtually(work())
