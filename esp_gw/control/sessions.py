"""Owners' sessions: which connection is the one of an owner, and which one watches for it.

Pure bookkeeping, without sockets. An owner has at most one of each, so they need no place of those
that a crowd may take.
"""

from __future__ import annotations

from typing import Protocol


class Link(Protocol):
    """The connection of a caller."""

    @property
    def pid(self) -> int:
        """The process that connected."""

    def keep(self) -> None:
        """Let the connection stay, idle or not, without a place that others may take."""

    def end(self, why: str) -> None:
        """End the connection, with this refusal where no answer is being sent."""


class Sessions:
    """The session and the watch of each owner."""

    def __init__(self) -> None:
        self._open: dict[str, Link] = {}
        self._watching: dict[str, Link] = {}

    def open(self, owner: str, link: Link) -> None:
        """Make a connection the session of its owner, which ends a former one.

        A watch of another process ends, too.
        """
        self._replace(self._open, owner, link)
        watch = self._watching.get(owner)
        if watch is not None and watch.pid != link.pid:
            del self._watching[owner]
            watch.end(_REPLACED)

    def watch(self, owner: str, link: Link) -> None:
        """Make a connection the one that watches for an owner, which ends a former one."""
        self._replace(self._watching, owner, link)

    def is_open(self, owner: str, link: Link | None) -> bool:
        """Return True for the connection that is the session of its owner."""
        return link is not None and self._open.get(owner) is link

    def ended(self, link: Link) -> None:
        """Forget a connection that has ended."""
        for links in (self._open, self._watching):
            for owner in [owner for owner, each in links.items() if each is link]:
                del links[owner]

    def _replace(self, links: dict[str, Link], owner: str, link: Link) -> None:
        former = links.get(owner)
        links[owner] = link
        link.keep()
        if former is not None and former is not link:
            former.end(_REPLACED)


_REPLACED = "another session of this owner has begun"
