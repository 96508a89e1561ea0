"""Path MTUs to the peers: as looked up last, and as routers reported them (RFC 1191, RFC 8201)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from esp_gw.logs import log
from esp_gw.model import IPAddress

LIFETIME = 60.0
"""Seconds after which a reported path MTU is looked up again, until the path has grown."""

_NAMED = 5
"""Peers that are named in the log if many change at once."""


@dataclass(frozen=True, slots=True)
class _Reported:
    mtu: int
    until: float


class PathMtus:
    """Path MTUs by the peer's current address, in bytes, outer IP header included."""

    def __init__(self) -> None:
        self._looked_up: dict[IPAddress, int] = {}
        self._reported: dict[IPAddress, _Reported] = {}
        self._due: dict[IPAddress, int] = {}
        self._told: dict[IPAddress, int] = {}
        self._current: set[IPAddress] = set()
        self._last: tuple[frozenset[IPAddress], dict[IPAddress, int]] = (frozenset(), {})
        self._is_known = False
        self._doubts = 0
        self.changes = 0
        """Another number whenever the path MTU of a peer that was there has changed."""

    def tell(self, mtus: dict[IPAddress, int]) -> None:
        """Log the path MTUs that changed; `mtus` are those of all peers."""
        before, self._told = self._told, mtus
        changed = {remote: mtu for remote, mtu in mtus.items() if before.get(remote, mtu) != mtu}
        for remote, mtu in list(changed.items())[:_NAMED]:
            log.info("the path MTU changed", remote=str(remote), mtu=mtu)

    async def look_up_all(
        self,
        remotes: frozenset[IPAddress],
        least: int,
        ask: Callable[[IPAddress], Awaitable[int | None]],
    ) -> dict[IPAddress, int]:
        """Return the path MTUs to all peers as far as known, `least` at least, and log changes.

        `ask` returns the kernel's answer, None without a route. A peer is not asked for again
        before `doubt`.
        """
        before, last = self._last
        if self._is_known and before == remotes:
            return last
        doubts = self._doubts
        mtus, asked = self._begin(remotes)
        for remote in sorted(asked, key=str):
            there = None if remote in self._current else await ask(remote)
            self._current.add(remote)
            mtu = self.look_up(remote, there, asyncio.get_running_loop().time())
            if mtu is not None:
                # A report that any host can forge makes no tunnel useless: the engine fragments.
                mtus[remote] = max(mtu, least)
        if asked & before:
            self.tell(mtus)
            self.changes += any(last.get(each) != mtus.get(each) for each in asked & before)
        self._told = mtus
        # Changes in the meantime ask for another look.
        self._last, self._is_known = (remotes, mtus), doubts == self._doubts
        return mtus

    def _begin(
        self, remotes: frozenset[IPAddress]
    ) -> tuple[dict[IPAddress, int], frozenset[IPAddress]]:
        """Return the path MTUs that are known, and the peers that are to be looked at.

        Without a doubt these are the new ones alone: there may be thousands.
        """
        if not self._is_known:
            self.keep(remotes)
            return {}, remotes
        before, last = self._last
        mtus = dict(last)
        for remote in before - remotes:
            self._looked_up.pop(remote, None)
            self._due.pop(remote, None)
            self._current.discard(remote)
            mtus.pop(remote, None)
        return mtus, remotes - before

    def doubt(self) -> None:
        """Ask for all peers anew the next time: the network may have changed."""
        self._current.clear()
        self._suspect()

    def _suspect(self) -> None:
        self._is_known = False
        self._doubts += 1

    def report(self, remote: IPAddress, mtu: int, now: float) -> bool:
        """Take a router's report; return True if it is new."""
        former = self._reported.get(remote)
        if former is not None and former.mtu == mtu:
            return False
        self._reported[remote] = _Reported(mtu, now + LIFETIME)
        self._suspect()
        return True

    def expire(self, now: float) -> None:
        """Let the reports that are too old be looked up again."""
        old = {remote: each.mtu for remote, each in self._reported.items() if each.until <= now}
        self._due.update(old)
        if old:
            self._suspect()
        self._reported = {
            remote: report for remote, report in self._reported.items() if now < report.until
        }

    @property
    def next_expiry(self) -> float | None:
        """The time at which the next report is too old, or None."""
        return min((report.until for report in self._reported.values()), default=None)

    def look_up(self, remote: IPAddress, mtu: int | None, now: float) -> int | None:
        """Take the kernel's answer, None without a route; return the path MTU as far as known.

        While there is no route to the peer, its last path MTU stays.
        """
        mtu = self._looked_up.get(remote) if mtu is None else mtu
        if mtu is None:
            return None
        self._looked_up[remote] = mtu
        if (due := self._due.pop(remote, None)) is not None and mtu <= due:
            # The kernel still believes it.
            self._reported.setdefault(remote, _Reported(mtu, now + LIFETIME))
        report = self._reported.get(remote)
        return mtu if report is None else min(mtu, report.mtu)

    def keep(self, remotes: frozenset[IPAddress]) -> None:
        """Forget what was looked up for other addresses: a peer may move without end."""
        self._looked_up = {
            remote: mtu for remote, mtu in self._looked_up.items() if remote in remotes
        }
        self._due = {remote: mtu for remote, mtu in self._due.items() if remote in remotes}
        self._current &= remotes
