"""Values of the control plane as the native engine takes them, and its answers as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

import esp_gw_core as core

from esp_gw.crypto.aead import AfAlgStatus
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import REST_MS, LaneStatus, SaCounters
from esp_gw.engine.refusals import os_reason
from esp_gw.model import (
    LOW,
    Action,
    Direction,
    Encapsulation,
    Mode,
    Policy,
    PortRange,
    Sa,
    Selector,
)

_MODES = {Mode.TUNNEL: core.Mode.TUNNEL, Mode.TRANSPORT: core.Mode.TRANSPORT}
ENCAPSULATIONS = {
    Encapsulation.UDP: core.Encapsulation.UDP,
    Encapsulation.NONE: core.Encapsulation.NONE,
}
_ACTIONS = {
    Action.PROTECT: core.PolicyAction.PROTECT,
    Action.BYPASS: core.PolicyAction.BYPASS,
    Action.DISCARD: core.PolicyAction.DISCARD,
}
DIRECTIONS = {
    Direction.OUTBOUND: core.Direction.OUTBOUND,
    Direction.INBOUND: core.Direction.INBOUND,
}


def direction_of(found: core.SaCounters) -> Direction:
    """Return the direction of an SA whose counters these are."""
    outbound = found.direction == core.Direction.OUTBOUND
    return Direction.OUTBOUND if outbound else Direction.INBOUND


def core_settings(settings: EngineSettings, af_alg: Mapping[str, AfAlgStatus]) -> core.Settings:
    """Return the settings as the extension takes them; `af_alg` has the state of each suite."""
    return core.Settings(
        interface=settings.interface,
        port=settings.port,
        fwmark=settings.fwmark,
        min_mtu=settings.min_mtu,
        workers=settings.workers,
        pin_workers=settings.pin_workers,
        low_latency_ms=REST_MS if settings.latency == LOW else None,
        provider=settings.provider,
        af_alg=[name for name, status in af_alg.items() if status.in_use],
        offloads=core.Offloads(**asdict(settings.offload)),
    )


def core_sa(sa: Sa) -> core.Sa:
    """Return an SA as the extension takes it. Raises ValueError."""
    return core.Sa(
        name=sa.name,
        spi=sa.spi,
        suite=sa.suite.name,
        keymat=sa.keymat.to_bytes(),
        mode=_MODES[sa.mode],
        encapsulation=ENCAPSULATIONS[sa.encapsulation],
        local=sa.local,
        remote=sa.remote,
        remote_port=sa.remote_port,
        local_original=sa.local_original,
        remote_original=sa.remote_original,
        selectors=[_selector(selector) for selector in sa.selectors],
        esn=sa.esn,
        replay_window=sa.replay_window,
        pair=sa.pair,
        tunnel=sa.tunnel,
        lane=sa.lane,
    )


def lane_status(found: core.LaneStatus) -> LaneStatus:
    """Return the state of the lanes."""
    return LaneStatus(
        steered=found.steered,
        listed=found.listed,
        laned=found.laned,
        limit=found.limit,
        refused=os_reason(found.refused),
        priority=found.priority,
        priority_refused=os_reason(found.priority_refused),
    )


def core_policy(policy: Policy) -> core.Policy:
    """Return a policy as the extension takes it."""
    selectors = [_selector(selector) for selector in policy.selectors]
    return core.Policy(policy.name, _ACTIONS[policy.action], selectors, policy.sas)


def _selector(selector: Selector) -> core.Selector:
    return core.Selector(
        selector.local,
        selector.remote,
        selector.protocol,
        _ports(selector.local_port),
        _ports(selector.remote_port),
    )


def _ports(ports: PortRange | None) -> core.PortRange | None:
    return None if ports is None else core.PortRange(ports.first, ports.last)


def sa_counters(found: core.SaCounters) -> SaCounters:
    """Return the counters of one SA."""
    return SaCounters(
        found.packets,
        found.bytes,
        found.seq,
        found.lease_end,
        found.remote,
        found.remote_port,
        found.drops,
    )
