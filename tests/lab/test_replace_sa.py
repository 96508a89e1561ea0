"""SAs replaced under traffic, by engines on real devices and sockets."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import pytest
import pytest_asyncio

from esp_gw.engine.base import SaCounters
from esp_gw.errors import EngineError
from esp_gw.model import SUITES, Direction, DropReason, Encapsulation, KeyMaterial, Lease, Sa
from tests.support.builders import OUTER, make_sa, mirrored, protect, selector
from tests.support.engine_pair import (
    INNER,
    OTHER_PORT,
    PORT,
    RATES,
    Flow,
    Side,
    engine_pair,
    until,
)
from tests.support.engines import ENGINES
from tests.support.labtools import Capture, esp_packets

NUMBERS = Lease(1, 2**40)
CHANGES = 200
ALL = selector("10.1.0.0/16", "10.2.0.0/16")
HOSTS = selector(f"{INNER[0]}/32", f"{INNER[1]}/32")
SUITE = SUITES["aes256gcm16"]


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest_asyncio.fixture
async def pair(kind: str) -> AsyncIterator[tuple[Side, Side]]:
    async with engine_pair(kind) as sides:
        yield sides


@dataclass
class Way:
    """One direction: the SA of its sender and that of its receiver, as they are now."""

    sender: Side
    receiver: Side
    out: Sa
    into: Sa
    generation: int = 0
    gone: int = 0
    """The packets that former SAs of this direction have carried."""

    def set(self, out: Sa, into: Sa) -> None:
        self.receiver.engine.replace_sa(self.into.name, into)
        self.sender.engine.replace_sa(self.out.name, out)
        self.out, self.into = out, into

    def new_key(self) -> tuple[str, str]:
        """Install SAs with a new key under the present names; return the former ones' new names."""
        self.generation += 1
        fresh = {"spi": self.out.spi + 2, "keymat": _key(self.generation)}
        retired = f"{self.out.name}~old", f"{self.into.name}~old"
        receiver, sender = self.receiver.engine, self.sender.engine
        out, into = replace(self.out, **fresh), replace(self.into, **fresh)
        with receiver.at_once():
            receiver.replace_sa(into.name, replace(self.into, name=retired[1]))
            receiver.install_inbound(into, 0)
        with sender.at_once():
            sender.replace_sa(out.name, replace(self.out, name=retired[0]))
            sender.install_outbound(out, NUMBERS)
        self.out, self.into = out, into
        return retired

    def remove(self, out: str, into: str) -> None:
        (final,) = self.sender.engine.remove_sas([out])
        assert self.receiver.engine.remove_sas([into])[0].packets == final.packets
        self.gone += final.packets

    def carried(self) -> int:
        return self.gone + self.sender.carried(self.out.name)


def _key(number: int) -> KeyMaterial:
    return KeyMaterial(number.to_bytes(SUITE.key_len), b"salt")


def way(
    sender: Side, receiver: Side, number: int, encapsulation: Encapsulation = Encapsulation.UDP
) -> Way:
    """Install one direction's SAs."""
    selectors = (ALL,) if number == 0 else mirrored((ALL,))
    local, remote = OUTER[4] if number == 0 else reversed(OUTER[4])
    out = make_sa(f"{number}", Direction.OUTBOUND, 0x1000 + number, *selectors, suite=SUITE)
    out = replace(out, **_ends(local, remote), encapsulation=encapsulation, tunnel="t")
    into = replace(out, direction=Direction.INBOUND, selectors=mirrored(selectors))
    into = replace(into, **_ends(remote, local))
    sender.engine.install_outbound(out, NUMBERS)
    receiver.engine.install_inbound(into, 0)
    sender.engine.replace_policies([protect("p", out.name, *selectors)])
    return Way(sender, receiver, out, into)


def _ends(local: str, remote: str) -> dict[str, object]:
    sample = make_sa(local=local, remote=remote)
    return {"local": sample.local, "remote": sample.remote}


@pytest.mark.parametrize("encapsulation", Encapsulation)
async def test_no_packet_is_lost_or_numbered_twice_while_sas_are_replaced_under_traffic(
    pair: tuple[Side, Side], kind: str, encapsulation: Encapsulation, tmp_path: Path
) -> None:
    a, b = pair
    ways = [way(a, b, 0, encapsulation), way(b, a, 1, encapsulation)]
    windows = cycle([512, 8192, 4096, 1000])

    def narrow_or_widen(way: Way, odd: int) -> None:
        wide = (HOSTS, ALL) if odd else (ALL,)
        wide = wide if way.out.name == "0" else mirrored(wide)
        way.set(replace(way.out, selectors=wide), replace(way.into, selectors=mirrored(wide)))

    def resize(way: Way, _: int) -> None:
        way.set(way.out, replace(way.into, replay_window=next(windows)))

    def other_port(way: Way, odd: int) -> None:
        port = OTHER_PORT if odd else PORT
        way.set(replace(way.out, remote_port=port), replace(way.into, remote_port=port))

    def rename(way: Way, odd: int) -> None:
        name = f"{way.out.name}{'.renamed' * odd}"
        way.set(replace(way.out, pair="another"), replace(way.into, name=name))

    steps: list[Callable[[Way, int], None]] = [narrow_or_widen, resize, other_port, rename]
    with contextlib.ExitStack() as stack:
        capture = Capture(a.namespace, tmp_path / "wire.pcap")
        stack.callback(capture.stop)
        flows = []
        for one in ways:
            flow = await Flow.start(one.sender, one.receiver, RATES[kind])
            stack.callback(flow.kill)
            flows.append(flow)
        for number in range(CHANGES):
            before = [way.carried() for way in ways]
            one = ways[(number + number // 20) % 2]
            if number % 20 == 19:
                retired = one.new_key()
                await until(
                    lambda one=one, retired=retired: (
                        one.receiver.carried(retired[1]) == one.sender.carried(retired[0])
                    ),
                    "the last packet under the former key",
                )
                one.remove(*retired)
            else:
                steps[number // 2 % len(steps)](one, number // 8 % 2)
            await until(
                lambda before=before: all(
                    way.carried() >= count + 10 for way, count in zip(ways, before, strict=True)
                ),
                "traffic in both directions",
            )
        reports = [await flow.finish() for flow in flows]
        packets = [(p.spi, p.seq_lo) for p in esp_packets(capture.stop())]
    for side in pair:
        assert +Counter(side.engine.counters().drops) == {}
    for one, (sent, report) in zip(ways, reports, strict=True):
        assert report == {"received": sent, "repeated": 0, "highest": sent}
        assert one.carried() == sent
        assert one.receiver.engine.counters().packets_in == sent
    repeated = [packet for packet, count in Counter(packets).items() if count > 1]
    assert repeated == []
    assert len(packets) == sum(sent for sent, _ in reports)


@pytest.mark.parametrize("kind", [name for name in ENGINES if name == "native"])
async def test_packets_that_wait_for_a_full_socket_are_sent_after_their_sa_is_replaced(
    pair: tuple[Side, Side], kind: str
) -> None:
    # The python engine goes on reading while a socket is full; its queue has a unit test.
    a, b = pair
    one = way(a, b, 0)
    way(b, a, 1)
    limit = ("tc", "qdisc", "replace", "dev", "wan", "root", "tbf", "burst", "64kb")
    a.namespace.run(*limit, "limit", "200mb", "rate", "100kbit")
    flow = await Flow.start(a, b, RATES[kind])
    try:
        await until(
            lambda: a.engine.counters().drops.get(DropReason.QUEUE_TIMEOUT, 0) > 0,
            "packets wait too long for a full socket",
        )
        for number in range(5):
            port = OTHER_PORT if number % 2 else PORT
            one.set(replace(one.out, remote_port=port, pair=f"{number}"), one.into)
        a.engine.replace_sa("0", replace(one.out, name="0.renamed"))
        a.engine.replace_policies([protect("p", "0.renamed", *one.out.selectors)])
        a.namespace.run(*limit, "limit", "200mb", "rate", "100mbit")
        waiting = a.carried("0.renamed")
        await until(lambda: b.carried("0") > waiting, "the packets that waited")
        sent, report = await flow.finish()
    finally:
        flow.kill()
    # Packets that wait too long are lost; sealed ones aren't.
    drops = +Counter(a.engine.counters().drops)
    assert DropReason.SEND_ERROR not in drops
    assert +Counter(b.engine.counters().drops) == {}
    assert report["received"] == a.carried("0.renamed") == sent - drops.total()
    assert report["repeated"] == 0


def _state(side: Side) -> dict[str, SaCounters]:
    return dict(side.engine.counters().sas)


async def test_a_step_of_which_a_part_is_refused_changes_nothing(pair: tuple[Side, Side]) -> None:
    side, _ = pair
    engine = side.engine
    out = make_sa("out", Direction.OUTBOUND, 0x1001)
    one = make_sa("one", Direction.INBOUND, 0x2001)
    two = make_sa("two", Direction.INBOUND, 0x2002)
    engine.install_outbound(out, Lease(5, 9))
    engine.install_inbound(one, 7)
    engine.install_inbound(two, 8)
    engine.install_inbound(make_sa("three", Direction.INBOUND, 0x2003), 9)
    before = _state(side)
    other_key = KeyMaterial(bytes(16), b"salt")
    refused: list[tuple[str, Sa]] = [
        ("none", out),
        ("out", replace(out, keymat=other_key)),
        ("out", replace(out, keymat=replace(out.keymat, salt=b"tlas"))),
        ("out", replace(out, suite=SUITES["aes128gcm12"])),
        ("out", replace(out, direction=Direction.INBOUND)),
        ("one", replace(one, direction=Direction.OUTBOUND)),
        ("out", replace(out, name="one")),
        ("one", replace(one, name="out")),
        ("one", replace(one, spi=two.spi)),
    ]
    for name, sa in refused:
        with pytest.raises(EngineError):
            engine.replace_sa(name, sa)
        with pytest.raises(EngineError), engine.at_once():
            engine.replace_sa("three", make_sa("other", Direction.INBOUND, 0x3000, key=0x2003))
            engine.install_inbound(make_sa("new", Direction.INBOUND, 0x3001), 0)
            engine.replace_sa(name, sa)
        assert _state(side) == before
    with pytest.raises(EngineError), engine.at_once():
        engine.replace_sa("one", replace(one, name="other"))
        engine.replace_sa("one", replace(one, name="another"))
    with pytest.raises(ZeroDivisionError), engine.at_once():
        engine.replace_sa("one", replace(one, name="other"))
        1 / 0  # noqa: B018
    assert _state(side) == before


async def test_what_is_there_at_the_end_of_a_step_counts(pair: tuple[Side, Side]) -> None:
    engine = pair[0].engine
    one = make_sa("one", Direction.INBOUND, 0x2001)
    two = make_sa("two", Direction.INBOUND, 0x2002)
    engine.install_inbound(one, 7)
    engine.install_inbound(two, 8)
    with engine.at_once():
        engine.replace_sa("one", replace(one, spi=two.spi))
        engine.replace_sa("two", replace(two, spi=one.spi))
    with engine.at_once():
        engine.replace_sa("one", replace(one, name="two"))
        engine.replace_sa("two", replace(two, name="one"))
    with engine.at_once():
        engine.install_inbound(make_sa("one", Direction.INBOUND, 0x2003), 3)
        engine.replace_sa("one", replace(two, name="one~old"))
    sas = engine.counters().sas
    assert {name: sa.seq for name, sa in sas.items()} == {"two": 7, "one~old": 8, "one": 3}
    assert engine.advanced_replay_floors() == {}


async def test_keepalives_go_on_under_the_new_name(pair: tuple[Side, Side]) -> None:
    engine = pair[0].engine
    out = replace(make_sa("out", Direction.OUTBOUND, 0x1001), keepalive=1)
    engine.install_outbound(out, NUMBERS)
    engine.replace_sa("out", replace(out, name="new"))
    await until(lambda: engine.counters().keepalives_out > 0, "a keepalive")
    engine.remove_sas(["new"])
