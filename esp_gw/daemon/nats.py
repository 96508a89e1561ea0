"""Where the peers are now, and what follows from it for the configuration."""

from __future__ import annotations

from dataclasses import replace

from esp_gw.config.nat import needs_remote_original
from esp_gw.daemon.gateway import Gateway
from esp_gw.desired import Desired


def where_peers_are(configured: Desired, gateway: Gateway) -> Desired:
    """Return the configuration with the current addresses of peers that moved."""
    if not gateway.peers.have_moved:
        return configured
    counters = gateway.counters().sas
    tunnels = []
    for tunnel in configured.tunnels:
        there = next((counters[name] for name in tunnel.sas if name in counters), None)
        tunnels.append(tunnel if there is None else replace(tunnel, remote=there.remote))
    return replace(configured, tunnels=tuple(tunnels))


def nats(gateway: Gateway) -> list[str]:
    """Return a line for each tunnel in transport mode whose peer is seen to be behind a NAT."""
    if not gateway.peers.have_moved:
        return []
    counters = gateway.counters().sas
    ends = [
        (sa, counters[sa.name].remote, counters[sa.name].remote_port)
        for sa in gateway.sas
        if sa.name in counters
    ]
    return list(needs_remote_original(ends))
