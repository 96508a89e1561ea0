"""The exception that drops a packet."""

from __future__ import annotations

from esp_gw.model import DropReason


class Drop(Exception):  # noqa: N818 - an ordinary outcome for a packet, not an error
    """Raised to drop the current packet; `reason` names the counter to increment."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason)
        self.reason = reason
