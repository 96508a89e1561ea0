"""Collaborators of the gateway in memory, each call of which takes its time and may fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from esp_gw.config.added import StoredState
from esp_gw.desired import Desired
from esp_gw.engine.base import OuterSocket, SaCounters
from esp_gw.errors import EngineError, EspGwError, LedgerError, NetworkError
from esp_gw.ledger.ledger import MIN_MARGIN
from esp_gw.model import Direction, IPAddress, KeyMaterial, Lease, Policy, Reception, Sa
from esp_gw.network import changes
from esp_gw.network.objects import Host, Network
from tests.support.fakes import FakeEngine, FakeKernel

EXPECTED = {
    "kernel": NetworkError,
    "engine": EngineError,
    "ledger": LedgerError,
    "store": EspGwError,
    "plan": NetworkError,
}
"""The errors that the collaborators document."""


class Chaos:
    """Lets the calls of collaborators fail: `armed` has their names, with calls still to succeed.

    `after` runs after each call that changes something.
    """

    def __init__(self) -> None:
        self.armed: dict[str, tuple[int, Exception]] = {}
        self.failures = 0
        self.delay = 0.0
        self.after: Callable[[], None] = lambda: None

    def arm(self, name: str, calls: int, *, expected: bool) -> None:
        error = EXPECTED[name] if expected else RuntimeError
        self.armed[name] = (calls, error(f"{name} fails on purpose"))

    def point(self, name: str) -> None:
        """Fail if it is this call's turn."""
        if name in self.armed:
            left, error = self.armed[name]
            if left == 0:
                del self.armed[name]
                self.failures += 1
                raise error
            self.armed[name] = (left - 1, error)

    async def slow_point(self, name: str) -> None:
        await asyncio.sleep(self.delay)
        self.point(name)


class ChaosEngine(FakeEngine):
    def __init__(self, chaos: Chaos) -> None:
        super().__init__()
        self._chaos = chaos
        self.peers: dict[str, IPAddress] = {}

    def _install(self, sa: Sa) -> None:
        super()._install(sa)
        self.peers.pop(sa.name, None)

    def _counters(self, sa: Sa) -> SaCounters:
        counters = super()._counters(sa)
        return replace(counters, remote=self.peers.get(sa.name, sa.remote))

    def set_outer_sockets(self, wanted: Sequence[OuterSocket]) -> None:
        # Fails after some sockets were opened, as the real ones do.
        self.sockets |= frozenset(wanted[:1])
        self._chaos.point("engine")
        super().set_outer_sockets(wanted)
        self._chaos.after()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        with super().at_once():
            yield
            self._chaos.point("engine")
        self._chaos.after()

    def remove_sas(self, names: Sequence[str]) -> list[SaCounters]:
        self._chaos.point("engine")
        removed = super().remove_sas(names)
        self._chaos.after()
        return removed

    def replace_policies(self, policies: Sequence[Policy]) -> None:
        self._chaos.point("engine")
        super().replace_policies(policies)
        self._chaos.after()

    def advanced_replay_floors(self) -> dict[str, int]:
        self._chaos.point("engine")
        return super().advanced_replay_floors()

    def extend_lease(self, name: str, lease: Lease) -> None:
        self._chaos.point("engine")
        super().extend_lease(name, lease)


class ChaosKernel(FakeKernel):
    def __init__(self, chaos: Chaos) -> None:
        super().__init__()
        self._chaos = chaos
        self.mtus: dict[IPAddress, int | None] = {}

    async def observe(self) -> Network:
        await self._chaos.slow_point("kernel")
        return self.network

    async def host(self, fwmark: int) -> Host:
        await self._chaos.slow_point("kernel")
        return self.there

    async def path_mtu(self, remote: IPAddress, fwmark: int) -> int | None:
        await self._chaos.slow_point("kernel")
        return self.mtus.get(remote, 1500)

    async def apply(self, wanted: Sequence[changes.NetworkChange]) -> None:
        for change in wanted:
            await self._chaos.slow_point("kernel")
            self._execute(change)
            self._chaos.after()


class ChaosLedger:
    """A ledger whose leases never overlap; `floors` and `ceilings` are those on disk."""

    path = Path("/nonexistent/ledger.db")

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self._next: dict[KeyMaterial, int] = {}
        self.floors: dict[KeyMaterial, int] = {}
        self.ceilings: dict[KeyMaterial, int] = {}

    async def lease(self, sa: Sa) -> Lease:
        (lease,), _ = await self.begin([sa], [])
        return lease

    async def begin(
        self, outbound: Sequence[Sa], inbound: Sequence[Sa]
    ) -> tuple[list[Lease], list[Reception]]:
        await self._chaos.slow_point("ledger")
        leases = []
        for sa in outbound:
            assert sa.direction is Direction.OUTBOUND
            first = self._next.get(sa.keymat, 1)
            leases.append(Lease(first, first + 1000))
            self._next[sa.keymat] = first + 1000
        return leases, [self._begin(sa.keymat) for sa in inbound]

    def _begin(self, key: KeyMaterial) -> Reception:
        floor = self.floors.get(key, 0)
        fence = max(floor, self.ceilings.get(key, 0))
        self.ceilings[key] = max(fence, floor + MIN_MARGIN)
        return Reception(floor, fence, self.ceilings[key])

    async def end(
        self,
        leases: Sequence[tuple[KeyMaterial, Lease, int]],
        floors: Sequence[tuple[KeyMaterial, int]],
        ceilings: Sequence[tuple[KeyMaterial, int]] = (),
    ) -> None:
        await self._chaos.slow_point("ledger")
        for keymat, lease, seq in leases:
            if lease.end == self._next[keymat]:
                self._next[keymat] = max(seq, lease.first)
        for keymat, seq in floors:
            self.floors[keymat] = max(seq, self.floors.get(keymat, 0))
            self.ceilings[keymat] = max(self.floors[keymat], self.ceilings.get(keymat, 0))
        for keymat, ceiling in ceilings:
            self.ceilings[keymat] = max(ceiling, self.floors.get(keymat, 0))

    async def close(self) -> None: ...


class ChaosStore:
    """The CLI's file; a failing save may have replaced it already, as one whose sync fails."""

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self.state = StoredState()

    def load(self) -> StoredState:
        return self.state

    def save(self, state: StoredState) -> None:
        former = self.state
        self.state = state
        try:
            self._chaos.point("store")
        except RuntimeError:
            self.state = former
            raise


class ChaosGuard:
    """The guard's plan on disk."""

    is_opened = False

    def __init__(self, chaos: Chaos) -> None:
        self._chaos = chaos
        self.plan: Desired | None = None

    def last(self) -> Desired | None:
        return self.plan

    def remember(self, desired: Desired) -> None:
        self._chaos.point("plan")
        self.plan = desired
