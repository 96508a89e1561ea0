"""NAT rules of the host that a new flow meets on its way into the TUN."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from esp_gw.network.filters import Passage
from esp_gw.network.flow import Flow
from esp_gw.network.forward import Chain
from esp_gw.network.translations import exemption, translated_by

Entry = dict[str, Any]
FLOW = Flow(ip_address("10.1.0.5"), ip_address("10.2.0.7"), 6, None, 443)
POST = Passage("postrouting", FLOW, "lan", "esp0")
V6 = Passage("postrouting", Flow(ip_address("fd00:1::5"), ip_address("fd00:2::7")), "lan", "esp0")
CHAIN = Chain("ip", "nat", "POSTROUTING")
MASQUERADE: Entry = {"masquerade": None}
SNAT: Entry = {"snat": {"addr": "192.0.2.1"}}
# As `nft -j` shows the rules of iptables-nft.
IPTABLES: Entry = {"xt": {"type": "target", "name": "MASQUERADE"}}
XT_MATCH: Entry = {"xt": {"type": "match", "name": "policy"}}
LOG: Entry = {"xt": {"type": "target", "name": "LOG"}}
LIMIT: Entry = {"limit": {"rate": 1, "per": "second"}}


def base(**fields: object) -> Entry:
    values = {"family": "ip", "table": "nat", "name": "POSTROUTING", "type": "nat"}
    return {"chain": values | {"hook": "postrouting", "prio": 100, "policy": "accept"} | fields}


def rule(*expressions: Entry, chain: str = "POSTROUTING", **fields: object) -> Entry:
    values = {"family": "ip", "table": "nat", "chain": chain, "expr": list(expressions)}
    return {"rule": values | fields}


def oif(name: str, op: str = "==") -> Entry:
    return {"match": {"op": op, "left": {"meta": {"key": "oifname"}}, "right": name}}


def found(*entries: Entry, passage: Passage = POST) -> str:
    told = translated_by(entries, passage)
    if told is None:
        return "kept"
    return told.statement if told.certain else f"perhaps {told.statement}"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([], "kept"),
        ([rule(MASQUERADE)], "masquerade"),
        ([rule(SNAT)], "snat"),
        ([rule({"counter": {"packets": 1, "bytes": 1}}, IPTABLES)], "masquerade"),
        ([rule(oif("wan"), MASQUERADE)], "kept"),
        ([rule(oif("esp0", "!="), MASQUERADE)], "kept"),
        ([rule(oif("esp*"), MASQUERADE)], "masquerade"),
        ([rule(oif("esp0"), {"accept": None}), rule(MASQUERADE)], "kept"),
        ([rule(oif("esp0"), {"return": None}), rule(MASQUERADE)], "kept"),
        ([rule(oif("wan"), {"accept": None}), rule(MASQUERADE)], "masquerade"),
        ([rule(XT_MATCH, IPTABLES)], "perhaps masquerade"),
        ([rule(LIMIT, {"accept": None}), rule(MASQUERADE)], "perhaps masquerade"),
        ([rule(LOG)], "kept"),
        ([rule({"jump": {"target": "mine"}}), rule(SNAT, chain="mine")], "snat"),
        ([rule({"jump": {"target": "mine"}}), rule({"accept": None}, chain="mine"),
          rule(MASQUERADE)], "kept"),
        ([rule({"jump": {"target": "mine"}}), rule({"return": None}, chain="mine"),
          rule(MASQUERADE)], "masquerade"),
        ([rule({"goto": {"target": "mine"}}), rule(MASQUERADE)], "kept"),
        ([rule({"jump": {"target": "POSTROUTING"}})], "kept"),
        ([rule({"match": {"op": "=="}}, MASQUERADE)], "perhaps masquerade"),
    ],
)  # fmt: skip
def test_what_becomes_of_the_addresses(rules: list[Entry], expected: str) -> None:
    assert found(base(), *rules) == expected


def test_chains_of_other_hooks_types_families_and_our_own_are_passed_over() -> None:
    for fields in (
        {"hook": "prerouting"},
        {"type": "filter"},
        {"family": "ip6"},
        {"table": "esp_gw"},
    ):
        table = fields.get("table", "nat")
        family = fields.get("family", "ip")
        rules = rule(MASQUERADE, table=table, family=family)
        assert found(base(**fields), rules) == "kept"
    inet = (base(family="inet"), rule(MASQUERADE, family="inet"))
    assert (found(*inet), found(*inet, passage=V6)) == ("masquerade", "masquerade")


def test_the_command_is_one_of_nft() -> None:
    command = exemption(CHAIN, "esp0")
    assert command == "'nft insert rule ip nat POSTROUTING oifname esp0 accept'"
