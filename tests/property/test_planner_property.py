"""A plan that follows what changes is the plan of the whole, and so is the filter's difference."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import NetworkError
from esp_gw.model import Action, Direction, Mode, Policy, Sa, Selector
from esp_gw.network.changes import network_changes
from esp_gw.network.firewall import Firewall
from esp_gw.network.objects import Host, Network
from esp_gw.network.plan import plan_network
from esp_gw.network.planner import Planner
from esp_gw.network.ruleset import difference
from tests.support.builders import make_sa

REMOTES = [
    *(ip_network(f"10.{number}.0.0/16") for number in range(2, 8)),
    # Neighbours, one inside another, one that a local network is in, and everything.
    *(ip_network(text) for text in ("10.8.0.0/15", "10.10.0.0/16", "10.2.3.0/24")),
    *(ip_network(text) for text in ("10.1.0.0/16", "192.0.2.0/24", "0.0.0.0/0")),
    *(ip_network(text) for text in ("fd00:2::/64", "fd00:3::/64", "fd00:2::/32")),
]
LOCALS = {
    4: [ip_network(text) for text in ("10.1.0.0/24", "0.0.0.0/0", "10.1.0.0/24", "10.3.1.0/24")],
    6: [ip_network(text) for text in ("fd00:1::/64", "::/0")],
}
HOSTS = [
    Host(frozenset({ip_address("192.0.2.1")}), frozenset({ip_network("192.0.2.0/24")})),
    Host(
        frozenset(map(ip_address, ("192.0.2.1", "10.1.0.1", "fd00:1::1"))),
        frozenset(map(ip_network, ("192.0.2.0/24", "10.1.0.0/24"))),
        routers=frozenset({ip_address("10.5.0.1")}),
    ),
    Host(frozenset({ip_address("10.1.0.1")}), versions=frozenset({4})),
]
PEERS = [ip_address("192.0.2.9"), ip_address("198.51.100.7"), ip_address("203.0.113.4")]


@st.composite
def entries(draw: st.DrawFn) -> tuple[Policy, Sa | None]:
    """A policy with one selector, and its SA."""
    remote = draw(st.sampled_from(REMOTES))
    local = draw(st.sampled_from(LOCALS[remote.version]))
    action = draw(st.sampled_from([Action.PROTECT] * 6 + [Action.DISCARD, Action.BYPASS]))
    number = draw(st.integers(0, 7))
    selectors = (Selector(local, remote),)
    if action is not Action.PROTECT or draw(st.integers(0, 3)) == 0:
        return Policy(f"p{number}", action, selectors), None
    sa = make_sa(f"s{number}", Direction.OUTBOUND, 0x1000 + number, *selectors)
    peer = draw(st.sampled_from(PEERS))
    mode = draw(st.sampled_from([Mode.TUNNEL, Mode.TUNNEL, Mode.TRANSPORT]))
    sa = replace(sa, remote=peer, mode=mode)
    return Policy(f"p{number}", action, selectors, sas=(sa.name,)), sa


def made(there: dict[str, tuple[Policy, Sa | None]], settings_: GatewaySettings) -> Desired:
    spd = [there[name] for name in sorted(there)]
    sas = tuple(sa for _, sa in spd if sa is not None)
    return Desired(settings_, sas=sas, policies=tuple(policy for policy, _ in spd))


def planned(desired: Desired, mtus: dict[object, int], host: Host) -> Network | None:
    try:
        return plan_network(desired, mtus, host)  # type: ignore[arg-type]
    except NetworkError:
        return None


steps = st.lists(st.lists(entries() | st.integers(0, 7), min_size=1, max_size=2), max_size=14)


@given(
    steps,
    st.sampled_from(HOSTS),
    st.sampled_from(["auto", "off"]),
    st.sampled_from([(), ("10.1.0.1",), ("10.1.0.1", "fd00:1::1")]),
)
@settings(max_examples=150, deadline=None)
def test_a_plan_that_follows_is_the_plan_of_the_whole(
    steps: list[list[tuple[Policy, Sa | None] | int]],
    host: Host,
    firewall: str,
    addresses: tuple[str, ...],
) -> None:
    own = tuple(map(ip_address, addresses))
    common = GatewaySettings(firewall=firewall, addresses=own)
    mtus: dict[object, int] = {PEERS[0]: 1500, PEERS[1]: 1400}
    planner, there = Planner(), {}
    for step in steps:
        for each in step:
            if isinstance(each, int):
                there.pop(f"p{each}", None)
            else:
                there[each[0].name] = each
        desired = made(there, common)
        wanted = planned(desired, mtus, host)
        try:
            found = planner.plan(desired, mtus, host, 0)  # type: ignore[arg-type]
        except NetworkError:
            assert wanted is None
            continue
        assert found == wanted


def test_policies_that_stand_apart_are_planned_by_themselves() -> None:
    planner, host, common = Planner(), HOSTS[0], GatewaySettings()
    there: dict[str, tuple[Policy, Sa | None]] = {}
    wholes = []
    before = Network(mtu=1500)
    for number in (*range(30), *range(29, 3, -1)):
        name = f"p{number:02}"
        if name in there:
            del there[name]
        else:
            pair = Selector(ip_network("10.1.0.0/24"), ip_network(f"10.20.{2 * number}.0/24"))
            sa = make_sa(f"s{number}", Direction.OUTBOUND, 0x1000 + number, pair)
            there[name] = Policy(name, Action.PROTECT, (pair,), sas=(sa.name,)), sa
        desired = made(there, common)
        network = planner.plan(desired, {}, host, 0)
        wholes.append(planner.is_whole)
        assert network == plan_network(desired, {}, host)
        # The kernel gets what is new or gone: two routes, and a range of the filter.
        if number > 1 and not wholes[-1]:
            assert len(network_changes(network, before)) == 3
            assert _difference(before.firewall, network.firewall) == 1
        before = network
    assert wholes[0] and not any(wholes[1:])
    # Another path MTU, another host: all is looked at.
    planner.plan(desired, {}, host, 1)
    assert planner.is_whole
    planner.plan(desired, {}, HOSTS[1], 1)
    assert planner.is_whole


def _difference(before: Firewall | None, after: Firewall | None) -> int:
    assert before is not None
    assert after is not None
    transaction = difference(before, after)
    assert transaction is not None
    (command,) = transaction["nftables"]
    (body,) = command.values()
    return len(body["element"]["elem"])
