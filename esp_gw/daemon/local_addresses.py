"""Local outer addresses of SAs whose `local` is auto: those of the routes to their peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from esp_gw.desired import Desired
from esp_gw.logs import log
from esp_gw.model import IPAddress, Origin

_NAMED = 5


class LocalAddresses:
    """Local addresses by the peer's, as found last; one stays while there is no route."""

    def __init__(self) -> None:
        self._known: dict[IPAddress, IPAddress] = {}
        self._placed: tuple[Desired, Desired] | None = None
        self.missing: tuple[str, ...] = ()
        """Warnings about SAs that have no local address yet."""

    async def place(
        self,
        desired: Desired,
        peers: Mapping[str, IPAddress],
        source: Callable[[IPAddress], Awaitable[IPAddress | None]],
    ) -> Desired:
        """Return the desired state with a local address for each SA, without those that have none.

        `peers` has the peers' current addresses by SA, else the configured ones count. `source`
        returns the source address of the route to a peer. The same object is returned while
        nothing changes.
        """
        # IKE tells the addresses of its SAs.
        automatic = [
            sa for sa in desired.sas if sa.origin is not Origin.IKE and sa.local.is_unspecified
        ]
        if not automatic:
            self._known, self.missing = {}, ()
            return desired
        remotes = {sa.name: peers.get(sa.name, sa.remote) for sa in automatic}
        before, self._known = self._known, {}
        for remote in dict.fromkeys(remotes.values()):
            found = await source(remote) or before.get(remote)
            if found is not None:
                self._known[remote] = found
        _tell(before, self._known)
        absent = sorted({remotes[sa.name] for sa in automatic} - self._known.keys(), key=str)
        self.missing = tuple(
            f"there is no route to {remote}, and so no local address to send from: no tunnel to it "
            "works"
            for remote in absent[:_NAMED]
        )
        sas = tuple(
            replace(sa, local=self._known[remotes[sa.name]]) if sa.name in remotes else sa
            for sa in desired.sas
            if sa.name not in remotes or remotes[sa.name] in self._known
        )
        placed = replace(desired, sas=sas)
        if self._placed is None or self._placed != (desired, placed):
            self._placed = desired, placed
        return self._placed[1]


def _tell(before: Mapping[IPAddress, IPAddress], now: Mapping[IPAddress, IPAddress]) -> None:
    changed = {peer: local for peer, local in now.items() if before.get(peer, local) != local}
    for peer, local in list(changed.items())[:_NAMED]:
        log.info("the local address changed", remote=str(peer), local=str(local))
