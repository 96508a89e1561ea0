"""The exception that drops a packet."""

from __future__ import annotations

from esp_gw.model import DropReason


class Drop(Exception):  # noqa: N818 - an ordinary outcome for a packet, not an error
    """Raised to drop the current packet; `reason` names the counter to increment."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason)
        self.reason = reason


class AuthenticDrop(Drop):
    """Raised to drop a packet whose ICV holds; `newest` is true if it advanced the window."""

    def __init__(self, reason: DropReason, newest: bool) -> None:
        super().__init__(reason)
        self.newest = newest
