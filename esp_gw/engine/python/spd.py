"""Selectors and the SPD: the policy for an outbound packet, and the packets an SA may carry.

A lookup costs one probe for each pair of prefix lengths in use; the engine caches the result for
each flow. Source: RFC 4301 4.4.1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from heapq import merge

from esp_gw.engine.python.wire import Inner
from esp_gw.model import IPNetwork, Policy, PortRange, Selector
from esp_gw.per_object import PerObject

ANY_PORT = (-1, 65535)
"""Also matches a packet without ports, whose port is -1."""


class CompiledSelector:
    """A selector in integers, for matching against parsed packets."""

    __slots__ = ("_local", "_local_port", "_protocol", "_remote", "_remote_port", "_version")

    def __init__(self, selector: Selector) -> None:
        self._version = selector.local.version
        self._local = _prefix(selector.local)
        self._remote = _prefix(selector.remote)
        self._protocol = selector.protocol
        self._local_port = _port_bounds(selector.local_port)
        self._remote_port = _port_bounds(selector.remote_port)

    @property
    def names_ports(self) -> bool:
        """True if the selector restricts ports."""
        return (self._local_port, self._remote_port) != (ANY_PORT, ANY_PORT)

    @property
    def masks(self) -> tuple[int, int, int]:
        """IP version, and the netmasks of the local and the remote prefix."""
        return self._version, self._local[1], self._remote[1]

    @property
    def networks(self) -> tuple[int, int]:
        """Network addresses of the local and the remote prefix, as integers."""
        return self._local[0], self._remote[0]

    def matches_outbound(self, inner: Inner) -> bool:
        """Return True if an outbound packet matches; its source is compared with `local`."""
        return self._matches(inner, inner.src, inner.dst, inner.src_port, inner.dst_port)

    def matches_inbound(self, inner: Inner) -> bool:
        """Return True if an inbound packet matches; its destination is compared with `local`."""
        return self._matches(inner, inner.dst, inner.src, inner.dst_port, inner.src_port)

    def may_match_whole(self, fragment: Inner) -> bool:
        """Return True if an outbound fragment matches apart from ports.

        The whole packet may still match or miss on its ports.
        """
        return self._matches_but_ports(fragment, fragment.src, fragment.dst)

    def _matches(
        self, inner: Inner, local: int, remote: int, local_port: int, remote_port: int
    ) -> bool:
        return (
            self._matches_but_ports(inner, local, remote)
            and self._local_port[0] <= local_port <= self._local_port[1]
            and self._remote_port[0] <= remote_port <= self._remote_port[1]
        )

    def _matches_but_ports(self, inner: Inner, local: int, remote: int) -> bool:
        return (
            inner.version == self._version
            and local & self._local[1] == self._local[0]
            and remote & self._remote[1] == self._remote[0]
            and self._protocol in (None, inner.protocol)
        )


_Compiled = tuple[CompiledSelector, tuple[int, int, int], tuple[int, int]]


class Spd:
    """The outbound policies in order, looked up by packet.

    Selectors are grouped by prefix lengths, then by network addresses, so that 10,000 policies
    for distinct networks cost no more than one.
    """

    def __init__(self, policies: Collection[Policy], former: Spd | None = None) -> None:
        # Objects made of a policy for the former SPD serve this one.
        self._compiled: PerObject[Policy, list[_Compiled]] = (
            PerObject(_compile) if former is None else former._compiled
        )
        self._entries: list[tuple[CompiledSelector, Policy]] = []
        # Indices into _entries, ascending.
        self._groups: dict[tuple[int, int, int], dict[tuple[int, int], list[int]]] = {}
        for policy, compiled in zip(policies, self._compiled.of(policies), strict=True):
            for selector, masks, networks in compiled:
                group = self._groups.setdefault(masks, {})
                group.setdefault(networks, []).append(len(self._entries))
                self._entries.append((selector, policy))

    def lookup(self, inner: Inner) -> Policy | None:
        """Return the first policy that matches the packet, or None."""
        first = len(self._entries)
        for numbers in self._near(inner):
            for number in numbers:
                if number >= first:
                    break
                if self._entries[number][0].matches_outbound(inner):
                    first = number
                    break
        return self._entries[first][1] if first < len(self._entries) else None

    def candidates(self, fragment: Inner) -> Iterator[Policy]:
        """Yield, in order, the policies that may be the first match of a fragment's whole packet.

        The result is the same for every fragment of a packet, with ports or without.
        """
        for number in merge(*self._near(fragment)):
            selector, policy = self._entries[number]
            if selector.may_match_whole(fragment):
                yield policy
                if not selector.names_ports:
                    return

    def _near(self, inner: Inner) -> Iterator[list[int]]:
        """Yield the indices of the entries whose prefixes contain the packet's addresses."""
        for (version, local, remote), group in self._groups.items():
            if version == inner.version:
                numbers = group.get((inner.src & local, inner.dst & remote))
                if numbers is not None:
                    yield numbers


def _compile(policy: Policy) -> list[_Compiled]:
    found = [CompiledSelector(selector) for selector in policy.selectors]
    return [(selector, selector.masks, selector.networks) for selector in found]


def _prefix(network: IPNetwork) -> tuple[int, int]:
    return int(network.network_address), int(network.netmask)


def _port_bounds(ports: PortRange | None) -> tuple[int, int]:
    return ANY_PORT if ports is None else (ports.first, ports.last)
