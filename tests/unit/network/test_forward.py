"""Forward chains that end in a drop are found as docker, firewalld and iptables-nft leave them."""

from __future__ import annotations

from typing import Any

from esp_gw.network.forward import dropping_chain

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


def test_a_policy_of_drop_is_found_for_its_ip_version() -> None:
    ruleset = [{"metainfo": {}}, chain()]
    assert dropping_chain(ruleset, 4) == "chain FORWARD of table ip filter"
    assert dropping_chain(ruleset, 6) is None
    assert dropping_chain([chain(family="inet")], 6) == "chain FORWARD of table inet filter"


def test_a_last_rule_that_rejects_everything_is_found() -> None:
    ruleset = [chain(policy="accept"), rule(MATCH, {"accept": None}), rule(COUNTER, REJECT)]
    assert dropping_chain(ruleset, 4) is not None
    assert dropping_chain([*ruleset, rule({"accept": None})], 4) is None
    assert dropping_chain([chain(policy="accept"), rule(MATCH, DROP)], 4) is None
    assert dropping_chain([chain(policy="accept"), rule(DROP, chain="other")], 4) is None


def test_other_hooks_and_our_own_table_are_left_out() -> None:
    assert dropping_chain([chain(hook="input"), chain(hook=None)], 4) is None
    assert dropping_chain([chain(table="esp_gw")], 4) is None
    assert dropping_chain([chain(type="nat")], 4) is None


def test_the_chain_of_the_lowest_priority_is_named() -> None:
    ruleset = [chain(name="late", prio=10), chain(name="early", prio=-10)]
    assert dropping_chain(ruleset, 4) == "chain early of table ip filter"
