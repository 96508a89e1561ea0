"""Reconciliation between any two states, on a model of engine and kernel checked at each step.

The model refuses operations that the real ones refuse, and unsafe ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from itertools import groupby

from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.daemon.reconcile import (
    InstallSa,
    Observed,
    RemoveSa,
    ReplacePolicies,
    RetireSa,
    SetSockets,
    outer_sockets,
    reconcile,
)
from esp_gw.desired import Desired
from esp_gw.engine.base import OuterSocket
from esp_gw.model import Action, Direction, Encapsulation, IPAddress, IPNetwork, Policy, Sa
from esp_gw.network.changes import (
    AddAddress,
    AddRoute,
    AddRule,
    Change,
    RemoveAddress,
    RemoveFirewall,
    RemoveRoute,
    RemoveRule,
    ReplaceFirewall,
    SetMtu,
)
from esp_gw.network.firewall import Firewall
from esp_gw.network.objects import MAIN_TABLE, Host, Network, Route, RouteKind, Rule
from esp_gw.network.plan import plan_network
from tests.support.builders import desired, make_sa, selector

HOST = frozenset({ip_address("192.0.2.1"), ip_address("10.1.0.1")})
RouteKey = tuple[RouteKind, IPNetwork, int]


@dataclass
class World:
    """An engine and a kernel that apply one change at a time."""

    sas: dict[str, Sa] = field(default_factory=dict)
    policies: tuple[Policy, ...] = ()
    sockets: frozenset[OuterSocket] = frozenset()
    mtu: int = 1500
    addresses: set[IPAddress] = field(default_factory=set)
    routes: dict[RouteKey, Route] = field(default_factory=dict)
    rules: set[Rule] = field(default_factory=set)
    firewall: Firewall | None = None
    retired: dict[str, str] = field(default_factory=dict)

    def observed(self) -> Observed:
        network = Network(
            self.mtu,
            frozenset(self.addresses),
            frozenset(self.routes.values()),
            frozenset(self.rules),
            self.firewall,
        )
        return Observed(dict(self.sas), self.policies, self.sockets, network, dict(self.retired))

    def apply(self, run: Sequence[Change]) -> None:
        """Apply changes of one step: SAs are installed together, anything else one by one."""
        installs = [change for change in run if isinstance(change, InstallSa)]
        if installs:
            self._install(installs)
            self.check()
            return
        for change in run:
            self._apply_one(change)
            self.check()

    def _install(self, run: Sequence[InstallSa]) -> None:
        after = dict(self.sas)
        for change in run:
            if change.moves is not None:
                old = after.pop(change.moves)
                assert (old.keymat, old.direction) == (change.sa.keymat, change.sa.direction)
                if change.sa.name != change.moves:
                    self.retired.pop(change.moves, None)
            if change.retires is not None:
                old = after.pop(change.retires.name)
                # Nothing is sent by an outbound one any more.
                if old.direction is Direction.INBOUND:
                    name = f"{old.name}~{old.spi:#x}"
                    assert name not in after
                    after[name] = replace(old, name=name, selectors=change.sa.selectors)
                    self.retired[name] = change.sa.name
        for change in run:
            assert change.sa.name not in after
            after[change.sa.name] = change.sa
        self.sas = after

    def _apply_one(self, step: Change) -> None:
        match step:
            case AddRoute(route):
                assert route.source is None or route.source in HOST | self.addresses
                self.routes[route.kind, route.destination, route.table] = route
            case RemoveRoute(route):
                del self.routes[route.kind, route.destination, route.table]
            case AddRule(rule):
                assert rule not in self.rules
                self.rules.add(rule)
            case RemoveRule(rule):
                self.rules.remove(rule)
            case ReplaceFirewall(firewall):
                self.firewall = firewall
            case RemoveFirewall():
                self.firewall = None
            case AddAddress(address):
                assert address not in self.addresses
                self.addresses.add(address)
            case RemoveAddress(address):
                self.addresses.remove(address)
                # The kernel removes the routes with this source, too, unless the host still has it.
                for key, route in list(self.routes.items()):
                    if route.source == address and address not in HOST:
                        del self.routes[key]
            case SetMtu(mtu):
                self.mtu = mtu
            case SetSockets(sockets):
                self.sockets = sockets
            case RemoveSa(name):
                del self.sas[name]
                self.retired.pop(name, None)
            case RetireSa(sa, heir):
                old = self.sas.pop(sa.name)
                name = f"{old.name}~{old.spi:#x}"
                self.sas[name] = replace(old, name=name)
                self.retired[name] = heir
            case ReplacePolicies(policies):
                self.policies = policies

    def check(self) -> None:
        """Check the invariants of every step."""
        spis = [sa.spi for sa in self.sas.values() if sa.direction is Direction.INBOUND]
        assert len(set(spis)) == len(spis), "two inbound SAs with one SPI"
        for sa in self.sas.values():
            assert OuterSocket(sa.local, sa.encapsulation) in self.sockets, "an SA without a socket"

    def served(self) -> set[str]:
        """Installed outbound SAs that are named by installed policies."""
        return {
            name
            for policy in self.policies
            for name in policy.sas
            if name in self.sas and self.sas[name].direction is Direction.OUTBOUND
        }

    def guarded(self) -> set[tuple[IPNetwork, IPNetwork | None]]:
        """Prefixes that a rule leads to and that are routed to the TUN or unreachable."""
        return {
            (destination, rule.source)
            for _, destination, table in self.routes
            for rule in self.rules
            if rule.table == table != MAIN_TABLE and rule.version == destination.version
        }


# Few names, SPIs, addresses and prefixes, so that tunnels collide

NAMES = ["a", "b", "c"]
REMOTES = ["10.2.0.0/24", "10.3.0.0/16", "10.3.1.0/24", "0.0.0.0/0", "fd00:2::/64", "::/0"]
LOCALS = {4: ["10.1.0.0/24", "0.0.0.0/0"], 6: ["fd00:1::/64", "::/0"]}


@st.composite
def states(draw: st.DrawFn) -> Desired:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    spis = iter(draw(st.permutations(range(300, 309))))
    keys = iter(draw(st.permutations(range(1, 10))))
    sas: list[Sa] = []
    policies: list[Policy] = []
    for name in names:
        remote = draw(st.sampled_from(REMOTES))
        local = draw(st.sampled_from(LOCALS[ip_network(remote).version]))
        traffic = selector(local, remote)
        outer = draw(st.sampled_from(["192.0.2.1", "192.0.2.7"]))
        encapsulation = draw(st.sampled_from(Encapsulation))
        both = [Direction.OUTBOUND, Direction.INBOUND]
        ends = draw(st.permutations(both + draw(st.sampled_from([[], both[:1]]))))
        made = [
            make_sa(
                f"{name}/{number}",
                direction,
                next(spis),
                traffic,
                key=next(keys),
                local=outer,
                encapsulation=encapsulation,
            )
            for number, direction in enumerate(ends)
        ]
        sas += made
        outbound = tuple(sa.name for sa in made if sa.direction is Direction.OUTBOUND)
        policies.append(Policy(name, Action.PROTECT, (traffic,), sas=outbound))
    for number in range(draw(st.integers(0, 2))):
        action = draw(st.sampled_from([Action.BYPASS, Action.DISCARD]))
        remote = draw(st.sampled_from(REMOTES))
        local = LOCALS[ip_network(remote).version][0]
        policies.insert(0, Policy(f"p{number}", action, (selector(local, remote),)))
    addresses = draw(st.lists(st.sampled_from(["10.1.0.2", "fd00:1::2"]), unique=True))
    return desired(
        tuple(sas),
        tuple(policies),
        addresses=tuple(map(ip_address, addresses)),
        mtu=draw(st.sampled_from([None, 1300])),
    )


def plan(wanted: Desired, path_mtu: int = 1500) -> Network:
    return plan_network(wanted, {sa.remote: path_mtu for sa in wanted.sas}, Host(HOST))


def steps(world: World, wanted: Desired, path_mtu: int = 1500) -> list[list[Change]]:
    """Return the changes, those of SAs that are installed together in one list."""
    changes = reconcile(wanted, plan(wanted, path_mtu), world.observed())
    groups = groupby(changes, lambda c: c.step if isinstance(c, InstallSa) else id(c))
    return [list(group) for _, group in groups]


def assert_reached(world: World, wanted: Desired, network: Network) -> None:
    assert world.sas == {sa.name: sa for sa in wanted.sas}
    assert world.policies == wanted.policies
    assert world.sockets == outer_sockets(wanted)
    assert world.observed().network == network


def go(world: World, wanted: Desired, path_mtu: int = 1500) -> None:
    """Carry out a reconciliation; check after every step that nothing is lost in between."""
    network = plan(wanted, path_mtu)
    goal = World(rules=set(network.rules))
    goal.routes = {(r.kind, r.destination, r.table): r for r in network.routes}
    goal.sas = {sa.name: sa for sa in wanted.sas}
    goal.policies = wanted.policies
    guarded = world.guarded() & goal.guarded()
    served = world.served() & goal.served()
    routed = {route.destination for route in world.routes.values() if route.kind is RouteKind.TUN}
    routed &= {route.destination for route in network.routes}
    for run in steps(world, wanted, path_mtu):
        step = run[0]
        if isinstance(step, AddRoute) and step.route.kind is RouteKind.TUN:
            assert is_guarded(world, step.route), "routed into the TUN with no guard behind it"
        if isinstance(step, ReplacePolicies):
            assert {name for p in step.policies for name in p.sas} <= world.sas.keys()
        world.apply(run)
        assert guarded <= world.guarded(), "a wanted prefix was neither guarded nor in the TUN"
        assert served <= world.served(), "a policy in place lost its SA"
        assert routed <= {
            route.destination for route in world.routes.values() if route.kind is RouteKind.TUN
        }, "a wanted prefix left the TUN"
        guarded |= world.guarded() & goal.guarded()
        served |= world.served() & goal.served()
    # The grace times are over.
    world.retired.clear()
    for run in steps(world, wanted, path_mtu):
        world.apply(run)
    assert_reached(world, wanted, network)


def is_guarded(world: World, route: Route) -> bool:
    guards = [
        destination
        for kind, destination, table in world.routes
        if kind is RouteKind.UNREACHABLE
        and table == route.table
        and destination.version == route.destination.version
        and destination.supernet_of(route.destination)  # type: ignore[arg-type]
    ]
    return bool(guards) and any(rule.table == route.table for rule in world.rules)


@given(states(), states(), st.sampled_from([1400, 1500]))
@settings(max_examples=150, deadline=None)
def test_every_state_is_reached_from_any_other(
    before: Desired, after: Desired, path_mtu: int
) -> None:
    world = World()
    go(world, before)
    go(world, after, path_mtu)
    assert steps(world, after, path_mtu) == []
    go(world, desired())


@given(states(), states(), states(), st.integers(0, 30))
@settings(max_examples=100, deadline=None)
def test_an_interrupted_change_does_not_harm_the_next(
    before: Desired, given_up: Desired, after: Desired, count: int
) -> None:
    world = World()
    go(world, before)
    for run in steps(world, given_up)[:count]:
        world.apply(run)
    go(world, after)


@given(states(), states())
@settings(max_examples=100, deadline=None)
def test_unchanged_parts_appear_in_no_change(before: Desired, after: Desired) -> None:
    world = World()
    go(world, before)
    old, new = world.observed(), plan(after)
    same_sas = {sa.name for sa in after.sas if old.sas.get(sa.name) == sa}
    same_routes = old.network.routes & new.routes
    same_rules = old.network.rules & new.rules
    same_addresses = old.network.addresses & new.addresses
    for step in (step for run in steps(world, after) for step in run):
        match step:
            case InstallSa(sa):
                assert sa.name not in same_sas
            case RemoveSa(name):
                assert name not in same_sas
            case AddRoute(route) | RemoveRoute(route):
                assert route not in same_routes
            case AddRule(rule) | RemoveRule(rule):
                assert rule not in same_rules
            case AddAddress(address) | RemoveAddress(address):
                assert address not in same_addresses
            case ReplaceFirewall(firewall):
                assert firewall != old.network.firewall
            case RemoveFirewall():
                assert new.firewall != old.network.firewall
            case SetMtu(mtu):
                assert mtu != old.network.mtu
            case ReplacePolicies(policies):
                assert policies != old.policies
            case SetSockets(sockets):
                assert sockets != old.sockets


@given(states())
@settings(max_examples=50, deadline=None)
def test_prefixes_of_a_killed_run_are_guarded_until_routed_to_the_tun(wanted: Desired) -> None:
    """The TUN's routes and addresses disappear with the process, as does the engine."""
    world = World()
    go(world, wanted)
    left = World(rules=world.rules, firewall=world.firewall)
    left.routes = {k: r for k, r in world.routes.items() if r.kind is RouteKind.UNREACHABLE}
    go(left, wanted)
