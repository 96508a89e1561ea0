"""Rules of every kind, as the kernel gives them back."""

from __future__ import annotations

import asyncio
import json
from ipaddress import ip_network

from esp_gw.demo.netns import namespaces
from esp_gw.model import PortRange
from esp_gw.network.changes import AddRule, RemoveRule
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.objects import MAIN_TABLE, Rule
from tests.support.kernel_peer import inside

TABLE = 4500
ANY = ip_network("0.0.0.0/32")
RULES = frozenset(
    {
        Rule(4, TABLE - 1, TABLE, fwmark=0xE5B, inverted=True),
        Rule(6, TABLE - 1, TABLE, fwmark=0xE5B, inverted=True),
        Rule(4, TABLE, MAIN_TABLE, fwmark=0xFFFFFFFF),
        Rule(4, TABLE + 1, TABLE + 1, source=ANY),
        Rule(6, TABLE + 1, TABLE + 1, source=ip_network("fd00:1::/48"), find_source=True),
        Rule(4, 4400, TABLE, destination=ip_network("10.2.0.0/16")),
        Rule(4, 4401, MAIN_TABLE, destination=ip_network("10.2.7.0/24"), suppress_default=True),
        Rule(6, 4401, MAIN_TABLE, destination=ip_network("fd00:2:7::/64"), suppress_default=True),
        Rule(
            4,
            4402,
            MAIN_TABLE,
            protocol=17,
            source_port=PortRange(68, 68),
            destination_port=PortRange(67, 67),
            own_output=True,
        ),
        Rule(
            6,
            4403,
            MAIN_TABLE,
            source=ip_network("fd00:1::7/128"),
            destination=ip_network("fd00:2::/64"),
            protocol=6,
            destination_port=PortRange(1, 65534),
        ),
    }
)


async def written_and_read() -> tuple[frozenset[Rule], frozenset[Rule]]:
    """Return the rules that are there after all were added, and after all were removed."""
    kernel = KernelNetwork(TABLE)
    await kernel.open()
    try:
        await kernel.apply([AddRule(rule) for rule in RULES])
        there = (await kernel.observe()).rules
        await kernel.apply([RemoveRule(rule) for rule in there])
        return there, (await kernel.observe()).rules
    finally:
        await kernel.close()


def test_rules_are_read_as_they_were_written_and_those_of_others_are_not() -> None:
    with namespaces("rules") as (host,), inside(host):
        for family in ("-4", "-6"):
            host.ip(family, "rule", "add", "priority", "4404", "lookup", str(TABLE))
        before = json.loads(host.ip("-j", "rule"))
        assert asyncio.run(written_and_read()) == (RULES, frozenset())
        assert json.loads(host.ip("-j", "rule")) == before
