"""From what is wanted to what is placed and planned: addresses looked up, paths, the network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from esp_gw.daemon.around import Around
from esp_gw.daemon.local_addresses import LocalAddresses
from esp_gw.daemon.names import Names
from esp_gw.daemon.paths import PathMtus
from esp_gw.daemon.peers import Counted, Peers
from esp_gw.desired import Desired
from esp_gw.model import IPAddress, Sa
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.objects import Network
from esp_gw.network.planner import Planner
from esp_gw.per_object import PerObject

MAX_LISTENING = 64
"""Bound on the addresses at which IKE is received: each has a socket for each worker."""


class Planning:
    """The addresses and path MTUs that were looked up last, and the network planned with them.

    `remotes` are the peers' addresses in the last plan. `needs_filter` is true if it has a packet
    filter, `looked` the time of it in the loop's clock.
    """

    def __init__(self, kernel: KernelNetwork, names: Names, peers: Peers) -> None:
        self._kernel = kernel
        self._names = names
        self._peers = peers
        self._locals = LocalAddresses()
        self._addresses: frozenset[IPAddress] = frozenset()
        self._last: tuple[object, Network] | None = None
        self._planner = Planner()
        self._is_settled = False
        self._facts = PerObject(_facts_of)
        self._remotes = PerObject(_numbered_remote)
        self._numbered: dict[tuple[int, int], IPAddress] = {}
        self.paths = PathMtus()
        self.around = Around(kernel)
        self.remotes: frozenset[IPAddress] = frozenset()
        self.needs_filter = False
        self.looked = 0.0

    @property
    def missing(self) -> tuple[str, ...]:
        """Warnings about SAs that have no local address yet."""
        return self._locals.missing

    async def place(self, desired: Desired, there: Mapping[str, Sa], counted: Counted) -> Desired:
        """Return the desired state with looked-up addresses, without SAs that have none.

        `there` are the engine's SAs, by name.
        """
        desired = self._names.place(desired)
        peers = {sa.name: sa.remote for sa in self._where_peers_are(desired, there, counted).sas}
        mark = desired.settings.fwmark
        placed = await self._locals.place(
            desired, peers, lambda remote: self._kernel.source(remote, mark)
        )
        if not desired.listens:
            return placed
        host = await self._kernel.host(mark)
        return replace(placed, listening=_outer(host.addresses - {*desired.settings.addresses}))

    async def plan(
        self, desired: Desired, there: Mapping[str, Sa], counted: Counted, now: float
    ) -> Network:
        """Return the network that the placed state needs; the same object while that is the same.

        Raises NetworkError.
        """
        desired = self._where_peers_are(desired, there, counted)
        self.remotes = self._peers_of(desired)
        settings = desired.settings
        mtus = await self.paths.look_up_all(
            self.remotes,
            settings.min_mtu,
            lambda remote: self._kernel.path_mtu(remote, settings.fwmark),
        )
        host = await self.around.look(settings.fwmark)
        needed = (settings, host, mtus, self._needed(desired))
        if self._last is None or self._last[0] != needed:
            network = self._planner.plan(desired, mtus, host, self.paths.changes)
            if self._planner.is_whole:
                self.around.judge(desired)
            self._last = (needed, network)
        network = self._last[1]
        self.needs_filter, self.looked = network.firewall is not None, now
        return network

    def _peers_of(self, desired: Desired) -> frozenset[IPAddress]:
        """Return the peers' addresses; the same object while they are the same.

        Those that were there before are not hashed again: there may be one for each SA.
        """
        before = self._numbered
        found = [each for each in self._remotes.of(desired.sas) if each is not None]
        self._numbered = now = dict(found)
        if now.keys() == before.keys():
            return self.remotes
        gone = frozenset([before[number] for number in before.keys() - now.keys()])
        new = frozenset([now[number] for number in now.keys() - before.keys()])
        return (self.remotes - gone) | new

    def _needed(self, desired: Desired) -> list[object]:
        """Return all that `plan_network` reads of policies and SAs."""
        names = [sa.name for sa in desired.sas]
        facts = dict(zip(names, self._facts.of(desired.sas), strict=True)).get
        return [
            (policy.action, policy.selectors, tuple(map(facts, policy.sas)))
            for policy in desired.policies
        ]

    def doubt(self) -> None:
        """Look up all paths and plan anew the next time: the network may have changed."""
        self._last, self._is_settled = None, False
        self._peers.doubt()
        self.paths.doubt()

    def settle(self, there: Network) -> None:
        """Take note that the network that was planned last is in place, if the TUN is up."""
        self._is_settled = there.is_up

    async def there(self, planned: Network, last: Network) -> Network:
        """Return our part of the kernel's network; `last` is the one that was planned before.

        It is not looked at without a doubt: the watch repairs what others change. Raises
        NetworkError.
        """
        if self._is_settled:
            self._addresses |= planned.addresses
            return last
        return self.ours(await self._kernel.observe(), planned)

    def ours(self, there: Network, planned: Network) -> Network:
        """Return the network that is there without addresses that other programs gave the TUN.

        An IKE daemon adds the virtual one that its peer has assigned.
        """
        self._addresses |= planned.addresses
        return replace(there, addresses=there.addresses & self._addresses)

    def _where_peers_are(
        self, desired: Desired, there: Mapping[str, Sa], counted: Counted
    ) -> Desired:
        """Return the desired state with the current addresses of peers that moved."""
        if not self._peers.have_moved:
            return desired
        return self._peers.placed(desired, there, counted)


def _outer(addresses: Collection[IPAddress]) -> frozenset[IPAddress]:
    """Return the addresses at which a peer may ask for a tunnel, MAX_LISTENING at most."""
    outer = [
        each
        for each in addresses
        if not (each.is_loopback or each.is_link_local or each.is_multicast)
    ]
    return frozenset(sorted(outer, key=lambda each: (each.version, int(each)))[:MAX_LISTENING])


def _numbered_remote(sa: Sa) -> tuple[tuple[int, int], IPAddress] | None:
    """Return the peer's address behind a number for it, None while it is not known."""
    remote = sa.remote
    return None if remote.is_unspecified else ((remote.version, int(remote)), remote)


def _facts_of(sa: Sa) -> tuple[object, ...]:
    return (sa.mode, sa.encapsulation, sa.suite, sa.remote)
