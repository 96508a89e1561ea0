"""The verdict of packet filters on a new flow, and where it can't be told."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.network.filters import Passage, acceptance, dropped_by
from esp_gw.network.flow import Flow
from esp_gw.network.forward import Chain

Entry = dict[str, Any]
ACCEPT: Entry = {"accept": None}
DROP: Entry = {"drop": None}
RETURN: Entry = {"return": None}
LIMIT: Entry = {"limit": {"rate": 1, "per": "second"}}
COUNTER: Entry = {"counter": {"packets": 3, "bytes": 9}}
CONNTRACK: Entry = {"xt": {"type": "match", "name": "conntrack"}}
FLOW = Flow(ip_address("10.1.0.5"), ip_address("10.2.0.7"), 6, None, 443)
FORWARD = Passage("forward", FLOW, "lan", "esp0")
V6 = Passage("forward", Flow(ip_address("fd00:1::5"), ip_address("fd00:2::7")), "lan", "esp0")


def base(policy: str = "accept", hook: str = "forward", **fields: object) -> Entry:
    values = {"family": "inet", "table": "fw", "name": "base", "type": "filter"}
    return {"chain": values | {"hook": hook, "prio": 0, "policy": policy} | fields}


def rule(*expressions: Entry, chain: str = "base", **fields: object) -> Entry:
    values = {"family": "inet", "table": "fw", "chain": chain, "expr": list(expressions)}
    return {"rule": values | fields}


def match(left: Entry, right: object, op: str = "==") -> Entry:
    return {"match": {"op": op, "left": left, "right": right}}


def meta(key: str, right: object, op: str = "==") -> Entry:
    return match({"meta": {"key": key}}, right, op)


def header(protocol: str, field: str, right: object, op: str = "==") -> Entry:
    return match({"payload": {"protocol": protocol, "field": field}}, right, op)


def jump(chain: str, kind: str = "jump") -> Entry:
    return {kind: {"target": chain}}


def verdict(*entries: Entry, passage: Passage = FORWARD) -> str:
    found = dropped_by(entries, passage)
    if found is None:
        return "passes"
    return "dropped" if found.certain else "perhaps dropped"


NET: Entry = {"prefix": {"addr": "10.1.0.0", "len": 24}}
RANGE: Entry = {"range": ["10.2.0.1", "10.2.0.9"]}
PORTS: Entry = {"set": [80, {"range": [400, 500]}]}
ESTABLISHED = match({"ct": {"key": "state"}}, ["established", "related"], "in")
MEETS = [
    meta("iifname", "lan"),
    meta("iifname", {"set": ["wan", "la*"]}),
    meta("oifname", "esp*"),
    meta("iifname", "wan", "!="),
    meta("l4proto", "tcp"),
    meta("l4proto", {"set": [6, 17]}),
    meta("nfproto", "ipv4"),
    header("ip", "saddr", NET),
    header("ip", "daddr", RANGE),
    header("ip", "daddr", {"set": ["10.9.0.1", RANGE]}),
    header("ip", "daddr", "10.2.0.7"),
    header("ip", "saddr", "10.2.0.7", "!="),
    header("ip", "protocol", "tcp"),
    header("tcp", "dport", PORTS),
    header("th", "dport", 443),
    match({"ct": {"key": "state"}}, "new"),
]
MISSES = [
    meta("iifname", "wan"),
    meta("iifname", "lan", "!="),
    meta("oifname", "lan"),
    meta("l4proto", "udp"),
    meta("nfproto", "ipv6"),
    header("ip", "saddr", "10.1.0.6"),
    header("ip6", "saddr", "fd00::1"),
    header("udp", "dport", 443),
    header("tcp", "dport", {"set": [80, 22]}),
    ESTABLISHED,
]
UNKNOWN = [
    LIMIT,
    CONNTRACK,
    meta("mark", 5),
    header("tcp", "sport", 1000),
    header("ip", "saddr", "@blocked"),
    meta("iifname", "@inside"),
    match({"ct": {"key": "status"}}, "dnat"),
    match({"&": [{"meta": {"key": "mark"}}, 1]}, 1),
    header("ip", "saddr", "10.1.0.5", "<"),
]


@pytest.mark.parametrize("condition", MEETS, ids=str)
def test_a_condition_that_the_packet_meets(condition: Entry) -> None:
    assert verdict(base(), rule(condition, COUNTER, DROP)) == "dropped"
    assert verdict(base("drop"), rule(condition, COUNTER, ACCEPT)) == "passes"


@pytest.mark.parametrize("condition", MISSES, ids=str)
def test_a_condition_that_the_packet_misses(condition: Entry) -> None:
    assert verdict(base(), rule(condition, DROP)) == "passes"
    assert verdict(base("drop"), rule(condition, ACCEPT)) == "dropped"


@pytest.mark.parametrize("condition", UNKNOWN, ids=str)
def test_a_condition_that_can_not_be_judged_makes_no_drop_certain(condition: Entry) -> None:
    assert verdict(base(), rule(condition, DROP)) == "passes"
    assert verdict(base("drop"), rule(condition, ACCEPT)) == "perhaps dropped"
    # A verdict before it, and a rule that misses anyhow, stay certain.
    assert verdict(base("drop"), rule(DROP), rule(condition, ACCEPT)) == "dropped"
    assert verdict(base("drop"), rule(MISSES[0], condition, ACCEPT)) == "dropped"


def test_rules_are_followed_through_other_chains() -> None:
    inner = rule(MEETS[0], DROP, chain="inner")
    assert verdict(base(), rule(jump("inner")), inner) == "dropped"
    assert verdict(base(), rule(MISSES[0], jump("inner")), inner) == "passes"
    back = rule(RETURN, chain="inner")
    assert verdict(base("drop"), rule(jump("inner")), back, inner, rule(ACCEPT)) == "passes"
    assert verdict(base("drop"), rule(jump("inner", "goto")), back, rule(ACCEPT)) == "dropped"
    assert verdict(base("drop"), rule(LIMIT, jump("inner")), inner, rule(ACCEPT)) == "passes"
    unsure = rule(LIMIT, ACCEPT, chain="inner")
    assert verdict(base("drop"), rule(jump("inner")), unsure) == "perhaps dropped"


def test_chains_that_call_each_other_without_an_end_are_left_undecided() -> None:
    entries = (base("drop"), rule(jump("base")))
    assert verdict(*entries) == "perhaps dropped"


def test_a_verdict_map_is_looked_up() -> None:
    def vmap(**data: Entry) -> Entry:
        key = {"ct": {"key": "state"}}
        return {"vmap": {"key": key, "data": {"set": [[k, v] for k, v in data.items()]}}}

    assert verdict(base("drop"), rule(vmap(established=ACCEPT, new=ACCEPT))) == "passes"
    assert verdict(base("drop"), rule(vmap(established=ACCEPT))) == "dropped"
    assert verdict(base(), rule(vmap(invalid=ACCEPT, new=jump("n"))), rule(DROP, chain="n")) == (
        "dropped"
    )
    assert verdict(base("drop"), rule({"vmap": {"key": {}, "data": "@m"}})) == "perhaps dropped"


def test_chains_of_other_hooks_kinds_and_families_and_ours_count_not() -> None:
    for other in (
        base("drop", hook="input"),
        base("drop", type="nat"),
        base("drop", family="ip6"),
        base("drop", family="bridge"),
        base("drop", table="esp_gw"),
        base("drop", table="esp_gw_4600"),
    ):
        assert verdict(other) == "passes"
    assert verdict(base("drop", family="ip")) == "dropped"
    assert verdict(base("drop", family="ip6"), passage=V6) == "dropped"


def test_every_chain_at_a_hook_may_drop_what_another_accepts() -> None:
    entries = [base(prio=-5), rule(ACCEPT), base("drop", name="late", prio=5)]
    found = dropped_by(entries, FORWARD)
    assert found is not None
    assert found.chain == Chain("inet", "fw", "late")


def test_a_reject_is_a_drop() -> None:
    assert verdict(base(), rule({"reject": {"type": "tcp reset"}})) == "dropped"


def test_the_command_lets_the_packet_through_its_chain() -> None:
    chain = Chain("inet", "fw", "input")
    text = acceptance(chain, Passage("input", FLOW, "esp0"), "esp0")
    assert text == "'nft insert rule inet fw input iifname esp0 ip saddr 10.1.0.5 accept'"
    text = acceptance(chain, Passage("output", V6.flow, "", "esp0"), "esp0")
    assert text == "'nft insert rule inet fw input oifname esp0 ip6 daddr fd00:2::7 accept'"
    docker = Chain("ip", "filter", "FORWARD")
    assert "iptables -I FORWARD -i esp0" in acceptance(docker, FORWARD, "esp0")


WORDS = st.sampled_from(
    [
        *("meta", "payload", "ct", "key", "iifname", "protocol", "field", "saddr", "dport", "ip"),
        *("tcp", "set", "prefix", "range", "addr", "len", "state", "new", "th", "10.1.0.0"),
        *("target", "data"),
    ]
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 99999), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(WORDS, inner, max_size=3)),
    max_leaves=8,
)
STATEMENT = st.dictionaries(
    st.sampled_from(["match", "vmap", "jump", "goto", "xt", "counter", "accept", "limit", "queue"]),
    JSON
    | st.fixed_dictionaries({"op": JSON, "left": JSON, "right": JSON})
    | st.fixed_dictionaries({"key": JSON, "data": JSON}),
    max_size=2,
)


@given(st.lists(st.lists(STATEMENT, max_size=3), max_size=3))
def test_rules_of_any_shape_are_judged_or_left_undecided(rules: list[list[Entry]]) -> None:
    entries = [base("drop"), *(rule(*expressions) for expressions in rules)]
    assert verdict(*entries) in ("passes", "dropped", "perhaps dropped")
