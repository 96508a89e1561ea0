"""The packet filter that a set of policies needs beside its routes.

Routes alone don't close a host: a socket bound to a device ignores them, and they say nothing of
the packets that arrive. The filter drops cleartext to a protected prefix on its way out, cleartext
from a protected prefix on its way in (RFC 4301 5.2), packets with a forged source on their way into
the TUN, and those that would go back and forth between two gateways until their hop limit ends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from esp_gw.desired import DEFAULT_TABLE, GatewaySettings
from esp_gw.model import AUTO, Action, IPNetwork, Policy, Selector
from esp_gw.network.ranges import Range, ranges
from esp_gw.protocol import IKE_PORT, UDP_ENCAP_PORT


class FirewallDrop(enum.StrEnum):
    """Reason for which the packet filter drops a packet; each has a counter."""

    CLEARTEXT_OUT = "cleartext-out"
    CLEARTEXT_IN = "cleartext-in"
    SPOOFED_SOURCE = "spoofed-source"
    LOOP = "loop"


@dataclass(frozen=True, slots=True)
class Firewall:
    """The contents of the nftables table `inet <name>`.

    `remote` are the protected addresses. `near` are those that a host with a protected default
    route reaches without the TUN, `full` the local addresses that this route protects; both are
    empty without one. `bypass` are the selectors of the bypass policies. `ports` are UDP ports at
    which outer packets may arrive. `mirrored` are addresses behind both ends of a tunnel and of no
    other one: a packet out of the TUN between two of them would go back into the same tunnel.
    `checks_sources` drops packets on their way into the TUN whose source is not reachable where
    they came from.
    """

    name: str
    interface: str
    fwmark: int
    ports: frozenset[int]
    remote: tuple[Range, ...]
    near: tuple[Range, ...]
    full: tuple[Range, ...]
    bypass: tuple[Selector, ...]
    mirrored: tuple[Range, ...]
    checks_sources: bool


UNKNOWN = Firewall("", "", 0, frozenset(), (), (), (), (), (), checks_sources=False)
"""Stands for a table whose contents nobody knows; it is never planned."""


def firewall_name(table: int) -> str:
    """Return the name of the nftables table of the gateway that has this routing table."""
    return "esp_gw" if table == DEFAULT_TABLE else f"esp_gw_{table}"


def plan_firewall(
    settings: GatewaySettings, policies: Iterable[Policy], near: Iterable[IPNetwork]
) -> Firewall | None:
    """Return the filter for the policies, or None if it is off or nothing is protected.

    `near` are prefixes inside a protected one that stay reachable without the TUN.
    """
    if settings.firewall != AUTO:
        return None
    near = frozenset(near)
    bypass: list[Selector] = []
    protected: set[IPNetwork] = set()
    full: set[IPNetwork] = set()
    mirrored: set[IPNetwork] = set()
    one_sided: set[IPNetwork] = set()
    for policy in policies:
        if policy.action is Action.BYPASS:
            bypass += policy.selectors
            continue
        for selector in policy.selectors:
            is_mirrored = policy.action is Action.PROTECT and selector.local == selector.remote
            (mirrored if is_mirrored else one_sided).add(selector.remote)
            if selector.remote.prefixlen:
                protected.add(selector.remote)
            else:
                full.add(selector.local)
    if not protected and not full:
        return None
    return Firewall(
        name=firewall_name(settings.table),
        interface=settings.interface,
        fwmark=settings.fwmark,
        ports=frozenset({IKE_PORT, UDP_ENCAP_PORT, settings.port}),
        remote=ranges(protected - near, near),
        near=ranges(near, protected - near) if full else (),
        full=ranges(full),
        bypass=tuple(bypass),
        mirrored=ranges(mirrored, one_sided - mirrored) if mirrored else (),
        checks_sources=settings.source_check == AUTO,
    )
