"""SAs and policies as the control interface shows them."""

from __future__ import annotations

from esp_gw.engine.base import SaCounters
from esp_gw.model import Policy, Sa, Selector


def sa_view(sa: Sa, counters: SaCounters) -> dict[str, object]:
    """Return an SA with its counters, without its key."""
    return {
        "name": sa.name,
        "direction": sa.direction,
        "spi": sa.spi,
        "suite": sa.suite.name,
        "mode": sa.mode,
        "encapsulation": sa.encapsulation,
        "local": str(sa.local),
        "remote": str(counters.remote),
        "remote_port": counters.remote_port,
        "local_ts": sorted({str(selector.local) for selector in sa.selectors}),
        "remote_ts": sorted({str(selector.remote) for selector in sa.selectors}),
        "esn": sa.esn,
        "replay_window": sa.replay_window,
        "keepalive": sa.keepalive,
        "origin": sa.origin,
        "tunnel": sa.tunnel,
        "pair": sa.pair,
        "seq": counters.seq,
        "lease_end": counters.lease_end,
        "packets": counters.packets,
        "bytes": counters.bytes,
        "drops": dict(counters.drops),
    }


def policy_view(policy: Policy) -> dict[str, object]:
    """Return an entry of the SPD."""
    return {
        "name": policy.name,
        "action": policy.action,
        "selectors": [_selector_view(selector) for selector in policy.selectors],
        "sas": list(policy.sas),
        "tunnel": policy.tunnel,
        "origin": policy.origin,
    }


def _selector_view(selector: Selector) -> dict[str, object]:
    def ports(value: object) -> str | None:
        return None if value is None else str(value)

    return {
        "local": str(selector.local),
        "remote": str(selector.remote),
        "protocol": selector.protocol,
        "local_port": ports(selector.local_port),
        "remote_port": ports(selector.remote_port),
    }
