"""Rate-limited log of the peers' moves: some NATs change an address often, and a peer may flap."""

from __future__ import annotations

import math

from esp_gw.logs import log
from esp_gw.model import IPAddress, Sa

TUNNEL_INTERVAL = 10.0
"""Minimum seconds between two lines on one tunnel."""
INTERVAL = 1.0
"""Minimum seconds between two lines."""


class PeerLog:
    """Logs a move unless another was logged a moment ago; `esp-gw sa list` has all addresses."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}
        self._last_line = -math.inf

    def moved(self, sa: Sa, address: IPAddress, port: int, now: float) -> None:
        """Log that the peer of an SA is now at this address; `now` is in seconds."""
        tunnel = sa.tunnel or sa.name
        if now < self._last_line + INTERVAL:
            return
        if now < self._last.get(tunnel, -math.inf) + TUNNEL_INTERVAL:
            return
        self._last[tunnel] = self._last_line = now
        log.info("the peer has a new address", sa=sa.name, address=str(address), port=port)
