"""The sources of what is wanted, and the way in which each changes: configuration and CLI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from esp_gw.config.added import Store, StoredState, without_conflicts
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.queue import ChangeQueue
from esp_gw.desired import Desired
from esp_gw.errors import ControlError, EspGwError


class Sources:
    """The `configured` state and what the CLI has `added`; `left_out` has conflicts by name.

    A change of either waits for its turn in `changes`.
    """

    def __init__(self, gateway: Gateway, configured: Desired, store: Store) -> None:
        self._gateway = gateway
        self._store = store
        self.configured = configured
        self.added = store.load()
        self.left_out: dict[str, str] = {}
        self.changes = ChangeQueue()

    def desired(self) -> Desired:
        """Return the state that is wanted at the start.

        The configuration takes precedence: a conflicting addition is left out with a warning.
        """
        wanted, self.left_out = without_conflicts(self.configured, self.added)
        return wanted

    async def follow(self, configured: Desired) -> list[str]:
        """Apply another configuration; return the changes. Raises EspGwError."""
        wanted, left_out = without_conflicts(configured, self.added)
        changes = await self._gateway.apply(wanted)
        self.configured, self.left_out = configured, left_out
        return changes

    def check(self, added: StoredState) -> None:
        """Raise ControlError if `add` would refuse these additions of the CLI."""
        self._refuse_left_out(without_conflicts(self.configured, added)[1])

    async def add(self, added: StoredState, what: str | None = None) -> None:
        """Apply the CLI's new state, and store it once it works: both, or neither.

        A refusal begins with `what`, or with the name of the conflicting addition.
        """
        wanted, left_out = without_conflicts(self.configured, added)
        self._refuse_left_out(left_out, what)
        before = self.added

        async def record() -> None:
            try:
                await asyncio.to_thread(self._store.save, added)
            except EspGwError:
                # The new file may be there, if only its folder couldn't be synced.
                with contextlib.suppress(EspGwError):
                    await asyncio.to_thread(self._store.save, before)
                raise

        await self._gateway.apply(wanted, record)
        self.added, self.left_out = added, left_out

    def warnings(self) -> list[str]:
        """Return the warnings of the configuration, and a line for each addition left out."""
        left_out = [
            f"'{name}', added by the CLI, is left out: {message}"
            for name, message in self.left_out.items()
        ]
        return [*self.configured.warnings, *left_out]

    def _refuse_left_out(self, left_out: Mapping[str, str], what: str | None = None) -> None:
        for name, message in left_out.items():
            if name not in self.left_out:
                raise ControlError("Refused", f"{what or name}: {message}")
