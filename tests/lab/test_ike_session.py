"""The plugin kernel-esp-gw when the gateway restarts, refuses or sends events; its time limits."""

from __future__ import annotations

from esp_gw.demo.netns import add_address
from tests.support.charon import BASE
from tests.support.fake_owner import Json
from tests.support.ike_rig import (
    ADDRESSES,
    NETWORKS,
    End,
    await_child,
    child,
    configure,
    connection,
    is_up,
    start,
)
from tests.support.labtools import until


def test_a_restarted_gateway_is_taken_over_with_its_children(up: list[End]) -> None:
    one = up[0]
    before = one.owner.sas
    one.owner.stop()
    one.owner.start()
    until(lambda: len(one.owner.calls("OpenSession")) == 2, "the next session")
    assert one.owner.calls("OpenSession")[1]["take_over"] is True
    one.charon.swanctl("--rekey", "--ike", "peer")
    assert one.owner.sas == before and is_up(one)
    up[1].charon.swanctl("--rekey", "--child", "net")
    until(lambda: one.owner.sas != before and is_up(one), "a rekey by the new session")


def test_a_request_waits_for_the_gateways_restart(up: list[End]) -> None:
    one = up[0]
    before = set(one.owner.sas)
    one.owner.stop()
    one.charon.await_log("esp_gw: no session")
    up[1].charon.swanctl("--rekey", "--child", "net")
    one.owner.start()
    until(lambda: is_up(one) and not before & set(one.owner.sas), "the rekeyed child", 30)
    await_child(up[1])


def test_policies_that_the_gateway_lost_are_installed_again(ends: list[End]) -> None:
    configure(ends, start_action="trap")
    start(*ends)
    one = ends[0]
    one.owner.stop()
    one.owner.policies.clear()
    one.owner.start()
    until(lambda: one.owner.protected() == {NETWORKS[1]: None}, "the trap")


def test_a_trap_is_told_whatever_becomes_of_the_child(ends: list[End]) -> None:
    one = ends[0]

    def load(start_action: str) -> None:
        net = child(0, start_action=start_action)
        psk = {"id-a": "a.example", "id-b": "b.example", "secret": '"a secret of the test"'}
        one.charon.configure({"peer": connection(0, {"net": net})}, {"ike-peer": psk})
        one.charon.load()

    start(*ends)
    one.charon.initiate()
    await_child(one)
    assert one.policy()["trap"] is False
    # Of the same selectors as the child that is there.
    load("trap")
    until(lambda: one.policy()["trap"], "the trap")
    assert is_up(one)
    load("none")
    until(lambda: not one.policy()["trap"], "the trap is unloaded")
    assert is_up(one)


def test_a_gateway_of_an_earlier_version_is_spoken_to_in_its_words(ends: list[End]) -> None:
    configure(ends, start_action="trap")
    one = ends[0]
    one.owner.version = 1
    start(*ends)
    one.charon.await_log("the gateway is of an earlier version")
    one.charon.initiate()
    await_child(one)
    one.charon.swanctl("--terminate", "--ike", "peer")
    until(lambda: one.owner.protected() == {NETWORKS[1]: None}, "the trap")


def test_what_charon_does_not_know_is_removed(up: list[End]) -> None:
    one = up[0]
    one.owner.stop()
    stranger = {**one.sa("outbound"), "spi": 0xC5000000, "key": "5a" * 36}
    one.owner.sas["outbound", 0xC5000000] = stranger
    one.owner.policies["stranger"] = {**one.policy(), "id": "stranger", "sa": 0xC5000000}
    one.owner.start()
    until(lambda: "stranger" not in one.owner.policies and is_up(one), "the stranger is gone")


def test_a_child_whose_sa_the_gateway_lost_is_negotiated_anew(up: list[End]) -> None:
    one = up[0]
    before = set(one.owner.sas)
    one.owner.stop()
    del one.owner.sas["outbound", one.sa("outbound")["spi"]]
    one.owner.policies.clear()
    one.owner.start()
    until(lambda: is_up(one) and not before & set(one.owner.sas), "a new child", 30)
    await_child(up[1])


def test_a_child_is_installed_once_though_the_answer_got_lost(ends: list[End]) -> None:
    start(*ends)
    one = ends[0]
    one.owner.swallow.add("InstallChild")
    one.charon.initiate()
    for end in ends:
        await_child(end)
    assert [len(call["sas"]) for call in one.owner.calls("InstallChild")] == [2] or (
        len(one.owner.calls("InstallChild")) > 1
        and sum(len(call["sas"]) for call in one.owner.calls("InstallChild")) == 2
    )
    # Timers and keys are those of an installed SA: it can be rekeyed.
    one.charon.swanctl("--rekey", "--child", "net")
    until(lambda: len(one.owner.sas) >= 2 and is_up(one), "a new child", 20)


def test_charon_starts_before_the_gateway(ends: list[End]) -> None:
    configure(ends, start_action="trap")
    one = ends[0]
    one.charon.start()
    one.charon.await_log("esp_gw: no session with the gateway")
    one.owner.start()
    until(lambda: one.owner.protected() == {NETWORKS[1]: None}, "the trap")
    start(ends[1])
    one.charon.initiate()
    await_child(one)


def test_a_refused_child_fails_with_the_gateways_reason(ends: list[End]) -> None:
    start(*ends)
    one = ends[0]
    one.owner.refuse["InstallChild"] = "the moon is full"
    failed = one.charon.swanctl("--initiate", "--child", "net", "--timeout", "10", check=False)
    assert failed.returncode != 0
    one.charon.await_log("could not be installed: the moon is full")
    del one.owner.refuse["InstallChild"]
    one.charon.swanctl("--initiate", "--child", "net", "--timeout", "10")
    await_child(one)


def test_limits_of_time_rekey_by_themselves(ends: list[End]) -> None:
    times = {"rekey_time": "3s", "life_time": "30s", "rand_time": "0s"}
    configure(ends, **times)
    start(*ends)
    ends[0].charon.initiate()
    await_child(ends[0])
    first = ends[0].sa("outbound")["spi"]
    until(
        lambda: ("outbound", first) not in ends[0].owner.sas and ends[0].owner.protected(),
        "the first SA is replaced",
        20,
    )
    assert None not in ends[0].owner.protected().values()


def test_limits_of_bytes_and_packets_are_the_gateways(ends: list[End]) -> None:
    numbers = {"rekey_bytes": 1000, "life_bytes": 1200, "rand_bytes": 0}
    configure(ends, **numbers, rekey_packets=10, life_packets=12, rand_packets=0)
    start(*ends)
    ends[0].charon.initiate()
    await_child(ends[0])
    sa = ends[0].sa("inbound")
    assert (sa["soft_bytes"], sa["hard_bytes"]) == (1000, 1200)
    assert (sa["soft_packets"], sa["hard_packets"]) == (10, 12)


def test_an_sa_at_its_soft_limit_is_rekeyed_and_at_its_hard_limit_replaced(up: list[End]) -> None:
    one = up[0]
    for event in ("SoftExpired", "HardExpired"):
        spi = one.sa("outbound")["spi"]
        one.owner.event(event, direction="outbound", spi=spi, why="bytes")
        until(
            lambda spi=spi: is_up(one) and one.owner.protected() != {NETWORKS[1]: spi},
            f"a new child: {one.charon.read_output()}",
            20,
        )
        await_child(up[1])


def test_events_that_got_lost_are_told_by_a_new_watch(up: list[End]) -> None:
    one = up[0]
    one.owner.event("Lost", count=1)
    until(lambda: len(one.owner.calls("Watch")) == 2, "a new watch")
    assert [call["take_over"] for call in one.owner.calls("OpenSession")] == [False, True]
    spi = one.sa("outbound")["spi"]
    one.owner.event("SoftExpired", direction="outbound", spi=spi, why="sequence numbers")
    until(lambda: is_up(one) and one.owner.protected() != {NETWORKS[1]: spi}, "a rekey")


def test_a_long_name_of_a_child_is_cut_and_keeps_its_number(ends: list[End]) -> None:
    name = "office-" + "x" * 80
    for end in ends:
        end.charon.configure(
            {"peer": connection(end.number, {name: child(end.number)})},
            {"ike-peer": {"secret": '"a secret of the test"'}},
        )
    start(*ends)
    ends[0].charon.initiate(name)
    for end in ends:
        await_child(end)
        label = end.sa("outbound")["child"]
        assert label.startswith("office-x") and label.endswith("{1}") and len(label) <= 64


def test_counters_are_those_of_the_gateway(up: list[End]) -> None:
    one = up[0]
    for direction, count in (("inbound", 5), ("outbound", 7)):
        name = direction, one.sa(direction)["spi"]
        used = {"bytes": 100 * count, "packets": count, "last_use_s": 3}
        one.owner.counters[name] = used
    listed = one.charon.swanctl("--list-sas", "--raw").stdout
    assert "bytes-in=500 packets-in=5" in listed and "bytes-out=700 packets-out=7" in listed
    assert "use-in=3" in listed or "use-in=4" in listed


def test_an_address_that_moves_keeps_its_sas(ends: list[End]) -> None:
    configure(ends, of_connection={"mobike": "yes", "local_addrs": "%any", "remote_addrs": "%any"})
    one, two = ends
    net = child(0)
    address = {"mobike": "yes", "local_addrs": "%any"}
    one.charon.configure(
        {"peer": connection(0, {"net": net}, **address)},
        {"ike-peer": {"secret": '"a secret of the test"'}},
    )
    start(*ends)
    one.charon.initiate()
    for end in ends:
        await_child(end)
    before = [set(end.owner.sas) for end in ends]
    add_address(one.charon.namespace, "192.0.2.11/24")
    one.charon.namespace.ip("address", "delete", f"{ADDRESSES[0]}/24", "dev", "wan")
    # The secondary address goes with the primary one, unless it is the new primary.
    add_address(one.charon.namespace, "192.0.2.12/24")
    until(lambda: all(end.owner.calls("UpdateSa") for end in ends), "both ends move", 30)
    until(lambda: two.sa("outbound")["remote"] == one.sa("outbound")["local"], "one address")
    assert [set(end.owner.sas) for end in ends] == before
    assert one.sa("outbound")["local"] != ADDRESSES[0]


def selectors(end: End) -> list[Json]:
    return [policy["selectors"][0] for policy in end.owner.policies.values()]


def test_selectors_of_every_kind_reach_the_gateway(ends: list[End]) -> None:
    mine = "10.1.0.0/16,10.3.0.5-10.3.0.9,fd00:1::/64"
    theirs = "10.2.0.0/16[tcp/443],fd00:2::1[udp/1000-2000]"
    for end, (local, remote) in zip(ends, ((mine, theirs), (theirs, mine)), strict=True):
        net = child(end.number, local_ts=local, remote_ts=remote)
        end.charon.configure(
            {"peer": connection(end.number, {"net": net})},
            {"ike-peer": {"secret": '"a secret of the test"'}},
        )
    start(*ends)
    ends[0].charon.initiate()
    until(lambda: len(ends[0].owner.policies) == 3, "a policy for each pair")
    found = {(s["local"], s["remote"], s["protocol"], s["remote_port"]) for s in selectors(ends[0])}
    assert found == {
        ("10.1.0.0/16", "10.2.0.0/16", 6, 443),
        ("10.3.0.5-10.3.0.9", "10.2.0.0/16", 6, 443),
        ("fd00:1::/64", "fd00:2::1/128", 17, "1000-2000"),
    }
    for end in ends:
        sa = end.sa("outbound")
        assert len(sa["selectors"]) == 3 and all(s in selectors(end) for s in sa["selectors"])
        assert set(end.owner.protected().values()) == {sa["spi"]}
        assert len(end.owner.calls("InstallChild")) == 1


def test_shunts_are_bypass_and_discard_in_front_of_and_behind_children(ends: list[End]) -> None:
    shunts = {
        "near": {"local_ts": "10.1.0.0/16", "remote_ts": "10.1.0.0/16", "mode": "pass"},
        "rest": {"local_ts": "0.0.0.0/0", "remote_ts": "0.0.0.0/0", "mode": "drop"},
    }
    shunts = {name: {**shunt, "start_action": "trap"} for name, shunt in shunts.items()}
    children = {"net": child(0, start_action="trap"), **shunts}
    ends[0].charon.configure({"peer": connection(0, children)}, {})
    start(ends[0])
    until(lambda: len(ends[0].owner.policies) == 3, "three policies")
    by_priority = sorted(ends[0].owner.policies.values(), key=lambda policy: policy["priority"])
    assert [policy["action"] for policy in by_priority] == ["bypass", "protect", "discard"]
    assert all(policy["sa"] is None for policy in by_priority)


REFUSED: dict[str, tuple[Json, str]] = {
    "mark_in": ({"mark_in": 42, "mark_out": 42}, "no marks"),
    "if_id": ({"if_id_in": 7, "if_id_out": 7}, "no interface IDs"),
    "cbc": ({"esp_proposals": "aes256-sha256-x25519"}, "no such cipher"),
    "ccm": ({"esp_proposals": "aes256ccm16-x25519"}, "no such cipher"),
    "hw_offload": ({"hw_offload": "yes"}, "offloads nothing"),
    "policies": ({"policies": "no"}, "leave policies = no out"),
    "copy_dscp": ({"copy_dscp": "no"}, "copy_dscp"),
    "icmp": ({}, "by ICMP type"),
}


def test_what_the_gateway_has_not_is_refused_in_one_line(ends: list[End]) -> None:
    for end in ends:
        children = {}
        for number, (name, (fields, _)) in enumerate(REFUSED.items()):
            # Networks of its own: by them the responder finds its child.
            networks = [f"10.{side}.{number}.0/24" for side in (1, 2)]
            here, there = networks[end.number], networks[1 - end.number]
            suffix = "[icmp/8]" if name == "icmp" else ""
            own = {"local_ts": here + suffix, "remote_ts": there + suffix}
            children[name] = child(end.number, **own, **fields)
        end.charon.configure(
            {"peer": connection(end.number, children)},
            {"ike-peer": {"secret": '"a secret of the test"'}},
        )
    start(*ends)
    for name, (_, reason) in REFUSED.items():
        seen = [len(end.charon.log.read_text()) for end in ends]
        arguments = ("--initiate", "--child", name, "--timeout", "5")
        assert ends[0].charon.swanctl(*arguments, check=False).returncode != 0, name
        logged = [end.charon.log.read_text()[start:] for end, start in zip(ends, seen, strict=True)]
        lines = [line for text in logged for line in text.splitlines() if "refused:" in line]
        assert lines and all(reason in line for line in lines), (name, lines)
    for end in ends:
        assert end.owner.policies == {} and end.owner.sas == {}


def test_charon_itself_leaves_out_what_the_backend_does_not_offer(ends: list[End]) -> None:
    configure(ends, ipcomp="yes", tfc_padding=300)
    start(*ends)
    ends[0].charon.initiate()
    for end in ends:
        await_child(end)


def test_a_child_in_udp_has_the_ports_and_follows_the_peers(ends: list[End]) -> None:
    configure(ends, of_connection={"encap": "yes"})
    start(*ends)
    ends[0].charon.initiate()
    for end in ends:
        await_child(end)
        outbound, inbound = end.sa("outbound"), end.sa("inbound")
        assert (outbound["encapsulation"], inbound["encapsulation"]) == ("udp", "udp")
        assert (outbound["local_port"], outbound["remote_port"]) == (4500, 4500)
    responder = ends[1]
    spi = responder.sa("inbound")["spi"]
    moved = {"address": "192.0.2.1", "port": 34567}
    responder.owner.event("PeerAddressChanged", direction="inbound", spi=spi, **moved)
    for direction in ("outbound", "inbound"):
        until(
            lambda way=direction: responder.sa(way)["remote_port"] == 34567, f"the {direction} SA"
        )
    assert responder.sa("outbound")["remote"] == "192.0.2.1"


def test_another_plugin_that_takes_the_port_is_named_in_one_line(ends: list[End]) -> None:
    one = ends[0]
    one.charon.settings = {"load": f"{BASE} socket-default kernel-esp-gw kernel-netlink vici"}
    one.owner.refuse["GetIkeSocket"] = "another program has port 4500/udp"
    start(one)
    lines = [line for line in one.charon.log.read_text().splitlines() if "socket-default" in line]
    (line,) = [line for line in lines if "esp_gw:" in line]
    assert "set load = no" in line
    one.charon.await_log("no IKE at the port of ESP in UDP: another program has port 4500/udp")
