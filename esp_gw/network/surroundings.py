"""Clashes between what is wanted and the networks around this host, each in a sentence.

Those that would cut off the host, or a person who is logged in to it, are kept apart: they are
refused unless the configuration allows them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network

from esp_gw.desired import Desired
from esp_gw.errors import NetworkError
from esp_gw.model import Action, IPAddress, IPNetwork, Policy, PortRange, Selector
from esp_gw.network.objects import Host
from esp_gw.network.plan import near_prefixes
from esp_gw.network.prefixes import PrefixIndex
from esp_gw.protocol import IPPROTO_TCP


@dataclass(frozen=True, slots=True)
class Login:
    """A TCP connection to this host from `peer`, by which somebody is logged in."""

    peer: IPAddress
    local: IPAddress
    local_port: int


@dataclass(frozen=True, slots=True)
class _Taken:
    """The policy that takes a packet, and its prefix."""

    policy: str
    prefix: IPNetwork


class Ways:
    """Routing of the host's own packets by the rules of `plan_rules`."""

    def __init__(self, desired: Desired, host: Host) -> None:
        near = near_prefixes(desired, host)
        self._bypasses: list[Selector] = []
        self._everything: list[tuple[IPNetwork, _Taken]] = []
        protected: dict[IPNetwork, tuple[int, _Taken | None]] = {}
        for policy in desired.policies:
            if policy.action is Action.BYPASS:
                self._bypasses += policy.selectors
                continue
            for selector in policy.selectors:
                prefix = selector.remote
                taken = _Taken(policy.name, prefix)
                if prefix.prefixlen:
                    protected.setdefault(prefix, (prefix.prefixlen, taken))
                else:
                    self._everything.append((selector.local, taken))
        # Near prefixes and the exceptions from them come before all protected ones.
        first: dict[IPNetwork, tuple[int, _Taken | None]] = {
            each: protected[each] for each in near.inside
        }
        first |= {each: (each.prefixlen, None) for each in near.prefixes}
        self._first, self._protected = PrefixIndex(first), PrefixIndex(protected)

    def taken(
        self, source: IPAddress, target: IPAddress, protocol: int | None, port: int | None
    ) -> _Taken | None:
        """Return what takes a packet into a tunnel or discards it; None if it stays outside.

        `port` is the source port. Without a protocol any packet is meant.
        """
        if any(_matches(each, source, target, protocol, port) for each in self._bypasses):
            return None
        there: IPNetwork = ip_network(target)
        for index in (self._first, self._protected):
            found = max(index.around(there), key=lambda each: each[0], default=None)
            if found is not None:
                return found[1]
        return next(
            (
                taken
                for local, taken in self._everything
                if taken.prefix.version == target.version and source in local
            ),
            None,
        )


def clashes(desired: Desired, host: Host) -> list[str]:
    """Return a sentence for each clash, those that cut off the host first."""
    return [
        *cut_off(desired, host),
        *_foreign_addresses(desired, host),
        *_shadowed(desired, host),
        *_uplinks_inside(desired, host),
        *_left_out(desired, host),
    ]


def cut_off(desired: Desired, host: Host) -> list[str]:
    """Return a sentence for each default gateway of this host's networks that it would lose."""
    prefixes = {selector.remote for policy in desired.policies for selector in policy.selectors}
    found = []
    for router in sorted(host.routers, key=str):
        own = host.address_beside(router)
        if own is None or router.is_link_local or not any(router in each for each in prefixes):
            # Outside of the host's networks (point-to-point links) no packet is addressed to it.
            continue
        taken = Ways(desired, host).taken(own, router, None, None)
        if taken is not None:
            found.append(
                f"{router}, the default gateway of this host, lies inside {taken.prefix} of "
                f"{taken.policy}: this host would not reach it any more; narrow the prefix, or put "
                f"a bypass policy for {router} in front"
            )
    return found


def resolvers_behind(desired: Desired, host: Host, servers: Iterable[IPAddress]) -> list[str]:
    """Return a sentence for each resolver that only a tunnel reaches, if a peer has a name."""
    names = sorted({sa.remote_name for sa in desired.sas if sa.remote_name is not None})
    if not names:
        return []
    found = []
    ways = Ways(desired, host)
    for server in dict.fromkeys(servers):
        if server.is_loopback or server.is_link_local or server in host.addresses:
            continue
        taken = [ways.taken(source, server, None, None) for source in _sources(host, server)]
        policies = [each.policy for each in taken if each is not None]
        if policies and len(policies) == len(taken):
            found.append(
                f"the resolver {server} is behind {policies[0]}, and {names[0]} has to be resolved "
                "without a tunnel: use another resolver, or write the peer's address"
            )
    return found


def _sources(host: Host, target: IPAddress) -> Collection[IPAddress]:
    """Return the addresses that a packet of this host for a target may come from."""
    beside = host.address_beside(target)
    if beside is not None:
        return {beside}
    by_routers = {host.address_beside(each) for each in host.routers}
    found = {each for each in by_routers if each is not None and each.version == target.version}
    return found or {
        each
        for each in host.addresses
        if each.version == target.version and not (each.is_loopback or each.is_link_local)
    }


def cut_off_login(desired: Desired, host: Host, login: Login) -> list[str]:
    """Return a sentence if the answers to a person who is logged in would go into a tunnel."""
    taken = Ways(desired, host).taken(login.local, login.peer, IPPROTO_TCP, login.local_port)
    if taken is None:
        return []
    return [
        f"you are logged in from {login.peer}, which lies inside {taken.prefix} of {taken.policy}: "
        f"this session would end; narrow the prefix, or put a bypass policy for {login.peer} in "
        "front"
    ]


def refuse_cut_off(desired: Desired, host: Host, before: Desired) -> None:
    """Raise NetworkError if the host would be cut off, which it is not by `before`."""
    if desired.settings.allow_cut_off:
        return
    there = cut_off(before, host)
    for text in cut_off(desired, host):
        if text not in there:
            raise NetworkError(text, hint=ALLOW)


ALLOW = "'allow_cut_off: true' in 'gateway' goes on regardless"


def _outer(desired: Desired, host: Host) -> set[IPAddress]:
    """Return the local outer addresses; an automatic one is beside the peer, or a router."""
    written = {sa.local for sa in desired.sas if not sa.local.is_unspecified}
    peers = {sa.remote for sa in desired.sas if sa.local.is_unspecified}
    if not peers:
        return written
    connected = PrefixIndex({network: network for network in host.connected})
    beside = {network: peer for peer in peers for network in connected.around(ip_network(peer))}
    automatic = {host.address_beside(each) for each in (*beside.values(), *host.routers)}
    return written | {each for each in automatic if each is not None}


def _foreign_addresses(desired: Desired, host: Host) -> Iterator[str]:
    """Sentences for addresses of the gateway that another machine has, or may have."""
    outer = _outer(desired, host)
    for address in desired.settings.addresses:
        own = host.address_beside(address)
        if address in host.addresses:
            continue
        if address in host.routers:
            instead = f"{own} of this host will do" if own else "choose a free one"
            yield (
                f"gateway.address {address} is the address of this host's default gateway, and is "
                f"not taken from it; remove it from the configuration: {instead}"
            )
        elif own is not None and own in outer:
            yield (
                f"gateway.address {address} lies in the network of {own}, where another host may "
                f"have it, and both would answer to it; remove it from the configuration: {own} "
                "will do"
            )


def _shadowed(desired: Desired, host: Host) -> Iterator[str]:
    """Sentences for protected prefixes that are networks of the host, too."""
    for policy, prefix in _protected(desired):
        if prefix in host.connected and prefix.num_addresses > 1:
            yield (
                f"{prefix} is behind {policy.name} and also a network of this host: it is reached "
                "without the tunnel; give one end another network"
            )


def _uplinks_inside(desired: Desired, host: Host) -> Iterator[str]:
    """Sentences for networks of an outer address that lie inside a protected prefix."""
    outer = _outer(desired, host)
    uplinks = {
        network: local
        for network in host.connected
        for local in outer
        if network.version == local.version and local in network
    }
    for policy, prefix in _protected(desired):
        for network, local in sorted(uplinks.items(), key=str):
            if (
                0 < prefix.prefixlen < network.prefixlen
                and prefix.version == network.version
                and network.network_address in prefix
            ):
                yield (
                    f"{network}, the network of {local}, lies inside {prefix} of {policy.name}: "
                    "its hosts are reached without the tunnel, from here and for the peer's side; "
                    "narrow the prefix if they are not yours"
                )


def _left_out(desired: Desired, host: Host) -> list[str]:
    """Return a sentence if there are prefixes of an IP version that the kernel lacks."""
    prefixes = {prefix for _, prefix in _protected(desired) if prefix.version not in host.versions}
    if not prefixes:
        return []
    return [
        f"this kernel has no IPv6: nothing reaches {min(map(str, prefixes))} or any other IPv6 "
        "prefix of a tunnel; boot it without ipv6.disable=1"
    ]


def _protected(desired: Desired) -> Iterator[tuple[Policy, IPNetwork]]:
    """Yield each remote prefix of each protect policy once."""
    for policy in desired.policies:
        if policy.action is Action.PROTECT:
            for prefix in dict.fromkeys(selector.remote for selector in policy.selectors):
                yield policy, prefix


def _matches(
    selector: Selector,
    source: IPAddress,
    target: IPAddress,
    protocol: int | None,
    port: int | None,
) -> bool:
    """Return True if a selector matches every packet that is meant."""
    return (
        source in selector.local
        and target in selector.remote
        and selector.protocol in (None, protocol)
        and selector.remote_port is None
        and _holds(selector.local_port, port)
    )


def _holds(ports: PortRange | None, port: int | None) -> bool:
    return ports is None or (port is not None and ports.first <= port <= ports.last)
