"""Forward chains that end in a drop are found as docker, firewalld and iptables-nft leave them."""

from __future__ import annotations

from typing import Any

import pytest

from esp_gw.network.forward import Chain, dropping_chain

Entry = dict[str, Any]


def chain(name: str = "FORWARD", policy: str = "drop", **fields: object) -> Entry:
    values = {"family": "ip", "table": "filter", "name": name, "type": "filter"}
    return {"chain": values | {"hook": "forward", "prio": 0, "policy": policy} | fields}


def rule(*expressions: Entry, chain: str = "FORWARD") -> Entry:
    values = {"family": "ip", "table": "filter", "chain": chain}
    return {"rule": {**values, "expr": list(expressions)}}


DROP: Entry = {"drop": None}
REJECT: Entry = {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
COUNTER: Entry = {"counter": {"packets": 0, "bytes": 0}}
MATCH: Entry = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "eth0"}}


def found(ruleset: list[Entry], version: int) -> str | None:
    chain = dropping_chain(ruleset, version, "esp0")
    return None if chain is None else str(chain)


def test_a_policy_of_drop_is_found_for_its_ip_version() -> None:
    ruleset = [{"metainfo": {}}, chain()]
    assert found(ruleset, 4) == "chain FORWARD of table ip filter"
    assert found(ruleset, 6) is None
    assert found([chain(family="inet")], 6) == "chain FORWARD of table inet filter"


def test_a_last_rule_that_rejects_everything_is_found() -> None:
    ruleset = [chain(policy="accept"), rule(MATCH, {"accept": None}), rule(COUNTER, REJECT)]
    assert found(ruleset, 4) is not None
    assert found([*ruleset, rule({"accept": None})], 4) is None
    assert found([chain(policy="accept"), rule(MATCH, DROP)], 4) is None
    assert found([chain(policy="accept"), rule(DROP, chain="other")], 4) is None


def test_other_hooks_and_our_own_table_are_left_out() -> None:
    assert found([chain(hook="input"), chain(hook=None)], 4) is None
    assert found([chain(table="esp_gw")], 4) is None
    assert found([chain(type="nat")], 4) is None


def test_the_chain_of_the_lowest_priority_is_named() -> None:
    ruleset = [chain(name="late", prio=10), chain(name="early", prio=-10)]
    assert found(ruleset, 4) == "chain early of table ip filter"


ACCEPT: Entry = {"accept": None}


def device(key: str, name: object, operator: str = "==") -> Entry:
    return {"match": {"op": operator, "left": {"meta": {"key": key}}, "right": name}}


@pytest.mark.parametrize(
    "match",
    [
        device("iifname", "esp0"),
        device("oifname", "esp0"),
        device("iifname", "esp*"),
        device("iifname", {"set": ["eth0", "esp0"]}),
    ],
)
def test_a_chain_that_accepts_the_tun_somewhere_is_not_meant(match: Entry) -> None:
    here = [chain(), rule(MATCH, ACCEPT), rule(match, COUNTER, ACCEPT)]
    assert found(here, 4) is None
    jump: Entry = {"jump": {"target": "DOCKER-USER"}}
    there = [chain(), rule(COUNTER, jump), rule(match, ACCEPT, chain="DOCKER-USER")]
    assert found(there, 4) is None
    assert found([*there[:1], *there[2:]], 4) is not None


@pytest.mark.parametrize(
    "expressions",
    [
        (device("iifname", "esp0", "!="), ACCEPT),
        (device("iifname", "esp1"), ACCEPT),
        (device("iifname", "esp0"), DROP),
        ({"xt": {"type": "match", "name": "physdev"}}, ACCEPT),
        ({"jump": {"target": "FORWARD"}},),
    ],
)
def test_other_rules_do_not_accept_the_tun(expressions: tuple[Entry, ...]) -> None:
    assert found([chain(), rule(*expressions)], 4) is not None


def test_the_rules_to_add_are_those_of_the_program_that_made_the_chain() -> None:
    assert Chain("ip", "filter", "FORWARD").commands("esp0") == (
        "'iptables -I FORWARD -i esp0 -j ACCEPT' and 'iptables -I FORWARD -o esp0 -j ACCEPT'"
    )
    assert "'ip6tables -I FORWARD -i" in Chain("ip6", "filter", "FORWARD").commands("esp0")
    assert Chain("inet", "firewalld", "fwd").commands("esp1") == (
        "'nft insert rule inet firewalld fwd iifname esp1 accept' and "
        "'nft insert rule inet firewalld fwd oifname esp1 accept'"
    )
