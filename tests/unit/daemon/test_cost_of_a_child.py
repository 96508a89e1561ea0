"""The 300th child of IKE costs what the 10th does: calls of functions are counted, not time."""

from __future__ import annotations

import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import pytest

from esp_gw.daemon import plan_keeping
from esp_gw.engine.base import PeerAddressChanged, SaCounters
from esp_gw.model import Lease, Policy, Sa
from esp_gw.network import changes
from tests.support import service_rig
from tests.support.fakes import FakeEngine, FakeKernel
from tests.support.owner_client import Child
from tests.support.service_rig import Rig, start_rig

FEW, MANY = 10, 300
FACTOR = 1.1
"""A lookup by identity costs no call; what is left grows with the length of a few loops."""


ELSEWHERE = ip_address("198.19.0.1")
MOVED: set[str] = set()
"""Names of SAs whose peer is ELSEWHERE."""


class LightEngine(FakeEngine):
    """The fake engine without its own checks, which cost more with each SA."""

    def _change(self, wanted: Sequence[tuple[str, Sa, Lease | int | None]]) -> None:
        for name, sa, begin in wanted:
            self.sas.pop(name, None)
            self.sas[sa.name] = sa
            if isinstance(begin, Lease):
                self.leases[sa.name] = begin
            elif begin is not None:
                self.floors[sa.name] = begin
                self.fences[sa.name], self.notices[sa.name] = self._begins[sa.name]

    def counters_of(self, names: Collection[str]) -> dict[str, SaCounters]:
        found = super().counters_of(names)
        return {
            name: replace(there, remote=ELSEWHERE) if name in MOVED else there
            for name, there in found.items()
        }

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        return [self._counters(self.sas.pop(name)) for name in names]

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        self.policies = tuple(policies)


class LightKernel(FakeKernel):
    """The fake kernel without a look at each route."""

    def _execute(self, change: changes.NetworkChange) -> None:
        if isinstance(change, changes.AddRoute):
            self.network = replace(self.network, routes=self.network.routes | {change.route})
        else:
            super()._execute(change)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(service_rig, "FakeEngine", LightEngine)
    # The plan is written aside, once for all changes of a moment.
    monkeypatch.setattr(plan_keeping, "PAUSE", 3600)
    monkeypatch.setattr(service_rig, "FakeKernel", LightKernel)
    # The ledgers' threads are counted, too.
    threading.setprofile(_count)
    try:
        rig = await start_rig(tmp_path, monkeypatch)
        await rig.ask("OpenSession", owner="ike")
        yield rig
        await rig.gateway.stop()
    finally:
        threading.setprofile(None)


_calls: list[int] = [0]


def _count(frame: FrameType, event: str, argument: object) -> None:
    if event == "call":
        _calls[0] += 1


async def calls_of(work: Callable[[], Awaitable[object]]) -> int:
    """Return the calls of Python functions that a request costs."""
    _calls[0] = 0
    sys.setprofile(_count)
    try:
        await work()
    finally:
        sys.setprofile(None)
    return _calls[0]


def child(number: int, generation: int = 0) -> Child:
    """A child of a peer of its own, with a network of its own."""
    spi = 0xC0000000 + 10_000 * generation + 2 * number
    high, low = divmod(number, 250)
    return Child(
        f"c{number}{{{generation}}}",
        ("192.0.2.1", f"198.18.{high}.{low + 1}"),
        ("10.1.0.0/24", f"10.{100 + high}.{low}.0/24"),
        (spi, spi + 1),
    )


def policy(each: Child, name: str) -> dict[str, object]:
    """Return a child's policy, which is a trap as well: it is in the guard's plan."""
    return each.policy(0, name, trap=True)


async def install(rig: Rig, each: Child, name: str) -> None:
    await rig.ask("InstallChild", sas=each.sas(0), policies=[policy(each, name)])


async def rekey(rig: Rig, number: int) -> None:
    former, new = child(number), child(number, 1)
    await install(rig, new, f"p{number}")
    await rig.ask("QuerySas", sas=former.refs(0))
    await rig.ask("RemoveSas", sas=former.refs(0))


async def end(rig: Rig, number: int, generation: int) -> None:
    await rig.ask("RemoveSas", sas=child(number, generation).refs(0))
    await rig.ask("RemovePolicy", id=f"p{number}")


async def add(rig: Rig, numbers: range) -> None:
    """Install children in one request."""
    each = [child(number) for number in numbers]
    names = [f"p{number}" for number in numbers]
    policies = [policy(one, name) for one, name in zip(each, names, strict=True)]
    await rig.ask("InstallChild", sas=[sa for one in each for sa in one.sas(0)], policies=policies)


async def costs(rig: Rig, there: int) -> dict[str, int]:
    """Return what requests cost beside so many children."""
    each = child(there + 1)
    found = {
        "install": await calls_of(lambda: install(rig, each, f"p{there + 1}")),
        "rekey": await calls_of(lambda: rekey(rig, 5)),
        "trap": await calls_of(lambda: rig.ask("PutPolicy", **child(999).policy(0, "t", sa=None))),
        "end": await calls_of(lambda: end(rig, 5, 1)),
    }
    await rig.ask("RemovePolicy", id="t")
    await install(rig, child(5), "p5")
    return found


@pytest.mark.parametrize("moved", [False, True])
async def test_the_cost_of_a_child_does_not_grow_with_their_number(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    await add(rig, range(FEW))
    if moved:
        spis = child(3).spis
        monkeypatch.setattr(
            sys.modules[__name__], "MOVED", {f"ike:{spis[0]:08x}/in", f"ike:{spis[1]:08x}/out"}
        )
        rig.engine.tell(PeerAddressChanged(f"ike:{spis[0]:08x}/in", ELSEWHERE, 4500))
    few = await costs(rig, FEW)
    for first in range(FEW + 2, MANY, 100):
        await add(rig, range(first, min(first + 100, MANY)))
    many = await costs(rig, MANY)
    assert (ELSEWHERE in rig.gateway._planning.remotes) is moved
    for what, calls in many.items():
        assert few[what] > 100, what
        assert calls <= FACTOR * few[what], f"{what}: {few[what]} calls, and {calls} beside many"
