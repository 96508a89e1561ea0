"""Plans the network anew where a few policies have changed, at the cost of these alone.

A policy stands apart if its remote prefixes meet nothing else: no other protected prefix, no local
one, no network of the host. What it adds to the network is what it needs alone, its routes and its
part of the packet filter. Any other change is planned as a whole, by `plan_network`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from esp_gw.desired import Desired
from esp_gw.model import AUTO, Action, IPAddress, IPNetwork, Mode, Policy, Sa
from esp_gw.network.mtu import DEFAULT_PATH_MTU
from esp_gw.network.objects import Host, Network, Route
from esp_gw.network.plan import plan_network
from esp_gw.network.prefix_set import PrefixSet
from esp_gw.network.ranges import RunList
from esp_gw.network.sources import own_addresses

_Entry = tuple[Policy, tuple[Sa | None, ...]]
"""A policy with its SAs."""


class Planner:
    """The last plan, and what each of its policies adds to it.

    `is_whole` is true if the last call has planned as a whole: a policy that stands apart meets
    nothing around the host.
    """

    def __init__(self) -> None:
        self._last: _Plan | None = None
        self.is_whole = True

    def plan(
        self, desired: Desired, mtus: Mapping[IPAddress, int], host: Host, changes: int
    ) -> Network:
        """Return what `plan_network` returns.

        `changes` is another number whenever the path MTU of a peer that was there has changed.
        Raises NetworkError.
        """
        sas = {sa.name: sa for sa in desired.sas}.get
        entries: dict[str, _Entry] = {
            policy.name: (policy, tuple(map(sas, policy.sas))) for policy in desired.policies
        }
        # After an error nothing is known.
        last, self._last = self._last, None
        self.is_whole = (
            last is None
            or last.changes != changes
            or not last.is_around(desired, host)
            or not last.follow(entries, mtus)
        )
        if last is None or self.is_whole:
            former = None if last is None else last.network
            last = _Plan(desired, entries, mtus, host, changes, former)
        self._last = last
        return last.network


class _Plan:
    """A planned network, and the policies that it is for."""

    def __init__(
        self,
        desired: Desired,
        entries: dict[str, _Entry],
        mtus: Mapping[IPAddress, int],
        host: Host,
        changes: int,
        former: Network | None,
    ) -> None:
        network = plan_network(desired, mtus, host)
        # The same objects as long as they are equal: later comparisons cost nothing.
        self.network = former if former is not None and former == network else network
        self.changes = changes
        self._settings = desired.settings
        self._host = host
        self._entries = entries
        own = frozenset(own_addresses(self._settings.addresses, host)) - host.addresses
        self._without_address = {4, 6} - {address.version for address in own}
        self._connected = PrefixSet(host.connected)
        self._remote, self._local = PrefixSet(), PrefixSet()
        self._masqueraded: Counter[IPNetwork] = Counter()
        self._outer: Counter[IPAddress] = Counter(sa.local for sa in desired.sas)
        for entry in entries.values():
            self._count(entry, 1)
        self._mtus = Counter(route.mtu for route in self.network.routes)
        self._routes: dict[IPNetwork, list[Route]] = {}
        for route in self.network.routes:
            self._routes.setdefault(route.destination, []).append(route)
        firewall = self.network.firewall
        self._runs = RunList(() if firewall is None else firewall.remote)
        self._new: set[Route] = set()
        self._gone: set[Route] = set()

    def is_around(self, desired: Desired, host: Host) -> bool:
        """Return True for the settings and the host of this plan."""
        return self._settings == desired.settings and self._host == host

    def follow(self, entries: dict[str, _Entry], mtus: Mapping[IPAddress, int]) -> bool:
        """Change the plan to that of other policies; return False if it has to be made anew."""
        before, self._entries = self._entries, entries
        # Compared by identity mostly, which calls no function of Python.
        gone = [before[name] for name in before if entries.get(name) != before[name]]
        new = [entries[name] for name in entries if before.get(name) != entries[name]]
        stays = [name for name in before if name in entries]
        if stays != [name for name in entries if name in before]:
            return False
        self._new, self._gone = set(), set()
        for entry in gone:
            self._count(entry, -1)
            if not self._stands_apart(entry):
                return False
            self._take_out(entry[0])
        for entry in new:
            if not self._stands_apart(entry):
                return False
            self._put_in(entry, mtus)
            self._count(entry, 1)
        if gone or new:
            self._assemble()
        return True

    def _count(self, entry: _Entry, number: int) -> None:
        """Count the prefixes of a policy that protects or discards, or uncount them."""
        policy, sas = entry
        if policy.action is Action.BYPASS:
            return
        for selector in policy.selectors:
            self._remote.count(selector.remote, number)
            if selector.local.prefixlen:
                self._local.count(selector.local, number)
        for local in _masqueraded(policy, sas):
            self._masqueraded[local] += number
            if not self._masqueraded[local]:
                del self._masqueraded[local]

    def _stands_apart(self, entry: _Entry) -> bool:
        """Return True for a policy that adds to a plan without it, and changes nothing in it."""
        policy, sas = entry
        is_filtered = self.network.firewall is not None
        if policy.action is Action.BYPASS or is_filtered is not (self._settings.firewall == AUTO):
            return False
        remotes = dict.fromkeys(selector.remote for selector in policy.selectors)
        # Only a prefix that is none of everything can be near.
        ours = dict.fromkeys(s.local for s in policy.selectors if s.local.prefixlen)
        own = PrefixSet()
        for each in remotes:
            if own.overlaps(each) or not self._is_free(each):
                return False
            own.count(each, 1)
        return (
            all(each in self._local and not own.overlaps(each) for each in ours)
            and all(self._masquerades_already(each) for each in _masqueraded(policy, sas))
            and all(sa is None or sa.local in self._outer for sa in sas)
        )

    def _is_free(self, remote: IPNetwork) -> bool:
        """Return True for a remote prefix that meets nothing, beside others of its IP version."""
        return (
            remote.prefixlen > 0
            and remote.version in self._host.versions
            and self._remote.has_longer(remote.version)
            and not self._remote.overlaps(remote)
            and not self._local.overlaps(remote)
            and not self._connected.overlaps(remote)
            and not any(router in remote for router in self._host.routers)
        )

    def _masquerades_already(self, local: IPNetwork) -> bool:
        """Return True if the TUN's address for masquerade is chosen for this prefix, too."""
        if local.version not in self._without_address:
            return True
        return [each for each in self._masqueraded if each.version == local.version] == [local]

    def _put_in(self, entry: _Entry, mtus: Mapping[IPAddress, int]) -> None:
        policy, sas = entry
        alone = Desired(
            self._settings, sas=tuple(sa for sa in sas if sa is not None), policies=(policy,)
        )
        network = plan_network(alone, mtus, self._host)
        for route in network.routes:
            self._routes.setdefault(route.destination, []).append(route)
            self._mtus[route.mtu] += 1
        if network.firewall is not None:
            for run in network.firewall.remote:
                self._runs.add(run)
        self._new |= network.routes

    def _take_out(self, policy: Policy) -> None:
        for remote in dict.fromkeys(selector.remote for selector in policy.selectors):
            for route in self._routes.pop(remote):
                self._mtus[route.mtu] -= 1
                self._gone.add(route)
            if self.network.firewall is not None:
                self._runs.remove(remote)

    def _assemble(self) -> None:
        there = self.network
        firewall = there.firewall
        mtus = [mtu for mtu, count in self._mtus.items() if count]
        self.network = replace(
            there,
            mtu=max(mtus, default=self._settings.mtu or DEFAULT_PATH_MTU),
            routes=(there.routes - self._gone) | self._new,
            firewall=firewall and replace(firewall, remote=self._runs.ranges()),
        )


def _masqueraded(policy: Policy, sas: tuple[Sa | None, ...]) -> list[IPNetwork]:
    """Return the local prefixes from which masquerade may send by this policy, each once."""
    if policy.action is not Action.PROTECT:
        return []
    if not any(sa is not None and sa.mode is Mode.TUNNEL for sa in sas):
        return []
    return list(dict.fromkeys(selector.local for selector in policy.selectors))
