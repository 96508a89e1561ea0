"""From what is wanted to what is placed and planned: addresses looked up, paths, the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from esp_gw.daemon.around import Around
from esp_gw.daemon.local_addresses import LocalAddresses
from esp_gw.daemon.names import Names
from esp_gw.daemon.paths import PathMtus
from esp_gw.daemon.peers import Peers
from esp_gw.desired import Desired
from esp_gw.engine.base import SaCounters
from esp_gw.model import IPAddress, Sa
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.objects import Network
from esp_gw.network.plan import plan_network

Counted = Callable[[], Mapping[str, SaCounters]]
"""Return the counters of the engine's SAs, which are read only if a peer has moved."""


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
        return await self._locals.place(
            desired, peers, lambda remote: self._kernel.source(remote, mark)
        )

    async def plan(
        self, desired: Desired, there: Mapping[str, Sa], counted: Counted, now: float
    ) -> Network:
        """Return the network that the placed state needs; the same object while that is the same.

        Raises NetworkError.
        """
        desired = self._where_peers_are(desired, there, counted)
        self.remotes = frozenset(sa.remote for sa in desired.sas if not sa.remote.is_unspecified)
        settings = desired.settings
        mtus = await self.paths.look_up_all(
            self.remotes,
            settings.min_mtu,
            lambda remote: self._kernel.path_mtu(remote, settings.fwmark),
        )
        host = await self.around.look(settings.fwmark)
        needed = (settings, host, self.remotes, _needed(desired, mtus))
        if self._last is None or self._last[0] != needed:
            self.around.judge(desired)
            self._last = (needed, plan_network(desired, mtus, host))
        network = self._last[1]
        self.needs_filter, self.looked = network.firewall is not None, now
        return network

    def doubt(self) -> None:
        """Look up all paths and plan anew the next time: the network may have changed."""
        self._last = None
        self.paths.doubt()

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
        return self._peers.placed(desired, there, counted())


def _needed(desired: Desired, mtus: Mapping[IPAddress, int]) -> list[object]:
    """Return all that `plan_network` reads of policies and SAs."""
    sas = {sa.name: sa for sa in desired.sas}
    return [
        (
            policy.action,
            policy.selectors,
            [
                (sa.mode, sa.encapsulation, sa.suite, sa.remote.version, mtus.get(sa.remote))
                for sa in map(sas.get, policy.sas)
                if sa is not None
            ],
        )
        for policy in desired.policies
    ]
