"""The way of a flow in steps, from each end's view, and the step that stops it."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.daemon.explaining import explain
from esp_gw.daemon.health import Condition
from esp_gw.daemon.steps import Scene
from esp_gw.engine.base import SaCounters
from esp_gw.model import Direction, Origin, Policy, PortRange, Sa, TunnelState
from esp_gw.network.flow import Flow
from esp_gw.network.route_lookup import Way
from esp_gw.network.survey import Survey
from tests.support.builders import bypass, discard, make_sa, protect, selector

HERE, HOST, FAR, ELSEWHERE = "10.1.0.1", "10.1.0.5", "10.2.0.7", "203.0.113.9"
TUN = Way(device="esp0", table=4500, mtu=1422)
LAN = Way(device="lan", table=254)
WAN = Way(device="wan", gateway=ip_address("192.0.2.9"), table=254)
LOCAL = Way(is_local=True, device="lo", table=255)
ROUTES = {HERE: LOCAL, HOST: LAN, FAR: TUN, ELSEWHERE: WAN}
OUT = make_sa("office/out", Direction.OUTBOUND, 0x1001, selector(), pair="office/in")
IN = make_sa("office/in", Direction.INBOUND, 0x1002, selector())
OFFICE = replace(protect("office", "office/out", selector()), tunnel="office")
UP = Condition(TunnelState.UP, 2.0, 1.0, ())


def scene(
    source: str,
    destination: str,
    *transport: int,
    policies: Sequence[Policy] = (OFFICE,),
    sas: Sequence[Sa] = (OUT, IN),
    condition: Condition = UP,
    lacking: Mapping[str, str] | None = None,
    remote: str = "192.0.2.2",
    **network: Any,
) -> Scene:
    """A gateway with a LAN behind it, whose kernel answers as ROUTES has it."""
    here, there = ip_address(source), ip_address(destination)
    protocol, port = (*transport, None, None)[:2]
    answers = Survey(
        to_source=ROUTES[source],
        to_destination=ROUTES[destination],
        out=ROUTES[destination],
        on=ROUTES[destination],
        back=ROUTES[source],
    )
    return Scene(
        flow=Flow(here, there, protocol, None, port),
        tun="esp0",
        policies=policies,
        sas={sa.name: sa for sa in sas},
        lacking=lacking or {},
        counters={sa.name: SaCounters(0, 0, 7, 0, ip_address(remote), 4500) for sa in sas},
        condition=lambda _name: condition,
        survey=replace(answers, **network),
    )


def story(*arguments: Any, **fields: Any) -> dict[str, Any]:
    return explain(scene(*arguments, **fields))


def stop(told: dict[str, Any]) -> tuple[str, str, str]:
    """The step that stops a flow, of which there is one."""
    assert told["verdict"] == "stopped"
    (step,) = [each for each in told["steps"] if each["state"] == "stop"]
    return step["what"], step["found"], step["todo"]


def subjects(told: dict[str, Any]) -> list[str]:
    return [each["what"] for each in told["steps"]]


def test_a_packet_of_this_host_goes_by_policy_route_firewall_sa_and_peer() -> None:
    told = story(HERE, FAR)
    assert told["verdict"] == "carried"
    assert (told["policy"], told["tunnel"], told["sas"], told["mtu"]) == (
        *("office", "office", ["office/out"], 1422),
    )
    assert told["directions"] == ["outbound"]
    assert subjects(told) == ["policy", "route", "firewall", "sa", "peer", "mtu"]
    found = {each["what"]: each["found"] for each in told["steps"]}
    assert found["policy"] == "office: protect 10.1.0.0/24 - 10.2.0.0/24"
    assert found["route"] == "into esp0, by table 4500"
    assert found["sa"].startswith("office/out, SPI 0x00001001, aes128gcm16, tunnel mode, in UDP")
    assert found["peer"] == "192.0.2.2 port 4500, up, heard 2 s ago"
    assert found["mtu"] == "1422 bytes, a TCP MSS of 1382"


def test_a_packet_of_another_host_comes_by_the_interface_that_leads_back() -> None:
    told = story(HOST, FAR)
    assert told["verdict"] == "carried"
    assert told["steps"][0]["found"] == f"{HOST} is not of this host: it comes by lan"


def test_a_packet_from_behind_the_peer_has_to_come_by_an_sa() -> None:
    told = story(FAR, HERE, back=TUN)
    assert (told["verdict"], told["directions"]) == ("carried", ["inbound"])
    assert told["sas"] == ["office/in"]
    assert subjects(told) == ["policy", "sa", "peer", "route", "firewall"]
    assert "out of esp0 to this host" in told["steps"][3]["found"]
    told = story(FAR, HOST, back=TUN)
    assert told["verdict"] == "carried"
    assert "out of esp0, then by lan" in told["steps"][3]["found"]


def test_answers_that_leave_by_another_way_are_told() -> None:
    told = story(FAR, HERE, back=WAN)
    (step,) = [each for each in told["steps"] if each["what"] == "answers"]
    assert step["state"] == "warning"
    assert "they leave by wan via 192.0.2.9, not by esp0" in step["found"]
    lost = story(FAR, HERE, back=Way(error=errno.ENETUNREACH))
    assert stop(lost)[:2] == ("answers", f"they don't find back: there is no route to {FAR}")


def test_what_comes_by_a_tunnel_may_go_on_by_another() -> None:
    there = "10.3.0.9"
    ROUTES[there] = TUN
    hub = selector("10.2.0.0/24", "10.3.0.0/24")
    back = selector("10.3.0.0/24", "10.2.0.0/24")
    attic_out = make_sa("attic/out", Direction.OUTBOUND, 0x2001, hub)
    office_in = make_sa("office/in", Direction.INBOUND, 0x1002, back)
    told = story(
        FAR,
        there,
        policies=[protect("office", "office/out", back), protect("attic", "attic/out", hub)],
        sas=[OUT, office_in, attic_out],
        out=TUN,
    )
    assert told["verdict"] == "carried"
    assert told["directions"] == ["inbound", "outbound"]
    assert told["sas"] == ["office/in", "attic/out"]


def test_between_addresses_of_this_host_nothing_leaves() -> None:
    told = story(HERE, HERE)
    assert (told["verdict"], told["policy"], told["directions"]) == ("clear", None, [])


def test_what_no_policy_is_for_goes_in_the_clear() -> None:
    told = story(HERE, ELSEWHERE)
    assert (told["verdict"], told["policy"]) == ("clear", None)
    assert told["steps"][-1]["found"] == "in the clear by wan via 192.0.2.9"
    told = story(ELSEWHERE, HERE)
    assert told["verdict"] == "clear"
    assert "it comes in the clear" in told["steps"][0]["found"]


def test_a_bypass_goes_in_the_clear_unless_the_kernel_routes_it_into_the_tun() -> None:
    policies = [bypass("printer", selector("10.1.0.0/24", "10.2.0.7/32")), OFFICE]
    told = story(HERE, FAR, policies=policies, out=WAN)
    assert (told["verdict"], told["policy"]) == ("clear", "printer")
    what, found, _ = stop(story(HERE, FAR, policies=policies))
    assert what == "route"
    assert "dropped as policy-bypass" in found


def test_a_discard_names_what_lifts_it() -> None:
    policy = discard("no-smtp", selector())
    assert "take it out of the configuration" in stop(story(HERE, FAR, policies=[policy]))[2]
    added = replace(policy, origin=Origin.CLI)
    assert "'esp-gw policy delete no-smtp'" in stop(story(HERE, FAR, policies=[added]))[2]
    assert stop(story(FAR, HERE, policies=[policy]))[0] == "policy"


def test_a_source_outside_of_local_ts_is_told_what_the_policy_carries() -> None:
    ROUTES["10.9.0.1"] = LAN
    what, found, todo = stop(story("10.9.0.1", FAR))
    assert what == "policy"
    assert (
        "dropped as no-policy; office carries to 10.2.0.0/24 what comes from 10.1.0.0/24" in found
    )
    assert "add 10.9.0.1 to local_ts here and to remote_ts of the peer" in todo


def test_a_protocol_outside_of_the_selectors_is_told_what_they_are() -> None:
    policy = protect("web", "office/out", selector(protocol=6, remote_port=PortRange(443, 443)))
    _, found, todo = stop(story(HERE, FAR, 17, 53, policies=[policy]))
    assert "web carries 10.1.0.0/24 - 10.2.0.0/24 tcp remote port 443" in found
    assert "widen its selectors at both ends" in todo


def test_earlier_policies_for_a_part_of_what_is_not_said_are_named() -> None:
    smtp = discard("no-smtp", selector(protocol=6, remote_port=PortRange(25, 25)))
    told = story(HERE, FAR, policies=[smtp, OFFICE])
    assert told["verdict"] == "carried"
    assert "(first no-smtp: discard tcp remote port 25)" in told["steps"][0]["found"]
    assert stop(story(HERE, FAR, 6, 25, policies=[smtp, OFFICE]))[0] == "policy"
    assert story(HERE, FAR, 6, 80, policies=[smtp, OFFICE])["steps"][0]["found"].count("(") == 0


def test_a_network_that_this_host_is_connected_to_is_reached_without_the_tunnel() -> None:
    told = story(HERE, FAR, out=LAN, is_near=True)
    assert (told["verdict"], told["directions"]) == ("clear", [])
    assert "reached without the tunnel" in told["steps"][-1]["found"]


def test_a_route_of_another_program_is_found() -> None:
    what, found, todo = stop(story(HERE, FAR, out=WAN))
    assert what == "route"
    assert "by wan via 192.0.2.9, not into esp0" in found
    assert f"'ip route get {FAR}'" in todo
    # A point-to-point link has no router either.
    assert stop(story(HERE, FAR, out=Way(device="ppp0")))[0] == "route"


def test_a_host_that_does_not_forward_says_which_setting() -> None:
    for fields, name in (
        ({"forwards_nothing": True}, "net.ipv4.ip_forward"),
        ({}, "net.ipv4.conf.lan.forwarding"),
    ):
        told = story(HOST, FAR, unforwarded=frozenset({"lan"}), **fields)
        assert stop(told)[0] == "forward"
        assert stop(told)[2] == f"run 'sysctl -w {name}=1'"
    told = story(FAR, HOST, unforwarded=frozenset({"esp0"}), on=Way(error=errno.EHOSTUNREACH))
    assert stop(told)[2] == "run 'sysctl -w net.ipv4.conf.esp0.forwarding=1'"
    told = story(FAR, HOST, unforwarded=frozenset({"lan"}), back=Way(error=errno.EHOSTUNREACH))
    assert stop(told)[2] == "run 'sysctl -w net.ipv4.conf.lan.forwarding=1'"
    # Its own packets need no forwarding.
    assert story(HERE, FAR, unforwarded=frozenset({"lan", "esp0"}))["verdict"] == "carried"


def test_a_strict_reverse_path_filter_is_found() -> None:
    told = story(FAR, HERE, on=Way(error=errno.EXDEV), strict=frozenset({"esp0"}))
    what, found, todo = stop(told)
    assert what == "route"
    assert "the reverse path filter of esp0 drops it" in found
    assert todo == "run 'sysctl -w net.ipv4.conf.esp0.rp_filter=2'"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (errno.ENETUNREACH, "there is no route to"),
        (errno.EHOSTUNREACH, "it is closed, or its own route is gone"),
        (errno.EACCES, "a route forbids"),
        (errno.EINVAL, "Invalid argument"),
    ],
)
def test_what_the_kernel_refuses_is_in_words(error: int, says: str) -> None:
    what, found, todo = stop(story(HERE, FAR, out=Way(error=error)))
    assert what == "route"
    assert says in found
    assert todo


def test_a_source_that_no_route_leads_to_is_lost() -> None:
    ROUTES["10.1.0.99"] = Way(error=errno.ENETUNREACH)
    told = story("10.1.0.99", FAR)
    assert stop(told)[0] == "from"
    assert "ip route add 10.1.0.99" in stop(told)[2]


def chain(hook: str, *expressions: dict[str, Any]) -> list[dict[str, Any]]:
    place = {"family": "inet", "table": "fw"}
    return [
        {
            "chain": place
            | {"name": "c", "type": "filter", "hook": hook, "prio": 0, "policy": "drop"}
        },
        {"rule": place | {"chain": "c", "expr": list(expressions)}},
    ]


@pytest.mark.parametrize(
    ("source", "destination", "hook", "command"),
    [
        (HERE, FAR, "output", "oifname esp0 ip daddr 10.2.0.7 accept"),
        (HOST, FAR, "forward", "oifname esp0 accept"),
        (FAR, HERE, "input", "iifname esp0 ip saddr 10.2.0.7 accept"),
        (FAR, HOST, "forward", "iifname esp0 accept"),
    ],
)
def test_a_chain_that_drops_it_is_named_with_the_command(
    source: str, destination: str, hook: str, command: str
) -> None:
    back = {"back": TUN}
    told = story(source, destination, ruleset=chain(hook, {"counter": {}}), **back)
    what, found, todo = stop(told)
    assert (what, found) == ("firewall", "chain c of table inet fw drops it")
    assert command in todo
    unsure = chain(hook, {"limit": {"rate": 1}}, {"accept": None})
    told = story(source, destination, ruleset=unsure, **back)
    assert told["verdict"] == "carried"
    (step,) = [each for each in told["steps"] if each["what"] == "firewall"]
    assert step["state"] == "warning"
    other = "input" if hook == "output" else "output"
    assert story(source, destination, ruleset=chain(other), **back)["verdict"] == "carried"


def test_packet_filters_that_can_not_be_looked_at_are_said_to_be() -> None:
    told = story(HERE, FAR, unseen="nft is missing")
    assert told["verdict"] == "carried"
    (step,) = [each for each in told["steps"] if each["what"] == "firewall"]
    assert (step["state"], step["found"]) == ("warning", "not looked at: nft is missing")


def test_an_sa_that_is_not_installed_says_why() -> None:
    told = story(HERE, FAR, sas=[IN], lacking={"office/out": "it waits for an address"})
    assert stop(told)[:2] == ("sa", "office/out is not installed: it waits for an address")
    ike = Policy("ike:home", OFFICE.action, OFFICE.selectors, (), "ike:home", Origin.IKE)
    assert "dropped as no-sa" in stop(story(HERE, FAR, policies=[ike]))[1]


def test_an_sa_that_may_not_carry_it_is_a_mismatch() -> None:
    other = replace(OUT, selectors=(selector("10.1.0.0/24", "10.9.0.0/24"),))
    assert "selector-mismatch" in stop(story(HERE, FAR, sas=[other]))[1]


def test_an_inbound_sa_without_a_pair_is_found_by_its_selectors() -> None:
    told = story(FAR, HERE, sas=[replace(OUT, pair=None), IN], back=TUN)
    assert told["sas"] == ["office/in"]
    lonely = story(FAR, HERE, sas=[replace(OUT, pair=None)], back=TUN)
    assert "an inbound SA beside office/out is not installed" in stop(lonely)[1]


def test_an_sa_without_a_number_left_needs_a_new_key() -> None:
    used = scene(HERE, FAR)
    counters = {"office/out": replace(used.counters["office/out"], seq=2**64)}
    told = explain(replace(used, counters=counters))
    assert "last sequence number" in stop(told)[1]


def test_several_sas_are_lanes() -> None:
    second = replace(OUT, name="office/out.2", spi=0x1003)
    policy = replace(OFFICE, sas=("office/out", "office/out.2"))
    told = story(HERE, FAR, policies=[policy], sas=[OUT, second, IN])
    assert told["sas"] == ["office/out", "office/out.2"]
    found = {each["what"]: each["found"] for each in told["steps"]}
    assert found["lane"] == "0 while it is sparse, one of 1 to 1 as bulk"


def test_a_peer_that_nobody_has_heard_has_to_send_first() -> None:
    what, found, todo = stop(story(HERE, FAR, remote="0.0.0.0"))
    assert what == "peer"
    assert "no-peer" in found
    assert todo == "let the other end send first"


@pytest.mark.parametrize("state", [TunnelState.DOWN, TunnelState.FAILING])
def test_a_tunnel_that_carries_nothing_says_its_likely_cause(state: TunnelState) -> None:
    condition = Condition(state, None, 1.0, ("another key: compare them", "silence"))
    what, found, _ = stop(story(HERE, FAR, condition=condition))
    assert what == "peer"
    assert found == f"192.0.2.2 port 4500, {state}, never heard: another key: compare them"


def test_causes_beside_good_traffic_are_warnings() -> None:
    told = story(HERE, FAR, condition=replace(UP, last_in_s=7200.0, causes=("one lane is dead",)))
    assert told["verdict"] == "carried"
    assert {"what": "cause", "state": "warning", "found": "one lane is dead", "todo": ""} in (
        told["steps"]
    )
    assert "heard 120 min ago" in str(told["steps"])


WAYS = st.sampled_from(
    [TUN, LAN, WAN, LOCAL, Way(device="ppp0")]
    + [Way(error=code) for code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EXDEV)]
)
PREFIXES = st.sampled_from(["10.1.0.0/24", "10.2.0.0/24", "10.2.0.7/32", "0.0.0.0/0"])
SELECTORS = st.builds(
    selector,
    PREFIXES,
    PREFIXES,
    st.sampled_from([None, 6, 17]),
).map(lambda each: (each,))
POLICIES = st.lists(
    st.one_of(
        st.builds(lambda chosen: protect("office", "office/out", *chosen), SELECTORS),
        st.builds(lambda chosen: protect("lost", "none/out", *chosen), SELECTORS),
        st.builds(lambda chosen: bypass("open", *chosen), SELECTORS),
        st.builds(lambda chosen: discard("shut", *chosen), SELECTORS),
    ),
    max_size=4,
)
INTERFACES = st.frozensets(st.sampled_from(["esp0", "lan", "wan"]))
SURVEYS = st.builds(
    Survey,
    to_source=WAYS,
    to_destination=WAYS,
    out=WAYS,
    on=WAYS,
    back=WAYS,
    forwards_nothing=st.booleans(),
    unforwarded=INTERFACES,
    strict=INTERFACES,
    ruleset=st.sampled_from([[], chain("forward"), chain("input"), chain("output")]),
    is_near=st.booleans(),
)


@given(
    st.sampled_from([HERE, HOST, FAR, ELSEWHERE]),
    st.sampled_from([HERE, HOST, FAR, ELSEWHERE]),
    st.sampled_from([None, 1, 6]),
    POLICIES,
    st.sampled_from([(), (OUT,), (IN,), (OUT, IN)]),
    st.sampled_from(TunnelState),
    SURVEYS,
)
def test_every_flow_has_an_end_that_its_steps_explain(
    source: str,
    destination: str,
    protocol: int | None,
    policies: list[Policy],
    sas: tuple[Sa, ...],
    state: TunnelState,
    found: Survey,
) -> None:
    made = scene(source, destination, policies=policies, sas=sas)
    flow = replace(made.flow, protocol=protocol)
    condition = Condition(state, None, None, ())
    told: Any = explain(replace(made, flow=flow, survey=found, condition=lambda _name: condition))
    states = [step["state"] for step in told["steps"]]
    assert states
    assert (told["verdict"] == "stopped") == ("stop" in states)
    assert all(step["found"] for step in told["steps"])
    if told["verdict"] == "carried":
        # Only an SA carries anything, and none does for a peer that is gone.
        assert told["sas"]
        assert told["directions"]
        assert told["policy"] == "office"
        assert state in (TunnelState.UP, TunnelState.QUIET)
