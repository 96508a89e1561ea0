"""Steps of a flow's way by the SAs of a policy, and to or from the peer behind them."""

from __future__ import annotations

from collections.abc import Sequence

from esp_gw.daemon.steps import RELOAD, Scene, Steps, heard
from esp_gw.model import Direction, Encapsulation, Origin, Policy, Sa, TunnelState
from esp_gw.network.flow import Flow, matches

_NAMED = 3


def use_sas(
    scene: Scene, steps: Steps, policy: Policy, direction: Direction, seen: Flow
) -> list[str]:
    """Tell of the SAs of a policy in one direction and of the peer; return the SAs' names.

    `seen` is the flow as outbound, which selectors are written for.
    """
    wanted = _names(scene, policy, direction, seen)
    there = [scene.sas[name] for name in wanted if name in scene.sas]
    if not there:
        _lack(scene, steps, policy, wanted)
        return []
    may = [sa for sa in there if any(matches(each, seen) is not False for each in sa.selectors)]
    if not may:
        steps.stop(
            "sa",
            f"{there[0].name} may not carry it: it is dropped as selector-mismatch",
            "local_ts and remote_ts of both ends have to mirror each other",
        )
        return []
    _of_sas(scene, steps, may)
    _of_peer(scene, steps, may[0])
    return [sa.name for sa in may]


def _names(scene: Scene, policy: Policy, direction: Direction, seen: Flow) -> list[str]:
    """Return the SAs of a policy: it names the outbound ones, which have pairs or a tunnel.

    Without such an inbound SA any that may carry the flow will do (RFC 4301 5.2).
    """
    if direction is Direction.OUTBOUND:
        return list(policy.sas)
    inbound = [sa for sa in scene.sas.values() if sa.direction is Direction.INBOUND]
    pairs = {scene.sas[name].pair for name in policy.sas if name in scene.sas}
    related = [
        sa.name
        for sa in inbound
        if (policy.tunnel is not None and sa.tunnel == policy.tunnel)
        or sa.name in pairs
        or sa.pair in policy.sas
    ]
    return related or [sa.name for sa in inbound if any(matches(s, seen) for s in sa.selectors)]


def _lack(scene: Scene, steps: Steps, policy: Policy, wanted: Sequence[str]) -> None:
    if policy.origin is Origin.IKE:
        steps.stop(
            "sa",
            "ike has negotiated none: packets are dropped as no-sa, and ask for one",
            "'swanctl --list-sas' and the log of charon say more",
        )
        return
    names = ", ".join(wanted[:_NAMED]) or f"an inbound SA beside {', '.join(policy.sas)}"
    why = next((scene.lacking[each] for each in wanted if each in scene.lacking), "")
    found = f"{names} is not installed" + (f": {why}" if why else "")
    steps.stop("sa", found, "'esp-gw status' and 'esp-gw sa list' say more")


def _of_sas(scene: Scene, steps: Steps, sas: Sequence[Sa]) -> None:
    first = sas[0]
    form = "in UDP" if first.encapsulation is Encapsulation.UDP else "as protocol 50"
    steps.add(
        "sa",
        f"{first.name}, SPI 0x{first.spi:08x}, {first.suite.name}, {first.mode} mode, {form}",
    )
    counters = scene.counters.get(first.name)
    is_outbound = first.direction is Direction.OUTBOUND
    if counters is not None and is_outbound and counters.seq > first.last_seq:
        steps.stop(
            "sa", "it has used its last sequence number", f"give both ends new keys, {RELOAD}"
        )
    if len(sas) > 1:
        steps.add("lane", f"0 while it is sparse, one of 1 to {len(sas) - 1} as bulk")


def _of_peer(scene: Scene, steps: Steps, sa: Sa) -> None:
    counters, condition = scene.counters.get(sa.name), scene.condition(sa.name)
    if counters is None:
        return
    if counters.remote.is_unspecified:
        steps.stop(
            "peer",
            "nobody knows where it is: nothing authentic has come from it, and what is for it is "
            "dropped as no-peer",
            "let the other end send first",
        )
        return
    port = f" port {counters.remote_port}" if sa.encapsulation is Encapsulation.UDP else ""
    text = f"{counters.remote}{port}, {condition.state}, {heard(condition.last_in_s)}"
    if condition.state in (TunnelState.DOWN, TunnelState.FAILING):
        cause = condition.causes[0] if condition.causes else "see 'esp-gw tunnel list'"
        steps.stop("peer", f"{text}: {cause}")
        return
    steps.add("peer", text)
    for cause in condition.causes:
        steps.warn("cause", cause)
