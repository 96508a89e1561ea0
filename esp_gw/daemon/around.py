"""The networks around the host, as the gateway saw them last, and their clashes with its state."""

from __future__ import annotations

import asyncio

from esp_gw.desired import Desired
from esp_gw.model import Policy
from esp_gw.network.guard import GuardState
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.objects import Host
from esp_gw.network.surroundings import clashes, refuse_cut_off
from esp_gw.per_object import PerObject


class Around:
    """The `host` at the last `look`, and `warnings` of its clashes with the state judged last."""

    def __init__(self, kernel: KernelNetwork) -> None:
        self._kernel = kernel
        self.host = Host()
        self.warnings: list[str] = []
        self._bounds = PerObject(_bounds_of)

    async def look(self, fwmark: int) -> Host:
        """Look at the host by this mark's routes, and return it."""
        self.host = await self._kernel.host(fwmark)
        return self.host

    def judge(self, desired: Desired) -> None:
        """Find the clashes of a state with the host."""
        self.warnings = clashes(desired, self.host)

    async def refuse_cut_off(self, desired: Desired, before: Desired) -> None:
        """Raise NetworkError if the host would be cut off, which it is not by the state before."""
        host = await self._kernel.host(desired.settings.fwmark)
        if self._holds_router(desired, host):
            refuse_cut_off(desired, host, before)

    def _holds_router(self, desired: Desired, host: Host) -> bool:
        """Return False if no remote prefix has a default gateway of the host in it."""
        bounds = self._bounds.of(desired.policies)
        for router in host.routers:
            version, number = router.version, int(router)
            if [
                True
                for each in bounds
                for of_version, first, last in each
                if of_version == version and first <= number <= last
            ]:
                return True
        return False

    async def refuse_to_start(self, desired: Desired, guard: GuardState) -> None:
        """Raise NetworkError if the host would be cut off, which the last run did not do."""
        last = await asyncio.to_thread(guard.last)
        await self.refuse_cut_off(desired, last or Desired(desired.settings))


def _bounds_of(policy: Policy) -> list[tuple[int, int, int]]:
    """Return IP version, first and last address of a policy's remote prefixes, as numbers."""
    prefixes = dict.fromkeys(selector.remote for selector in policy.selectors)
    return [
        (each.version, int(each.network_address), int(each.broadcast_address)) for each in prefixes
    ]
