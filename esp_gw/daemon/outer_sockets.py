"""The engine's outer sockets, of which those that only receive IKE may be missing for a time.

Any user can bind the port at an address that is still to come (IP_FREEBIND). That must not keep an
IKE daemon from changes of its SAs elsewhere.
"""

from __future__ import annotations

from esp_gw.daemon.reconcile import needed_sockets, outer_sockets
from esp_gw.desired import Desired
from esp_gw.engine.base import Engine, OuterSocket
from esp_gw.errors import EngineError

Sockets = frozenset[OuterSocket]


class OuterSockets:
    """The sockets that are open, `there`; None while that is unknown, after a failure.

    `fault` tells in one line why one that only receives IKE is missing.
    """

    def __init__(self) -> None:
        self.there: Sockets | None = frozenset()
        self.fault: str | None = None
        self._spare: Sockets = frozenset()

    def want(self, desired: Desired) -> None:
        """Take a placed state, which tells the sockets that only receive IKE."""
        self._spare = outer_sockets(desired) - needed_sockets(desired)
        if not self._spare:
            self.fault = None

    def set(self, engine: Engine, wanted: Sockets) -> None:
        """Open the sockets that are missing, then close those not wanted.

        Raises EngineError if one can't be opened that an SA needs.
        """
        new = (self._spare & wanted) - (self.there or frozenset())
        self.there, self.fault = None, None
        try:
            engine.set_outer_sockets(_in_order(wanted))
        except EngineError:
            if not new:
                raise
            wanted = self._without_taken(engine, wanted - new, new)
        self.there = wanted

    def _without_taken(self, engine: Engine, certain: Sockets, new: Sockets) -> Sockets:
        engine.set_outer_sockets(_in_order(certain))
        for each in _in_order(new):
            try:
                engine.set_outer_sockets(_in_order(certain | {each}))
                certain |= {each}
            except EngineError as error:
                self.fault = f"IKE is not received at one address: {error}"
        return certain


def _in_order(sockets: Sockets) -> list[OuterSocket]:
    return sorted(sockets, key=str)
