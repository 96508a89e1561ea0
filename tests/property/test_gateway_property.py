"""The gateway under requests, events, failures and jumps of the clock, in any order.

At rest the state is that of the last request that succeeded, and at no moment is a prefix that is
protected before and after without its rule and route, or a policy without its SA.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from esp_gw.config.added import (
    Store,
    StoredState,
    parse_policy_entry,
    parse_sa_entry,
    without_conflicts,
)
from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller
from esp_gw.crypto.advice import Advice
from esp_gw.daemon import service as service_module
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.reconcile import outer_sockets
from esp_gw.daemon.service import Service
from esp_gw.desired import Desired
from esp_gw.engine.base import LeaseLow, PathMtuChanged, PeerAddressChanged
from esp_gw.ledger.thread import LedgerThread
from esp_gw.model import NO_AES, Action, Direction, IPNetwork
from esp_gw.network.guard import GuardState
from esp_gw.network.objects import MAIN_TABLE, Host, RouteKind
from esp_gw.network.plan import plan_guard, plan_network
from tests.support.builders import bypass, desired, make_sa, protect, selector
from tests.support.chaos import Chaos, ChaosEngine, ChaosGuard, ChaosKernel, ChaosLedger, ChaosStore
from tests.support.requests import policy, sa
from tests.support.virtual_time import run_virtually

ROOT = Caller(1, 0, 0)
PEERS = [ip_address(f"192.0.2.{number}") for number in (2, 3, 4)]
HOSTS = [
    Host(),
    Host(frozenset({ip_address("10.1.0.1")})),
    Host(connected=frozenset({selector(remote="10.2.0.128/25").remote})),
]

OUT = make_sa("t/out", Direction.OUTBOUND, 0x1001, pair="t/in")
IN = make_sa("t/in", Direction.INBOUND, 0x1002, pair="t/out")
OTHER = selector("10.1.9.0/24", "10.2.9.0/24")
MORE = make_sa("m/out", Direction.OUTBOUND, 0x1003, OTHER, remote="192.0.2.3")
MORE_IN = make_sa("m/in", Direction.INBOUND, 0x1004, OTHER, remote="192.0.2.3")
KEYED = replace(OUT, keymat=replace(OUT.keymat, salt=b"othr"), spi=0x1005)
KEYED_IN = replace(IN, keymat=replace(IN.keymat, salt=b"othr"), spi=0x1006)
ALSO = protect("m", "m/out", *MORE.selectors)
ONE = protect("t", "t/out", *OUT.selectors)
CONFIGS = [
    desired((OUT, IN), (ONE,)),
    desired((OUT, IN, MORE, MORE_IN), (ONE, ALSO)),
    desired((MORE, MORE_IN), (ALSO,)),
    desired((KEYED, KEYED_IN), (ONE,)),
    desired((replace(OUT, keepalive=9), replace(IN, replay_window=64)), (ONE,)),
    desired((OUT, IN), (bypass("b", selector("10.1.0.0/24", "10.2.0.7/32")), ONE)),
    desired((replace(OUT, local=ip_address("192.0.2.9")), IN, MORE), (ALSO, ONE)),
    desired(),
]


@dataclass(frozen=True)
class Reload:
    config: int


@dataclass(frozen=True)
class AddPolicy:
    number: int


@dataclass(frozen=True)
class DeletePolicy:
    number: int


@dataclass(frozen=True)
class AddSa:
    number: int


@dataclass(frozen=True)
class DeleteSa:
    number: int


Request = Reload | AddPolicy | DeletePolicy | AddSa | DeleteSa


@dataclass(frozen=True)
class Cancel:
    """The client of the last request goes away."""


@dataclass(frozen=True)
class Rest:
    """Nothing more happens or fails; the state is looked at."""


@dataclass(frozen=True)
class Fail:
    collaborator: str
    calls: int
    is_expected: bool


@dataclass(frozen=True)
class Wait:
    seconds: float


@dataclass(frozen=True)
class Slow:
    seconds: float


@dataclass(frozen=True)
class PathMtu:
    peer: int
    mtu: int


@dataclass(frozen=True)
class Route:
    """The kernel's own path MTU to a peer changes, or its route goes."""

    peer: int
    mtu: int | None


@dataclass(frozen=True)
class PeerMoves:
    peer: int


@dataclass(frozen=True)
class Lease:
    pass


@dataclass(frozen=True)
class Traffic:
    packets: int


@dataclass(frozen=True)
class Addresses:
    host: int


@dataclass(frozen=True)
class Vandal:
    """Another program removes a rule of the gateway."""


Step = (
    Request
    | Cancel
    | Rest
    | Fail
    | Wait
    | Slow
    | PathMtu
    | Route
    | PeerMoves
    | Lease
    | Traffic
    | Addresses
    | Vandal
)

numbers = st.integers(0, 1)
configs = st.integers(0, len(CONFIGS) - 1)
requests = (
    st.builds(Reload, configs)
    | st.builds(AddPolicy, numbers)
    | st.builds(DeletePolicy, numbers)
    | st.builds(AddSa, numbers)
    | st.builds(DeleteSa, numbers)
)
events = (
    st.builds(PathMtu, numbers, st.sampled_from([600, 1200, 1400]))
    | st.builds(Route, numbers, st.sampled_from([1280, 1500, None]))
    | st.builds(PeerMoves, numbers)
    | st.builds(Lease)
    | st.builds(Traffic, st.integers(1, 900))
    | st.builds(Addresses, st.integers(0, len(HOSTS) - 1))
    | st.builds(Vandal)
)
failures = st.builds(Fail, st.just("kernel"), st.integers(2, 10), st.booleans()) | st.builds(
    Fail, st.sampled_from(["engine", "ledger", "store", "plan"]), st.integers(0, 1), st.booleans()
)
additions = st.builds(AddPolicy, st.integers(0, 5)) | st.builds(AddSa, st.integers(0, 5))
times = st.builds(Wait, st.sampled_from([0, 0.001, 0.02, 1, 5, 61, 700])) | st.builds(
    Slow, st.sampled_from([0, 0.001, 0.3])
)
acts = (
    requests.map(lambda request: [request])
    | st.tuples(failures, st.builds(Reload, configs) | additions).map(list)
    | st.tuples(failures, st.builds(Reload, configs) | additions, st.just(Wait(1))).map(list)
    | events.map(lambda event: [event])
    | times.map(lambda time: [time])
    | st.just([Cancel()])
    | st.just([Rest()])
)
scripts = st.lists(acts, min_size=8, max_size=20).map(
    lambda lists: [s for each in lists for s in each]
)


@dataclass(frozen=True)
class Model:
    """The state that requests have asked for."""

    config: int
    sas: tuple[int, ...] = ()
    policies: tuple[int, ...] = ()

    def after(self, request: Request) -> Model:
        match request:
            case Reload(config):
                return replace(self, config=config)
            case AddPolicy(number):
                return replace(self, policies=(*self.policies, number))
            case DeletePolicy(number):
                return replace(self, policies=tuple(n for n in self.policies if n != number))
            case AddSa(number):
                return replace(self, sas=(*self.sas, number))
            case DeleteSa(number):
                return replace(self, sas=tuple(n for n in self.sas if n != number))

    @property
    def stored(self) -> StoredState:
        return StoredState(
            tuple(parse_sa_entry(sa(number)) for number in self.sas),
            tuple(parse_policy_entry(policy(number)) for number in self.policies),
        )

    @property
    def desired(self) -> Desired:
        return without_conflicts(CONFIGS[self.config], self.stored)[0]


@dataclass
class World:
    """A gateway with its service, and the requests in the order in which they were made."""

    chaos: Chaos = field(default_factory=Chaos)
    asked: list[tuple[Request, asyncio.Task[Any]]] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    models: set[Model] = field(default_factory=lambda: {Model(0)})
    faults: list[str] = field(default_factory=list)
    is_disturbed: bool = False

    def __post_init__(self) -> None:
        self.engine, self.kernel = ChaosEngine(self.chaos), ChaosKernel(self.chaos)
        self.store, self.guard = ChaosStore(self.chaos), ChaosGuard(self.chaos)
        self.failed: list[str] = []
        self.ledger = ChaosLedger(self.chaos)
        self.gateway = Gateway(
            lambda: self.engine,
            self.kernel,
            cast(LedgerThread, self.ledger),
            cast(GuardState, self.guard),
            self.failed.append,
        )
        self.service = Service(
            self.gateway,
            Health(self.gateway, list),
            Path("gateway.yaml"),
            CONFIGS[0],
            cast(Store, self.store),
            Advice(NO_AES, lambda suites, in_kernel: {}),
        )
        self.targets: list[Desired] = []
        request = self.gateway._request

        async def watched(wanted: Desired, record: Any) -> list[str]:
            self.targets = [self.gateway._wanted, wanted]
            before = self.chaos.failures
            try:
                return await request(wanted, record)
            except Exception:
                # With a second failure, the return to the former state has failed.
                if self.chaos.failures == before + 1:
                    self.check_unchanged()
                raise

        self.gateway._request = watched  # type: ignore[method-assign]

    def load(self, path: Path) -> Desired:
        """Read the configuration of the reload whose turn it is."""
        return CONFIGS[self.files.pop(0)]

    async def play(self, script: list[Step]) -> None:
        await self.gateway.start(self.service.desired())
        self.chaos.after = self.check
        for step in (*script, Rest()):
            await self.do(step)
        await self.gateway.stop()
        assert self.engine.sas == {}
        guarded = plan_guard(self.gateway._wanted, self.kernel.there)
        assert replace(self.kernel.network, mtu=0, addresses=frozenset()) == replace(
            guarded, routes=guarded.routes | tun_routes(self.kernel.network)
        )

    async def rest(self) -> None:
        await asyncio.gather(*(task for _, task in self.asked), return_exceptions=True)
        await asyncio.sleep(1)
        self.chaos.armed.clear()
        if None in self.kernel.mtus.values():
            # The gateway keeps the last path MTU meanwhile.
            self.kernel.mtus = {peer: mtu or 1500 for peer, mtu in self.kernel.mtus.items()}
            self.kernel.events.release()
        await asyncio.sleep(2000)
        self.is_disturbed = False
        self.check()
        assert self.faults == []
        self.assert_settled()

    async def do(self, step: Step) -> None:
        match step:
            case Cancel():
                if self.asked:
                    self.asked[-1][1].cancel()
            case Rest():
                await self.rest()
            case Fail(name, calls, is_expected):
                self.chaos.arm(name, calls, expected=is_expected)
            case Wait(seconds):
                await asyncio.sleep(seconds)
            case Slow(seconds):
                self.chaos.delay = seconds
            case PathMtu(peer, mtu):
                self.engine.tell(PathMtuChanged(PEERS[peer], mtu))
            case Route(peer, mtu):
                self.kernel.mtus[PEERS[peer]] = mtu
                self.kernel.events.release()
            case PeerMoves(peer):
                if "t/out" in self.engine.sas:
                    self.engine.peers["t/out"] = PEERS[peer]
                    self.engine.tell(PeerAddressChanged("t/out", PEERS[peer], 4500))
            case Lease():
                for name, sa in self.engine.sas.items():
                    if sa.direction is Direction.OUTBOUND:
                        self.engine.tell(LeaseLow(name))
            case Traffic(packets):
                for name, sa in self.engine.sas.items():
                    if sa.direction is Direction.INBOUND:
                        self.engine.receive(name, packets)
            case Addresses(host):
                self.kernel.there = HOSTS[host]
                self.kernel.events.release()
            case Vandal():
                self.is_disturbed = True
                rules = sorted(self.kernel.network.rules, key=str)[1:]
                self.kernel.network = replace(self.kernel.network, rules=frozenset(rules))
                self.kernel.events.release()
            case _:
                self.ask(step)
        # One turn of the loop, so that requests begin in the order in which they are made.
        await asyncio.sleep(0)

    def ask(self, request: Request) -> None:
        match request:
            case Reload(config):
                self.files.append(config)
                work = self._call("Reload")
            case AddPolicy(number):
                work = self._call("AddPolicy", **policy(number))
            case DeletePolicy(number):
                work = self._call("DeletePolicy", name=f"p{number}")
            case AddSa(number):
                work = self._call("AddSa", **sa(number))
            case DeleteSa(number):
                work = self._call("DeleteSa", name=f"n{number}")
        self.asked.append((request, asyncio.ensure_future(work)))

    async def _call(self, method: str, **parameters: object) -> object:
        return await self.service.handlers()[PREFIX + method](parameters, ROOT)

    def check(self) -> None:
        """Check what holds at every moment."""
        for entry in self.engine.policies:
            if not set(entry.sas) <= self.engine.sas.keys():
                self.faults.append(f"the policy {entry.name} without its SA")
        if self.is_disturbed:
            return
        network = self.kernel.network
        rules = {(rule.version, rule.table) for rule in network.rules if rule.table != MAIN_TABLE}
        closed = {
            route.destination
            for route in network.routes
            if route.is_guard and (route.destination.version, route.table) in rules
        }
        targets = [*self.targets, self.gateway._wanted]
        if opened := set.intersection(*map(protected, targets)) - closed:
            self.faults.append(f"open: {opened}")

    def check_unchanged(self) -> None:
        """Check that a failed request has left the state of the last one that succeeded."""
        wanted = self.gateway._wanted
        there = {sa.name: sa for sa in self.engine.sas.values() if "~" not in sa.name}
        if there != {sa.name: sa for sa in wanted.sas} or self.engine.policies != wanted.policies:
            self.faults.append(f"a failed request changed the engine from {wanted}")
        if not self.is_disturbed and protected(wanted) != {
            route.destination for route in self.kernel.network.routes if route.is_guard
        }:
            self.faults.append(f"a failed request changed the routes from {wanted}")

    def assert_settled(self) -> None:
        """Check that the state is one that the requests have led to."""
        models = self.models
        for request, task in self.asked:
            if task.cancelled():
                # Nobody was told; it may have been carried out.
                models |= {model.after(request) for model in models}
            elif task.exception() is None:
                models = {model.after(request) for model in models}
        # Only some of them are possible: an addition that exists already is refused.
        reached = [m for m in models if m.desired == self.gateway._wanted]
        note(f"models {models}")
        assert reached, f"wanted is none of {models}"
        self.models = {model for model in reached if model.stored == self.store.state}
        assert self.models, "stored is something else"
        self.asked.clear()
        wanted = self.gateway._wanted
        assert self.engine.policies == wanted.policies
        assert {name: self.engine.sas[name] for name in self.engine.sas} == {
            sa.name: sa for sa in wanted.sas
        }
        assert self.engine.sockets == outer_sockets(wanted)
        assert self.kernel.network == plan_network(
            self.at_their_places(wanted),
            {peer: max(self.kernel.mtus.get(peer, 1500), 1280) for peer in PEERS},
            self.kernel.there,
        )
        assert self.guard.plan == wanted
        self.assert_ceilings()
        assert self.failed == []
        assert [text for text in self.gateway.warnings if "fails" in text] == []

    def assert_ceilings(self) -> None:
        """Check that nothing was received above a ceiling on disk, nor below a fence that moves."""
        for name, there in self.engine.sas.items():
            if there.direction is Direction.INBOUND:
                received = self.engine.used.get(name, self.engine.floors[name])
                assert received <= self.ledger.ceilings[there.keymat]
                assert self.engine.notices[name] < self.ledger.ceilings[there.keymat]

    def at_their_places(self, wanted: Desired) -> Desired:
        peers = self.engine.peers
        sas = tuple(replace(sa, remote=peers.get(sa.name, sa.remote)) for sa in wanted.sas)
        return replace(wanted, sas=sas)


def protected(wanted: Desired) -> set[IPNetwork]:
    return {
        selector.remote
        for entry in wanted.policies
        if entry.action is not Action.BYPASS
        for selector in entry.selectors
    }


def tun_routes(network: Any) -> frozenset[Any]:
    """Return the routes that the kernel removes with the TUN, which the fake keeps."""
    return frozenset(route for route in network.routes if route.kind is RouteKind.TUN)


@pytest.mark.timeout(600)
@given(scripts)
@settings(max_examples=40, deadline=None)
def test_the_state_at_rest_is_that_of_the_last_request_that_succeeded(script: list[Step]) -> None:
    world = World()
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(service_module, "load_config", world.load))
        run_virtually(world.play(script))
