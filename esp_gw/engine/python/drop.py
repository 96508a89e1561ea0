"""The exception that ends the way of a packet."""

from __future__ import annotations

from esp_gw.model import DropReason


class Drop(Exception):  # noqa: N818 - the ordinary end of a packet, not an error
    """Ends the way of a packet; `reason` is the counter that it adds to."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason)
        self.reason = reason
