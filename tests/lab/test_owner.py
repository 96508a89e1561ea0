"""Two gateways whose SAs and policies an IKE daemon's sessions hold."""

from __future__ import annotations

import contextlib
from collections import Counter

import pytest

from esp_gw.demo.netns import add_address
from esp_gw.demo.pair import OUTER
from esp_gw.errors import ControlError
from tests.support.labtools import (
    MakePair,
    StartCapture,
    StartTap,
    answers,
    configured_sa,
    esp_packets,
    ping,
    start_pings,
    until,
)
from tests.support.owner_client import Child, Connection, Watcher, error_of
from tests.support.owner_rig import child, sessions, start, target


@pytest.mark.either_engine
@pytest.mark.parametrize("encapsulation", ["udp", "none"])
@pytest.mark.parametrize(("outer", "inner"), [(4, 4), (6, 6), (4, 6), (6, 4)])
def test_a_child_carries_traffic_and_is_gone_and_closed_after_its_removal(
    make_pair: MakePair, stack: contextlib.ExitStack, outer: int, inner: int, encapsulation: str
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1, inner, outer, encapsulation=encapsulation)
    first.install(both)
    assert ping(pair.a.namespace, target(inner), count=5) == 5
    (last_in, last_out) = both[0].call("RemoveSas", sas=first.refs(0))["sas"]
    assert (last_in["packets"], last_out["packets"]) == (5, 5)
    assert (last_out["spi"], last_out["seq"]) == (first.spis[1], 6)
    assert both[0].call("QuerySas")["sas"] == []
    assert ping(pair.a.namespace, target(inner), count=2) == 0
    assert pair.a.call("GetStats")["drops"]["no-sa"] == 2


def test_a_rekey_under_pings_loses_nothing(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    former = child(1)
    former.install(both)
    pings = start_pings(pair.a.namespace, target(4), 400, interval=0.005)
    for number in range(2, 7):
        new = child(number)
        # As charon does: the responder first, its inbound SA before anything is sent to it.
        for side in (1, 0):
            both[side].call("InstallChild", sas=new.sas(side)[:1])
        for side in (0, 1):
            both[side].call(
                "InstallChild",
                sas=new.sas(side)[1:],
                policies=[new.policy(side, sa=new.spis[1 - side])],
            )
        for side in (0, 1):
            both[side].call("RemoveSas", sas=former.refs(side))
        former = new
    assert answers(pings) == 400
    assert {sa["spi"] for sa in both[0].call("QuerySas")["sas"]} == set(former.spis)


def test_a_packet_that_meets_a_policy_without_an_sa_is_told(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    (session, _) = sessions(pair, stack)
    watcher = Watcher(pair.a.socket)
    stack.callback(watcher.close)
    session.call("PutPolicy", **child(1).policy(0, "trap", sa=None))
    pings = start_pings(pair.a.namespace, target(4), 100, interval=0.02)
    event = watcher.event("Acquire")
    assert (event["policy"], event["local"], event["remote"]) == ("trap", "10.1.0.1", target(4))
    assert (event["protocol"], event["remote_port"]) == (1, 0)
    assert answers(pings) == 0


def test_an_sa_moves_to_other_addresses_with_its_numbers(
    make_pair: MakePair, stack: contextlib.ExitStack, capture: StartCapture
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1)
    first.install(both)
    wire = capture(pair.a.namespace)
    assert ping(pair.a.namespace, target(4), count=5) == 5
    add_address(pair.a.namespace, "192.0.2.9/24")
    for side, session in enumerate(both):
        ends = ("192.0.2.9", "192.0.2.2")
        for ref in first.refs(side):
            session.call(
                "UpdateSa",
                **ref,
                local=ends[side],
                remote=ends[1 - side],
                remote_port=4500,
                encapsulation="none",
            )
    assert ping(pair.a.namespace, target(4), count=5) == 5
    counted = {sa["spi"]: sa["packets"] for sa in both[0].call("QuerySas")["sas"]}
    assert counted == dict.fromkeys(first.spis, 10)
    packets = list(esp_packets(wire.stop()))
    ivs = Counter((packet.spi, packet.iv) for packet in packets)
    assert len(ivs) == sum(ivs.values()) == 20
    assert {packet.frame[23] for packet in packets} == {17, 50}


def test_a_limit_in_packets_is_told_and_ends_the_use_of_the_sa(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    watcher = Watcher(pair.a.socket)
    stack.callback(watcher.close)
    first = child(1)
    outbound = first.sas(0, soft_packets=5, hard_packets=20)[1]
    both[0].call("InstallChild", sas=[first.sas(0)[0], outbound], policies=[first.policy(0)])
    both[1].call("InstallChild", sas=first.sas(1), policies=[first.policy(1)])
    assert ping(pair.a.namespace, target(4), count=6) == 6
    soft = watcher.event("SoftExpired")
    assert soft == {
        "event": "SoftExpired",
        "direction": "outbound",
        "spi": first.spis[1],
        "number": 0,
        "why": "packets",
    }
    assert ping(pair.a.namespace, target(4), count=20) == 20
    assert watcher.event("HardExpired")["why"] == "packets"
    assert ping(pair.a.namespace, target(4), count=2) == 0
    (last,) = both[0].call("RemoveSas", sas=first.refs(0)[1:])["sas"]
    assert last["packets"] == 26
    assert pair.a.call("GetStats")["drops"]["no-sa"] == 2


def test_a_new_mapping_of_a_nat_is_told_and_followed(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    child(1).install(both)
    watcher = Watcher(pair.b.socket)
    stack.callback(watcher.close)
    assert ping(pair.a.namespace, target(4), count=3) == 3
    add_address(pair.a.namespace, "192.0.2.9/24")
    pair.a.namespace.run(
        "nft",
        "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; "
        "add rule ip nat out udp sport 4500 snat to 192.0.2.9:7777",
    )
    # A flow of its own, for conntrack knows the former one.
    pair.a.namespace.run("conntrack", "-F", check=False)
    pings = start_pings(pair.a.namespace, target(4), 200, interval=0.02)
    event = watcher.event("PeerAddressChanged")
    assert (event["address"], event["port"]) == ("192.0.2.9", 7777)
    assert (event["direction"], event["spi"]) == ("inbound", child(1).spis[1])
    assert answers(pings) > 100


@pytest.mark.either_engine
def test_addresses_that_others_add_to_the_tun_stay(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    pair.a.namespace.ip("address", "add", "10.9.9.9/32", "dev", "esp0")
    first = child(1)
    first.install(both)
    pair.a.call("Reload")
    both[0].call("RemoveSas", sas=first.refs(0))
    both[0].call("FlushOwner")
    pair.a.call("Reload")
    assert "10.9.9.9" in pair.a.namespace.ip("address", "show", "dev", "esp0")


@pytest.mark.either_engine
def test_children_are_shown_beside_tunnels_and_left_to_ike(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1)
    first.install(both)
    ping(pair.a.namespace, target(4), count=2)
    (tunnel,) = pair.a.ask("tunnel", "list")["tunnels"]
    assert (tunnel["name"], tunnel["packets_out"]) == ("ike:office{1}", 2)
    listed = pair.a.ask("sa", "list")["sas"]
    assert {(sa["origin"], sa["tunnel"]) for sa in listed} == {("ike", "ike:office{1}")}
    (policy,) = pair.a.ask("policy", "list")["policies"]
    assert (policy["name"], policy["origin"]) == ("ike:office", "ike")
    refused = pair.a.cli("sa", "delete", listed[0]["name"], check=False)
    assert refused.returncode == 1
    assert "belongs to ike; run 'swanctl --terminate'" in refused.stderr
    refused = pair.a.cli("policy", "delete", "ike:office", check=False)
    assert "belongs to ike" in refused.stderr
    assert "ike:office{1}" in pair.a.cli("tunnel", "list").stdout


@pytest.mark.either_engine
def test_a_selector_of_a_range_and_a_bypass_in_front_are_obeyed(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1)
    for side, session in enumerate(both):
        ends = ("10.1.0.0/24", "10.2.0.1-10.2.0.5")
        chosen = [{"local": ends[side], "remote": ends[1 - side]}]
        session.call(
            "InstallChild",
            sas=first.sas(side, selectors=chosen),
            policies=[first.policy(side, selectors=chosen)],
        )
    assert ping(pair.a.namespace, "10.2.0.1", count=2) == 2
    routes = pair.a.namespace.ip("route", "show", "table", "4500")
    assert "10.2.0.4/31" in routes
    assert "10.2.0.6" not in routes
    host = pair.a.namespace
    host.ip("route", "add", "10.2.0.0/24", "via", "192.0.2.2")
    assert "dev esp0" in host.ip("route", "get", "10.2.0.5")
    hole = [{"local": "0.0.0.0/0", "remote": "10.2.0.5/32"}]
    both[0].call("PutPolicy", id="hole", action="bypass", selectors=hole, priority=1)
    assert "dev wan" in host.ip("route", "get", "10.2.0.5")
    assert "dev esp0" in host.ip("route", "get", "10.2.0.4")
    both[0].call("RemovePolicy", id="hole")
    assert "dev esp0" in host.ip("route", "get", "10.2.0.5")
    both[0].call("PutPolicy", id="stop", action="discard", selectors=hole, priority=1)
    assert ping(host, "10.2.0.5", count=2) == 0
    assert pair.a.call("GetStats")["drops"]["policy-discard"] == 2


def test_a_crowd_takes_no_place_of_a_session_or_its_watch(
    make_pair_of_one_engine: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair_of_one_engine)
    (session, _) = sessions(pair, stack)
    watcher = Watcher(pair.a.socket)
    stack.callback(watcher.close)
    for _ in range(150):
        stack.callback(Connection(pair.a.socket).close)
    assert session.call("QuerySas") == {"sas": []}
    session.call("PutPolicy", **child(1).policy(0, "trap", sa=None))
    pings = start_pings(pair.a.namespace, target(4), 60, interval=0.02)
    assert watcher.event("Acquire")["policy"] == "trap"
    answers(pings)


@pytest.mark.either_engine
def test_ike_goes_beside_manual_tunnels_and_behind_their_policies(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = make_pair()
    pair.start()
    both = sessions(pair, stack)
    first = child(1, inner=6)
    first.install(both)
    assert ping(pair.a.namespace, target(4), count=2) == 2
    add_address(pair.a.namespace, "fd00:1::1/128", "esp0")
    add_address(pair.b.namespace, "fd00:2::1/128", "esp0")
    assert ping(pair.a.namespace, target(6), count=2) == 2
    # The manual tunnel's policy comes first, whatever the priority.
    both[0].call("PutPolicy", **child(2).policy(0, "over", sa=None, priority=0))
    assert ping(pair.a.namespace, target(4), count=2) == 2
    manual = next(sa for sa in pair.a.call("ListSas")["sas"] if sa["name"] == "pi-b/in")
    clash = child(3, inner=6)
    clash.spis = (manual["spi"], clash.spis[1])
    with pytest.raises(ControlError, match="is already used by"):
        both[0].call("InstallChild", sas=clash.sas(0)[:1])
    key = configured_sa(pair.a, manual["name"]).keymat.to_bytes().hex()
    stolen = child(4, inner=6)
    stolen.keys = [key, key]
    with pytest.raises(ControlError, match="same key"):
        both[0].call("InstallChild", sas=stolen.sas(0)[:1])
    both[0].call("FlushOwner")
    assert ping(pair.a.namespace, target(4), count=2) == 2
    assert pair.a.call("ListTunnels")["tunnels"][0]["name"] == "pi-b"


@pytest.mark.either_engine
@pytest.mark.parametrize("encapsulation", ["udp", "none"])
def test_a_child_in_transport_mode_carries_traffic(
    make_pair: MakePair, stack: contextlib.ExitStack, tap: StartTap, encapsulation: str
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    ends = (str(OUTER[4][0]), str(OUTER[4][1]))
    first = Child("host{1}", ends, ends, (0xC0000001, 0xC0000002), encapsulation=encapsulation)
    first.install(both, mode="transport", esn=False)
    wire = tap(pair.a.namespace, b"cleartext-cleartext")
    done = pair.a.namespace.run(
        *("ping", "-c", "3", "-i", "0.05", "-p", b"cleartext-cleart".hex(), ends[1])
    )
    assert "3 received" in done.stdout
    until(
        lambda: {sa["packets"] for sa in both[0].call("QuerySas")["sas"]} == {3},
        "each SA has carried three packets",
    )
    assert wire.finish().leaked == 0


@pytest.mark.either_engine
def test_what_is_asked_wrongly_on_a_session_ends_no_tunnel(
    make_pair: MakePair, stack: contextlib.ExitStack
) -> None:
    pair = start(make_pair)
    both = sessions(pair, stack)
    first = child(1)
    first.install(both)
    wrong: list[tuple[str, dict[str, object]]] = [
        ("InstallChild", {"sas": first.sas(0)}),
        ("InstallChild", {"sas": [{"direction": "inbound"}]}),
        ("InstallChild", {"policies": [first.policy(0, sa=0xDEAD)]}),
        ("RemoveSas", {"sas": [*first.refs(0), {"direction": "inbound", "spi": 1000}]}),
        ("UpdateSa", {**first.refs(0)[0], "local": "192.0.2.77"}),
        ("UpdateSa", {**first.refs(0)[0], "local": "::1", "remote": "::1", "encapsulation": "x"}),
        ("Reload", {"config": "/nowhere"}),
        ("NoSuchMethod", {}),
    ]
    for method, parameters in wrong:
        with pytest.raises(ControlError) as refusal:
            both[0].call(method, **parameters)
        assert "\n" not in str(refusal.value)
    # A bypass behind what it overlaps would leak.
    with pytest.raises(ControlError, match="in the clear"):
        both[0].call(
            "PutPolicy", **first.policy(0, "hole", action="bypass", sa=None, priority=9999)
        )
    assert ping(pair.a.namespace, target(4), count=3) == 3
    both[0].send("QuerySas", sas="{" * 3)
    assert error_of(both[0].line()) == "InvalidParameter"
    assert len(both[0].call("QuerySas")["sas"]) == 2
