"""Pure computation of the `ip rule`s by which a packet finds the gateway's routing tables.

Source: ip-rule(8).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from esp_gw.desired import Desired
from esp_gw.errors import NetworkError
from esp_gw.model import Action, IPAddress, IPNetwork, Policy, PortRange
from esp_gw.network.objects import MAIN_TABLE, MAX_BYPASS_RULES, Rule
from esp_gw.protocol import BOOTPC_PORT, BOOTPS_PORT, IPPROTO_UDP

_UNSPECIFIED = IPv4Network("0.0.0.0/32")
_RULE_PORTS = PortRange(1, 65534)
"""The ports that a rule can match (fib_rule_port_range_valid in the kernel)."""


@dataclass(frozen=True, slots=True)
class Near:
    """Prefixes reachable without the TUN though inside a protected one; `inside` are exceptions.

    An exception is a protected prefix inside a near one.
    """

    prefixes: frozenset[IPNetwork]
    inside: frozenset[IPNetwork]


def plan_rules(
    desired: Desired,
    prefixes: frozenset[IPNetwork],
    near: Near,
    host_addresses: frozenset[IPAddress],
) -> list[Rule]:
    """Return rules of six kinds, in order of priority; `prefixes` are the protected ones.

    They are for bypass policies; for outer packets and DHCP; for near prefixes; for protected
    prefixes; for outer packets under a protected default route; and for that default route. Each
    kind has its own priorities, because the kernel tries rules of equal priority in order of
    insertion. Raises NetworkError if the priorities don't suffice.
    """
    settings = desired.settings
    protected = settings.table - 1
    rules = _near_rules(desired, prefixes, near, protected)
    rules = (
        _bypass_rules(desired, min((rule.priority for rule in rules), default=protected)) + rules
    )
    rules += [
        Rule(version, protected, settings.table, fwmark=settings.fwmark, inverted=True)
        for version in sorted({prefix.version for prefix in prefixes if prefix.prefixlen})
    ]
    rules += _default_route_rules(desired, host_addresses)
    return rules


def _near_rules(
    desired: Desired, prefixes: frozenset[IPNetwork], near: Near, behind: int
) -> list[Rule]:
    """Return rules that keep near prefixes and the host's own DHCP out of the tunnel.

    A near prefix uses the main table only for routes that are no default route. A protected prefix
    inside a near one stays protected: the longest prefix has the first rule.
    """
    settings = desired.settings
    if not prefixes:
        return []
    lengths = sorted({prefix.prefixlen for prefix in near.prefixes | near.inside}, reverse=True)
    first = behind - len(lengths)
    if first < 2:  # 0 is the kernel's, and one is for the exceptions
        raise NetworkError(
            f"routing table {settings.table} leaves no rule priorities before it",
            where="gateway.table",
            hint=f"choose a number above {MAX_BYPASS_RULES}",
        )
    # An inverted rule can't also match a destination, so a rule for outer packets comes first.
    rules = [
        Rule(version, first - 1, MAIN_TABLE, fwmark=settings.fwmark)
        for version in sorted({prefix.version for prefix in near.prefixes})
    ]
    if any(prefix.version == 4 for prefix in prefixes):
        # A lease is renewed with unicast, at a server that may be in a protected prefix.
        rules.append(
            Rule(
                4,
                first - 1,
                MAIN_TABLE,
                protocol=IPPROTO_UDP,
                source_port=PortRange(BOOTPC_PORT, BOOTPC_PORT),
                destination_port=PortRange(BOOTPS_PORT, BOOTPS_PORT),
                own_output=True,
            )
        )
    for prefix in sorted(near.prefixes | near.inside, key=str):
        priority = first + lengths.index(prefix.prefixlen)
        if prefix in near.prefixes:
            rules.append(
                Rule(
                    prefix.version,
                    priority,
                    MAIN_TABLE,
                    destination=prefix,
                    suppress_default=True,
                )
            )
        else:
            rules.append(Rule(prefix.version, priority, settings.table, destination=prefix))
    return rules


def _bypass_rules(desired: Desired, behind: int) -> list[Rule]:
    bypass = [
        (policy, selector)
        for policy in desired.policies
        if policy.action is Action.BYPASS
        for selector in policy.selectors
    ]
    limit = min(behind - (desired.settings.table - MAX_BYPASS_RULES), behind - 1)
    if len(bypass) > limit:
        raise NetworkError(
            f"bypass policies have {len(bypass)} pairs of prefixes, and there is room for {limit}",
            where=bypass[limit][0].name,
            hint="use wider prefixes",
        )
    first = behind - len(bypass)
    return [
        Rule(
            version=selector.remote.version,
            priority=first + number,
            table=MAIN_TABLE,
            source=selector.local if selector.local.prefixlen else None,
            destination=selector.remote if selector.remote.prefixlen else None,
            protocol=selector.protocol,
            source_port=_rule_ports(policy, selector.local_port),
            destination_port=_rule_ports(policy, selector.remote_port),
        )
        for number, (policy, selector) in enumerate(bypass)
    ]


def _rule_ports(policy: Policy, ports: PortRange | None) -> PortRange | None:
    """Return the ports that a rule can match; packets of ports 0 and 65535 go to the TUN.

    The engine drops those there.
    """
    if ports is None:
        return None
    first, last = max(ports.first, _RULE_PORTS.first), min(ports.last, _RULE_PORTS.last)
    if first > last:
        raise NetworkError(
            f"a kernel rule can't match port {ports} alone",
            where=policy.name,
            hint=f"bypass policies take ports {_RULE_PORTS}",
        )
    return PortRange(first, last)


def _default_route_rules(desired: Desired, host_addresses: frozenset[IPAddress]) -> list[Rule]:
    """Return rules by which a protected default route takes packets of its local prefixes only.

    Otherwise the gateway's own outer packets would be routed into the TUN.
    """
    settings = desired.settings
    table = settings.table + 1
    ours = host_addresses | {*settings.addresses}
    rules: set[Rule] = set()
    for policy in desired.policies:
        for selector in policy.selectors:
            if policy.action is Action.BYPASS or selector.remote.prefixlen:
                continue
            version, local = selector.remote.version, selector.local
            rules.add(Rule(version, settings.table, MAIN_TABLE, fwmark=settings.fwmark))
            if not local.prefixlen:
                rules.add(Rule(version, table, table))
                continue
            rules.add(Rule(version, table, table, source=local, find_source=version == 6))
            if version == 4 and any(address in local for address in ours):
                # A packet of this host is routed before it has a source. Without this rule, the
                # main table would send it in the clear, from a source that the policy protects.
                rules.add(Rule(version, table, table, source=_UNSPECIFIED))
    return sorted(rules, key=str)
