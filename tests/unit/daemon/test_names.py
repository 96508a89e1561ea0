"""Names of peers: asked for while they are needed, their last address kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from esp_gw.daemon.names import AT_ONCE, INTERVAL, TIMEOUT, TURN, Names
from esp_gw.desired import Desired
from esp_gw.model import Direction, IPAddress
from tests.support.builders import desired, make_sa
from tests.support.fakes import captured_logs
from tests.support.virtual_time import run_virtually

NAME = "gw.example"
ANY = ip_address("0.0.0.0")
ONE, TWO, SIX = (ip_address(text) for text in ("192.0.2.7", "192.0.2.8", "2001:db8::7"))
OWN = frozenset({ip_address("192.0.2.1")})


class Resolver:
    """Answers with `addresses`; asked at `times`."""

    def __init__(self, *addresses: IPAddress) -> None:
        self.addresses = list(addresses)
        self.error: Exception | None = None
        self.times: list[float] = []

    async def __call__(self, name: str) -> list[IPAddress]:
        assert name == NAME
        self.times.append(asyncio.get_running_loop().time())
        if self.error is not None:
            raise self.error
        return self.addresses


class Rig:
    def __init__(self, folder: Path, resolver: Resolver, local: IPAddress | None = None) -> None:
        self.changes = 0
        self.resolver = resolver
        self.names = Names(folder / "names.json", self._changed, resolver)
        out = make_sa("t/out", Direction.OUTBOUND, 0x1001)
        sa = replace(out, remote=ANY, remote_name=NAME, local=local or out.local)
        other = make_sa("u/out", Direction.OUTBOUND, 0x1002)
        self.wanted = desired((sa, other), ())

    def _changed(self) -> None:
        self.changes += 1

    def place(self) -> Desired:
        return self.names.place(self.wanted)

    @property
    def remote(self) -> IPAddress | None:
        return next((sa.remote for sa in self.place().sas if sa.name == "t/out"), None)

    def live(self, seconds: int, each_second: Callable[[], None] = lambda: None) -> None:
        async def steps() -> None:
            for _ in range(seconds):
                self.place()
                each_second()
                await self.names.step(lambda: OWN)

        run_virtually(steps())


def test_an_sa_waits_for_its_name_and_the_others_do_not(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Resolver(ONE))
    assert [sa.name for sa in rig.place().sas] == ["u/out"]
    assert "gw.example has no address" in rig.names.missing[0]
    rig.live(2)
    assert (rig.remote, rig.changes, rig.names.missing) == (ONE, 1, [])
    assert rig.place() is rig.place()


def test_a_name_with_an_address_is_asked_for_only_when_its_peer_is_not_heard(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, Resolver(ONE))
    rig.live(100)
    assert len(rig.resolver.times) == 1
    rig.resolver.addresses = [TWO]
    rig.names.ask_again([NAME])
    rig.live(100)
    assert (rig.remote, rig.changes) == (TWO, 2)
    assert len(rig.resolver.times) == 2


def test_names_that_get_no_answer_hold_up_no_other(tmp_path: Path) -> None:
    found: dict[str, float] = {}

    async def resolve(name: str) -> list[IPAddress]:
        if name == NAME:
            found[name] = asyncio.get_running_loop().time()
            return [ONE]
        await asyncio.sleep(TIMEOUT)
        raise TimeoutError

    async def steps() -> float:
        names = Names(tmp_path / "names.json", lambda: None, resolve)
        out = make_sa("t/out", Direction.OUTBOUND, 0x1001)
        asked = [f"silent-{number}.example" for number in range(2 * AT_ONCE)] + [NAME]
        sas = [replace(out, name=name, remote=ANY, remote_name=name) for name in asked]
        names.place(desired(tuple(sas), ()))
        began = asyncio.get_running_loop().time()
        while NAME not in found:
            await names.step(lambda: OWN)
        return found[NAME] - began

    assert run_virtually(steps()) < 3 * (TIMEOUT + 1)


def test_the_current_address_stays_while_the_name_has_it_among_others(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Resolver(ONE))
    rig.live(2)
    rig.resolver.addresses = [TWO, ONE]
    rig.names.ask_again([NAME])
    rig.live(int(INTERVAL) + 2)
    assert (rig.remote, rig.changes) == (ONE, 1)


def test_the_last_address_stays_while_nobody_answers_and_over_a_restart(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Resolver(ONE))
    rig.live(2)
    rig.resolver.error = OSError(-3, "Temporary failure in name resolution")
    rig.names.ask_again([NAME])
    rig.live(30)
    assert rig.remote == ONE
    again = Rig(tmp_path, Resolver())
    assert again.remote == ONE


@pytest.mark.parametrize("error", [OSError(-2, "Name or service not known"), TimeoutError()])
def test_failures_are_told_once_and_tried_again_at_intervals(
    tmp_path: Path, error: Exception
) -> None:
    rig = Rig(tmp_path, Resolver())
    rig.resolver.error = error
    rig.live(60)
    gaps = [b - a for a, b in zip(rig.resolver.times, rig.resolver.times[1:], strict=False)]
    assert gaps
    assert all(gap >= INTERVAL for gap in gaps)
    assert rig.remote is None


def test_addresses_of_the_other_family_and_our_own_are_no_peers(tmp_path: Path) -> None:
    mapped = ip_address("::ffff:192.0.2.9")
    others = [ip_address(text) for text in ("224.0.0.1", "255.255.255.255", "127.0.1.1")]
    for answer in ([SIX], [mapped], [next(iter(OWN))], *([each] for each in others), [ANY], []):
        rig = Rig(tmp_path / str(answer), Resolver(*answer))
        rig.live(3)
        assert rig.remote is None
    rig = Rig(tmp_path, Resolver(SIX, *OWN, TWO, ONE))
    rig.live(3)
    assert rig.remote == TWO


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([SIX], "no IPv4 address, as 'local' is"),
        ([next(iter(OWN)), SIX], "192.0.2.1 is an address of this host"),
        ([ip_address("224.0.0.1"), SIX], "224.0.0.1 can't be a peer's"),
        ([], "no address"),
    ],
)
def test_a_warning_says_why_no_address_will_do(
    tmp_path: Path, answer: list[IPAddress], why: str
) -> None:
    rig = Rig(tmp_path, Resolver(*answer))
    with captured_logs() as lines:
        rig.live(60)
    (warning,) = rig.names.missing
    assert f"gw.example has no address ({why}):" in warning
    assert [line["reason"] for line in lines] == [why]


def test_each_of_ten_addresses_has_its_turn_while_the_peer_is_down(tmp_path: Path) -> None:
    ten = [ip_address(f"192.0.2.{last}") for last in range(10, 20)]
    resolver = Resolver(*ten)
    rig = Rig(tmp_path, resolver)
    tried: list[IPAddress | None] = []

    def second() -> None:
        rig.names.try_others([(NAME, 4)])
        if rig.remote not in tried[-1:]:
            tried.append(rig.remote)
        # A resolver gives the same addresses in another order each time.
        resolver.addresses = resolver.addresses[3:] + resolver.addresses[:3]

    with captured_logs() as lines:
        rig.live(int(10 * (TURN + INTERVAL)), second)
    assert set(tried) == {None, *ten}
    assert len(tried) <= 15
    assert len([line for line in lines if line["log_level"] != "debug"]) == 1


def test_one_address_stays_though_its_peer_is_down(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Resolver(ONE))
    rig.live(int(3 * TURN), lambda: rig.names.try_others([(NAME, 4)]))
    assert (rig.remote, rig.changes) == (ONE, 1)


def test_with_local_auto_either_family_will_do(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Resolver(SIX, ONE), local=ANY)
    rig.live(3)
    (sa, _) = rig.place().sas
    assert (sa.remote, sa.local) == (SIX, ip_address("::"))


def test_tunnels_of_both_families_may_have_one_name(tmp_path: Path) -> None:
    resolver = Resolver(SIX, TWO, ONE)
    rig = Rig(tmp_path, resolver)
    four, other = rig.wanted.sas
    six = replace(four, name="v/out", local=ip_address("2001:db8::1"), remote=ip_address("::"))

    def ends() -> dict[str, IPAddress]:
        return {sa.name: sa.remote for sa in rig.place().sas if sa.name != other.name}

    rig.wanted = desired((four, six, other), ())
    rig.live(3)
    assert ends() == {"t/out": TWO, "v/out": SIX}
    # The silence of one says nothing of the other.
    rig.live(int(3 * TURN), lambda: rig.names.try_others([(NAME, 6)]))
    assert ends() == {"t/out": TWO, "v/out": SIX}
    resolver.addresses = [ONE]
    rig.names.ask_again([NAME])
    rig.live(int(INTERVAL) + 2)
    assert ends() == {"t/out": ONE, "v/out": SIX}
    # Over a restart, too.
    rig.names = Names(tmp_path / "names.json", lambda: None, resolver)
    assert ends() == {"t/out": ONE, "v/out": SIX}


def test_a_kept_address_is_none_for_a_local_address_of_the_other_family(tmp_path: Path) -> None:
    Rig(tmp_path, Resolver(ONE)).live(2)
    rig = Rig(tmp_path, Resolver(ONE, SIX), local=ip_address("2001:db8::1"))
    assert rig.remote is None
    rig.live(2)
    assert rig.remote == SIX


def test_a_peer_that_is_heard_again_keeps_its_address(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Resolver(ONE, TWO))
    rig.live(2)
    rig.live(int(TURN) - 1, lambda: rig.names.try_others([(NAME, 4)]))
    # It was down when the question fell due, and is up when it is asked.
    rig.live(100, lambda: rig.names.try_others([]))
    assert (rig.remote, rig.changes) == (ONE, 1)


@pytest.mark.parametrize(
    "text",
    [
        *("", "[", "{}", "5", '[["gw.example", 4, 5]]', '[["gw.example", 4, "x"]]'),
        *('[["gw.example", 4, "2001:db8::7"]]', '[["gw.example", 4, "224.0.0.1"]]'),
        *('[[["gw.example"], 4, "192.0.2.7"]]', '[["gw.example"]]', '{"gw.example": "192.0.2.7"}'),
    ],
)
def test_a_damaged_file_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "names.json").write_text(text)
    rig = Rig(tmp_path, Resolver(ONE))
    assert rig.remote is None
