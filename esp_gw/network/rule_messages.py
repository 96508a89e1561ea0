"""The gateway's `ip rule`s: as pyroute2 writes them, and as the kernel dumps them.

Source: linux/fib_rules.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from esp_gw.model import IPNetwork, PortRange
from esp_gw.network.messages import FAMILY, NUMBER, MessageSocket, attributes, number, text
from esp_gw.network.objects import Rule
from esp_gw.network.routes import PROTOCOL

_RULE = struct.Struct("=BBBBB2xBI")
"""struct fib_rule_hdr: family, dst_len, src_len, TOS, table, action, flags."""
_PORTS = struct.Struct("=HH")
_RTM_GETRULE = 34
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY, _FRA_FWMARK = 1, 2, 3, 6, 10
_FRA_SUPPRESS_PREFIXLEN, _FRA_TABLE = 14, 15
_FRA_PROTOCOL, _FRA_IP_PROTO, _FRA_SPORT_RANGE, _FRA_DPORT_RANGE = 21, 22, 23, 24
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


def our_rules(messages: MessageSocket) -> Iterator[Rule]:
    """Yield the rules with our protocol number. Raises NetworkError, OSError."""
    for version, family in FAMILY.items():
        request = _RULE.pack(family, 0, 0, 0, 0, 0, 0)
        for body in messages.dump(_RTM_GETRULE, request, "rules"):
            rule = read_rule(body, version)
            if rule is not None:
                yield rule


def read_rule(body: bytes, version: int) -> Rule | None:
    """Return the rule in a message body if it is ours and of this IP version, else None."""
    family, destination_bits, source_bits, _, _, _, flags = _RULE.unpack_from(body)
    fields = dict(attributes(body[_RULE.size :]))
    if family != FAMILY[version] or fields.get(_FRA_PROTOCOL) != bytes([PROTOCOL]):
        return None
    protocol = fields.get(_FRA_IP_PROTO)
    return Rule(
        version=version,
        priority=number(fields.get(_FRA_PRIORITY)),
        table=number(fields.get(_FRA_TABLE)),
        fwmark=number(fields[_FRA_FWMARK]) if _FRA_FWMARK in fields else None,
        inverted=bool(flags & _FIB_RULE_INVERT),
        suppress_default=fields.get(_FRA_SUPPRESS_PREFIXLEN) == NUMBER.pack(0),
        find_source=bool(flags & _FIB_RULE_FIND_SADDR),
        own_output=text(fields.get(_FRA_IIFNAME)) == _LOOPBACK,
        source=_prefix(fields.get(_FRA_SRC), source_bits),
        destination=_prefix(fields.get(_FRA_DST), destination_bits),
        protocol=None if protocol is None else protocol[0],
        source_port=_ports(fields.get(_FRA_SPORT_RANGE)),
        destination_port=_ports(fields.get(_FRA_DPORT_RANGE)),
    )


def _prefix(packed: bytes | None, length: int) -> IPNetwork | None:
    return None if packed is None else ip_network((packed, length), strict=False)


def _ports(packed: bytes | None) -> PortRange | None:
    return None if packed is None else PortRange(*_PORTS.unpack(packed))
