"""The planned network in a model of the kernel's routing."""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from esp_gw.desired import Desired
from esp_gw.model import IPAddress, IPNetwork, PortRange
from esp_gw.network.objects import MAIN_TABLE, Host, Network, RouteKind, Rule
from esp_gw.network.plan import plan_network

MARK = 0xE5B
TABLE = 4500
NOWHERE = Host()


def plan(
    wanted: Desired,
    path_mtu: int = 1500,
    hosts: frozenset[IPAddress] = frozenset(),
    connected: frozenset[IPNetwork] = frozenset(),
) -> Network:
    mtus = {sa.remote: path_mtu for sa in wanted.sas}
    return plan_network(wanted, mtus, Host(hosts, connected))


@dataclass(frozen=True)
class Probe:
    """A packet to route; `src` is unspecified while a local packet has no source yet."""

    src: IPAddress
    dst: IPAddress
    protocol: int = 17
    src_port: int = 1000
    dst_port: int = 2000
    mark: int = 0
    forwarded: bool = False


MAIN, TUN, UNREACHABLE = "main", RouteKind.TUN, RouteKind.UNREACHABLE


def rule_applies(rule: Rule, probe: Probe) -> bool:
    applies = (
        (rule.source is None or probe.src in rule.source)
        and (rule.destination is None or probe.dst in rule.destination)
        and (rule.fwmark is None or rule.fwmark == probe.mark)
        and not (rule.own_output and probe.forwarded)
        and (rule.protocol is None or rule.protocol == probe.protocol)
        and (rule.source_port is None or in_range(rule.source_port, probe.src_port))
        and (rule.destination_port is None or in_range(rule.destination_port, probe.dst_port))
    )
    return rule.version == probe.dst.version and applies is not rule.inverted


def in_range(ports: PortRange, port: int) -> bool:
    return ports.first <= port <= ports.last


def routed(network: Network, probe: Probe, *, tun: bool = True, seed: int = 0) -> str:
    """Model the kernel's routing: rules by priority, in random order within one priority."""
    rules = sorted(network.rules, key=str)
    random.Random(seed).shuffle(rules)
    for rule in sorted(rules, key=lambda rule: rule.priority):
        if not rule_applies(rule, probe):
            continue
        if rule.table == MAIN_TABLE:
            return MAIN
        found = [
            route
            for route in network.routes
            if route.table == rule.table
            and route.destination.version == probe.dst.version
            and probe.dst in route.destination
            and (tun or route.kind is not TUN)
        ]
        if found:
            # The longest prefix wins; for equal prefixes, the TUN's metric is better.
            best = max(found, key=lambda r: (r.destination.prefixlen, r.kind is TUN))
            return best.kind
    return MAIN


def probe(src: str, dst: str, **fields: Any) -> Probe:
    return Probe(ip_address(src), ip_address(dst), **fields)
