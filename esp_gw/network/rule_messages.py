"""The gateway's `ip rule`s as pyroute2 writes and reads them.

Source: linux/fib_rules.h.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

from esp_gw.model import IPNetwork, PortRange
from esp_gw.network.objects import Rule
from esp_gw.network.routes import FAMILY, PROTOCOL

_FR_ACT_TO_TBL = 1
_FIB_RULE_INVERT = 2
_FIB_RULE_FIND_SADDR = 0x00010000
_LOOPBACK = "lo"
"""The input interface that the kernel assigns to packets of the host itself."""


def rule_request(rule: Rule) -> dict[str, Any]:
    """Return the arguments of a pyroute2 request that adds or deletes the rule."""
    arguments: dict[str, Any] = {
        "family": FAMILY[rule.version],
        "priority": rule.priority,
        "table": rule.table,
        "action": _FR_ACT_TO_TBL,
        "FRA_PROTOCOL": PROTOCOL,
        "flags": (_FIB_RULE_INVERT if rule.inverted else 0)
        | (_FIB_RULE_FIND_SADDR if rule.find_source else 0),
    }
    if rule.fwmark is not None:
        arguments |= {"fwmark": rule.fwmark, "fwmask": 0xFFFFFFFF}
    if rule.suppress_default:
        arguments["FRA_SUPPRESS_PREFIXLEN"] = 0
    if rule.own_output:
        arguments["iifname"] = _LOOPBACK
    for key, prefix in (("src", rule.source), ("dst", rule.destination)):
        if prefix is not None:
            arguments[key] = str(prefix.network_address)
            arguments[f"{key}_len"] = prefix.prefixlen
    if rule.protocol is not None:
        arguments["ip_proto"] = rule.protocol
    for key, ports in (("sport_range", rule.source_port), ("dport_range", rule.destination_port)):
        if ports is not None:
            arguments[key] = f"{ports.first}:{ports.last}"
    return arguments


def read_rule(message: Any, version: int) -> Rule:
    """Return the rule in a message of the kernel."""
    return Rule(
        version=version,
        priority=message.get("priority"),
        table=message.get("table"),
        fwmark=message.get("fwmark"),
        inverted=bool(message["flags"] & _FIB_RULE_INVERT),
        suppress_default=message.get("FRA_SUPPRESS_PREFIXLEN") == 0,
        find_source=bool(message["flags"] & _FIB_RULE_FIND_SADDR),
        own_output=message.get("iifname") == _LOOPBACK,
        source=_prefix(message.get("src"), message["src_len"]),
        destination=_prefix(message.get("dst"), message["dst_len"]),
        protocol=message.get("ip_proto"),
        source_port=_ports(message.get("sport_range")),
        destination_port=_ports(message.get("dport_range")),
    )


def _prefix(address: str | None, length: int) -> IPNetwork | None:
    return None if address is None else ip_network(f"{address}/{length}")


def _ports(text: str | None) -> PortRange | None:
    if text is None:
        return None
    first, _, last = text.partition(":")
    return PortRange(int(first), int(last or first))
