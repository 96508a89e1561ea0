"""Source addresses of packets that the gateway itself, or masquerade, sends into its tunnels.

A selector takes a packet by its source, too: the host's own packets need an address that lies in
one of the local prefixes which go with the remote one.

Masquerade gives packets the first address of the interface by which they leave, and that of any
other interface if it has none (inet_select_addr in net/ipv4/devinet.c, called by
nf_nat_masquerade.c; ipv6_dev_get_saddr, which prefers the interface). Without an address inside a
local prefix on the TUN, a container's packets would have one that no selector takes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence, Set

from esp_gw.desired import Desired
from esp_gw.model import Action, IPAddress, IPNetwork, Mode
from esp_gw.network.objects import Host


def own_addresses(configured: Iterable[IPAddress], host: Host) -> tuple[IPAddress, ...]:
    """Return the configured addresses without those of a default gateway, which keeps them."""
    return tuple(each for each in configured if each not in host.routers - host.addresses)


class SourceHints:
    """Source hints of routes: `preferred` addresses first, then the `host`'s own ones."""

    def __init__(self, preferred: Sequence[IPAddress], host: Iterable[IPAddress]) -> None:
        self._preferred = preferred
        usable = [each for each in host if not (each.is_loopback or each.is_link_local)]
        # Thousands of local prefixes may meet thousands of addresses.
        self._host = {
            version: sorted((each for each in usable if each.version == version), key=int)
            for version in (4, 6)
        }
        # Thousands of tunnels have a few local prefixes.
        self._known: dict[IPNetwork, IPAddress | None] = {}

    def of(self, prefixes: Sequence[IPNetwork]) -> IPAddress | None:
        """Return an address of this host inside one of the local prefixes, or None.

        The kernel refuses any other, and chooses well itself where a prefix is everything.
        """
        for address in self._preferred:
            if any(address in prefix for prefix in prefixes):
                return address
        return self._of_host(prefixes)

    def for_masquerade(self, own: Set[IPAddress], desired: Desired) -> set[IPAddress]:
        """Return addresses of other interfaces to be added to the TUN, one of an IP version.

        None for an IP version in which the TUN has an `own` address, or any source will do.
        """
        tunnels = {sa.name for sa in desired.sas if sa.mode is Mode.TUNNEL}
        prefixes = dict.fromkeys(
            selector.local
            for policy in desired.policies
            if policy.action is Action.PROTECT and not tunnels.isdisjoint(policy.sas)
            for selector in policy.selectors
        )
        found = {
            self._of_host([each for each in prefixes if each.version == version])
            for version in {4, 6} - {address.version for address in own}
        }
        return {each for each in found if each is not None}

    def _of_host(self, prefixes: Iterable[IPNetwork]) -> IPAddress | None:
        for prefix in prefixes:
            if not prefix.prefixlen:
                return None
            if prefix not in self._known:
                self._known[prefix] = self._lowest(prefix)
            if (found := self._known[prefix]) is not None:
                return found
        return None

    def _lowest(self, prefix: IPNetwork) -> IPAddress | None:
        there = self._host[prefix.version]
        at = bisect_left(there, int(prefix.network_address), key=int)
        return there[at] if at < len(there) and there[at] in prefix else None
