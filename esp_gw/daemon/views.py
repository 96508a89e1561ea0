"""SAs, tunnels and policies as the control interface shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from esp_gw.daemon.health import Condition
from esp_gw.daemon.sas import Totals
from esp_gw.engine.base import SaCounters
from esp_gw.model import (
    ANY,
    AUTO,
    Direction,
    IPAddress,
    Origin,
    Policy,
    Sa,
    Selector,
    Tunnel,
    TunnelState,
)
from esp_gw.protocol import UDP_ENCAP_PORT

_USED_UP = "it has used its last sequence number: give it a new key"
_WAITS = "it waits for an address: see the warnings of 'esp-gw status'"


def sa_view(sa: Sa, counters: SaCounters, condition: Condition) -> dict[str, object]:
    """Return an SA with its counters and its tunnel's condition, without its key."""
    return {
        "name": sa.name,
        "direction": sa.direction,
        "spi": sa.spi,
        "suite": sa.suite.name,
        "mode": sa.mode,
        "encapsulation": sa.encapsulation,
        "local": _local_view(sa),
        "remote": _remote_of(sa) if counters.remote.is_unspecified else str(counters.remote),
        "remote_port": counters.remote_port,
        "local_original": _text(sa.local_original),
        "remote_original": _text(sa.remote_original),
        "local_ts": sorted({str(selector.local) for selector in sa.selectors}),
        "remote_ts": sorted({str(selector.remote) for selector in sa.selectors}),
        "esn": sa.esn,
        "replay_window": sa.replay_window,
        "keepalive": sa.keepalive,
        "liveness": sa.liveness,
        "origin": sa.origin,
        "tunnel": sa.tunnel,
        "pair": sa.pair,
        "lane": sa.lane,
        **asdict(condition),
        "seq": counters.seq,
        "lease_end": counters.lease_end,
        "packets": counters.packets,
        "bytes": counters.bytes,
        "drops": dict(counters.drops),
    }


def waiting_sa_view(sa: Sa, *, used_up: bool) -> dict[str, object]:
    """Return an SA that is not installed: it lacks an address, or has no sequence number left."""
    none = SaCounters(0, 0, 0, 0, sa.remote, sa.remote_port)
    why = why_waiting(used_up=used_up)
    return sa_view(sa, none, Condition(TunnelState.DOWN, None, None, (why,)))


def why_waiting(*, used_up: bool) -> str:
    """Return the reason that an SA is not installed."""
    return _USED_UP if used_up else _WAITS


def tunnel_view(
    tunnel: Tunnel,
    counters: Mapping[str, SaCounters],
    totals: Mapping[str, Totals],
    condition: Condition,
    placed: Sa,
    flows: Mapping[str, int],
) -> dict[str, object]:
    """Return a tunnel with the counters of its SAs, those under replaced keys included.

    `placed` is one of its SAs with the address that it uses now; `flows` are those of each lane's
    SA.
    """
    # The SAs of a tunnel alternate: outbound, inbound.
    outbound, inbound = (
        [totals.get(name, Totals()) for name in tunnel.sas[first::2]] for first in (0, 1)
    )
    peer = counters[next(name for name in tunnel.sas if name in counters)]
    return {
        "name": tunnel.name,
        "origin": placed.origin,
        "mode": tunnel.mode,
        "encapsulation": tunnel.encapsulation,
        "suite": tunnel.suite.name,
        "local": str(placed.local),
        "remote": remote_view(peer.remote),
        "remote_port": peer.remote_port,
        "local_ts": [str(prefix) for prefix in tunnel.local_ts],
        "remote_ts": [str(prefix) for prefix in tunnel.remote_ts],
        "sas": list(tunnel.sas),
        "lanes": lanes_view(tunnel, flows),
        **asdict(condition),
        **_traffic(outbound, inbound),
    }


def pair_view(
    name: str,
    sas: Sequence[Sa],
    counters: Mapping[str, SaCounters],
    totals: Mapping[str, Totals],
    condition: Condition | None,
) -> dict[str, object]:
    """Return the SAs of a pair, or one alone, as a tunnel of this name.

    `condition` is None if none of them is installed.
    """
    first = sas[0]
    peer = next((counters[sa.name] for sa in sas if sa.name in counters), None)
    learned = peer is not None and not peer.remote.is_unspecified
    outbound, inbound = (
        [totals.get(sa.name, Totals()) for sa in sas if sa.direction is direction]
        for direction in (Direction.OUTBOUND, Direction.INBOUND)
    )
    return {
        "name": name,
        "origin": first.origin,
        "mode": first.mode,
        "encapsulation": first.encapsulation,
        "suite": first.suite.name,
        "local": _local_view(first),
        "remote": str(peer.remote) if peer is not None and learned else _remote_of(first),
        "remote_port": first.remote_port if peer is None else peer.remote_port,
        "local_ts": sorted({str(selector.local) for selector in first.selectors}),
        "remote_ts": sorted({str(selector.remote) for selector in first.selectors}),
        "sas": [sa.name for sa in sas],
        "lanes": [],
        **asdict(condition or Condition(TunnelState.DOWN, None, None, (_WAITS,))),
        **_traffic(outbound, inbound),
    }


def _traffic(outbound: Sequence[Totals], inbound: Sequence[Totals]) -> dict[str, object]:
    drops: Counter[str] = Counter()
    for sa in (*outbound, *inbound):
        drops.update(sa.drops)
    return {
        "packets_out": sum(sa.packets for sa in outbound),
        "bytes_out": sum(sa.bytes for sa in outbound),
        "packets_in": sum(sa.packets for sa in inbound),
        "bytes_in": sum(sa.bytes for sa in inbound),
        "drops": dict(drops),
    }


def lanes_view(tunnel: Tunnel, flows: Mapping[str, int]) -> list[dict[str, object]]:
    """Return the lanes of a tunnel, in order, with the flows that each carries; none without flows.

    `flows` are those of `flows_in_use`.
    """
    outbound = tunnel.sas[::2]
    if not flows.keys() & set(outbound):
        return []
    return [{"sa": name, "flows": flows.get(name, 0)} for name in outbound]


def flows_in_use(flows: Mapping[str, int], policies: Iterable[Policy]) -> dict[str, int]:
    """Return the flows of the SAs in policies that have several: an engine counts no others."""
    used = {name for policy in policies if len(policy.sas) > 1 for name in policy.sas}
    return {name: flows.get(name, 0) for name in used}


def all_lanes_view(tunnels: Iterable[Tunnel], flows: Mapping[str, int]) -> dict[str, object]:
    """Return the lanes of every tunnel that has several SAs, by its name."""
    lanes = {tunnel.name: lanes_view(tunnel, flows) for tunnel in tunnels}
    return {name: there for name, there in lanes.items() if there}


def waiting_view(tunnel: Tunnel) -> dict[str, object]:
    """Return a tunnel without an address at one of its ends, which has no SA installed."""
    return {
        "name": tunnel.name,
        "origin": Origin.CONFIG,
        "mode": tunnel.mode,
        "encapsulation": tunnel.encapsulation,
        "suite": tunnel.suite.name,
        "local": _local_view(tunnel),
        "remote": _remote_of(tunnel),
        "remote_port": UDP_ENCAP_PORT,
        "local_ts": [str(prefix) for prefix in tunnel.local_ts],
        "remote_ts": [str(prefix) for prefix in tunnel.remote_ts],
        "sas": list(tunnel.sas),
        "lanes": lanes_view(tunnel, {}),
        **asdict(Condition(TunnelState.DOWN, None, None, (_WAITS,))),
        **_traffic((), ()),
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


def remote_view(address: IPAddress) -> str:
    """Return where a peer is now: `any` until one is learned."""
    return ANY if address.is_unspecified else str(address)


def _remote_of(end: Sa | Tunnel) -> str:
    return end.remote_name or remote_view(end.remote)


def _local_view(end: Sa | Tunnel) -> str:
    return AUTO if end.local.is_unspecified else str(end.local)


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


def _text(address: IPAddress | None) -> str | None:
    return None if address is None else str(address)
