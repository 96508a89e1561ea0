"""The tunnels that the control interface lists: those with a name, then the SAs of the CLI."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.sas import Totals
from esp_gw.daemon.views import pair_view, tunnel_view, waiting_view
from esp_gw.engine.base import SaCounters
from esp_gw.model import Tunnel, named_pairs


def tunnel_list(
    named: Iterable[Tunnel], gateway: Gateway, health: Health, flows: Mapping[str, int]
) -> list[dict[str, object]]:
    """Return the tunnels with the counters of their SAs; those without an address come last.

    `flows` are those of each lane's SA.
    """
    counters = gateway.counters().sas
    totals = gateway.totals(counters)
    placed = {sa.name: sa for sa in gateway.placed.sas}
    tunnels, waiting = [], []
    for tunnel in named:
        there = [name for name in tunnel.sas if name in placed]
        if not there:
            waiting.append(waiting_view(tunnel))
        # During a reload some SAs may be removed already.
        elif counters.keys() >= set(there):
            condition, sa = health.of_sa(there[0]), placed[there[0]]
            tunnels.append(tunnel_view(tunnel, counters, totals, condition, sa, flows))
    return [*tunnels, *_added(gateway, health, counters, totals), *waiting]


def _added(
    gateway: Gateway,
    health: Health,
    counters: Mapping[str, SaCounters],
    totals: Mapping[str, Totals],
) -> Iterator[dict[str, object]]:
    """Yield the SAs that belong to no tunnel of the configuration, a pair as one."""
    for name, sas in named_pairs([*gateway.sas, *gateway.waiting], gateway.policies):
        there = next((sa.name for sa in sas if sa.name in counters), None)
        condition = None if there is None else health.of_sa(there)
        yield pair_view(name, sas, counters, totals, condition)
