"""The sources of what is wanted, and the way in which each changes: configuration, CLI, IKE."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import replace

from esp_gw.config.added import Store, StoredState, without_conflicts
from esp_gw.config.conflicts import leaking
from esp_gw.daemon.checked import Checked
from esp_gw.daemon.gateway import Gateway, Record
from esp_gw.daemon.held import PREFIX, Held
from esp_gw.daemon.queue import ChangeQueue
from esp_gw.desired import Desired
from esp_gw.errors import ControlError, EngineError, EspGwError
from esp_gw.logs import log
from esp_gw.model import Tunnel
from esp_gw.network.guard import beyond

_NAMED = 5
"""Prefixes that are named in a warning."""


class Sources:
    """The `configured` state, what the CLI has `added`, and what the owner's session has `held`.

    `left_out` has the conflicts of the CLI's additions by name. It `listens` once IKE is to be
    received. A change of any waits for its turn
    in `changes`.
    """

    def __init__(self, gateway: Gateway, configured: Desired, store: Store) -> None:
        self._gateway = gateway
        self._store = store
        self.configured = configured
        self.added = store.load()
        self.held = Held()
        self.acquired: dict[str, float] = {}
        """When a packet met each policy without an SA last, by its id, in monotonic seconds."""
        self.left_out: dict[str, str] = {}
        self.listens = False
        self._lasting = configured
        self._checked = Checked()
        self.changes = ChangeQueue()

    def desired(self) -> Desired:
        """Return the state that is wanted at the start.

        The configuration takes precedence: a conflicting addition is left out with a warning, and
        so is a bypass of the owner that would let out what is closed by now. What is left closed is
        no more than what others don't close.
        """
        self._lasting, self.left_out = without_conflicts(self.configured, self.added)
        for conflict in leaking(self._lasting.policies, self.held.spd):
            log.error("a policy of IKE is left out", reason=conflict.message)
            self.held = self.held.without_policy(conflict.names[-1])
        left = beyond(self.held.left, self._lasting.policies)
        self.held = replace(self.held, left=left)
        if left:
            names = ", ".join(str(pair.remote) for each in left for pair in each.selectors)
            log.warning(
                "an earlier run left this closed for ike, whose session opens it", prefixes=names
            )
        return self.held.join(self._lasting)

    @property
    def lasting(self) -> Desired:
        """Configuration and CLI merged, without what conflicts."""
        return self._lasting

    @property
    def tunnels(self) -> tuple[Tunnel, ...]:
        """The tunnels of the configuration, and those of IKE's children."""
        return (*self.configured.tunnels, *self.held.tunnels)

    async def follow(self, configured: Desired) -> list[str]:
        """Apply another configuration; return the changes. Raises EspGwError."""
        lasting, left_out = without_conflicts(configured, self.added)
        wanted = self._joined(lasting, self.held)
        changes = await self._gateway.apply(wanted)
        self.configured, self.left_out, self._lasting = configured, left_out, lasting
        self._checked.accept(wanted)
        return changes

    def check(self, added: StoredState) -> None:
        """Raise ControlError if `add` would refuse these additions of the CLI."""
        self._refuse_left_out(without_conflicts(self.configured, added)[1])

    async def add(self, added: StoredState, what: str | None = None) -> None:
        """Apply the CLI's new state, and store it once it works: both, or neither.

        A refusal begins with `what`, or with the name of the conflicting addition.
        """
        lasting, left_out = without_conflicts(self.configured, added)
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

        wanted = self._joined(lasting, self.held)
        await self._gateway.apply(wanted, record)
        self.added, self.left_out, self._lasting = added, left_out, lasting
        self._checked.accept(wanted)

    async def hold(self, held: Held, record: Record) -> None:
        """Apply what the owner holds now, and `record` it once it works: both, or neither.

        Raises EspGwError.
        """
        wanted = self._joined(self._lasting, held)
        await self._gateway.apply_known(wanted, record)
        self.held = held
        self._checked.accept(wanted)

    def warnings(self) -> list[str]:
        """Return the warnings of the configuration, and what is left out or left closed."""
        left_out = [
            f"'{name}', added by the CLI, is left out: {message}"
            for name, message in self.left_out.items()
        ]
        return [*self.configured.warnings, *left_out, *self._closed()]

    def _closed(self) -> list[str]:
        """Return a line on what a former session of the owner has left closed, if it has."""
        prefixes = [str(pair.remote) for each in self.held.left for pair in each.selectors]
        if not prefixes:
            return []
        more = f" and {len(prefixes) - _NAMED} more" if len(prefixes) > _NAMED else ""
        named = ", ".join(prefixes[:_NAMED])
        return [
            f"nothing goes to {named}{more}: an IKE daemon protected it, and has not since; "
            "start it, or stop esp-gw and run 'esp-gw guard down'"
        ]

    def _refuse_left_out(self, left_out: Mapping[str, str], what: str | None = None) -> None:
        for name, message in left_out.items():
            if name not in self.left_out:
                raise ControlError("Refused", f"{what or name}: {message}")

    async def listen(self) -> None:
        """Receive IKE at all addresses of the host, from now on. Raises EspGwError.

        At first each must be free; one that is taken later is missing until it is free.
        """
        before, self.listens = self.listens, True
        try:
            await self._gateway.apply(self._joined(self._lasting, self.held))
        except BaseException:
            self.listens = before
            raise
        if not before and (taken := self._gateway.sockets.fault) is not None:
            self.listens = False
            await self._gateway.apply(self._joined(self._lasting, self.held))
            raise EngineError(taken)

    def _joined(self, lasting: Desired, held: Held) -> Desired:
        """Join what the owner holds to the rest. Raises ControlError if both exclude each other."""
        wanted = held.join(lasting)
        if wanted is not lasting:
            for conflict in self._checked.conflicts(wanted):
                if any(name.startswith(PREFIX) for name in conflict.names):
                    raise ControlError("Refused", f"{conflict.names[-1]}: {conflict.message}")
        return replace(wanted, listens=self.listens)
