"""IKE's children for people: the peer's identity, their age, and when this end rekeys them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from esp_gw.daemon.children import ChildSa
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.held import Held, HeldSa
from esp_gw.daemon.views import remote_view


def child_list(held: Held, gateway: Gateway, health: Health, now: float) -> list[dict[str, object]]:
    """Return the children that have an SA in use in each direction, at `now` in seconds.

    The next rekey is by the owner's time limits alone: other limits, and the peer, may be first.
    """
    counters = gateway.counters().sas
    found = []
    for name, sas in _children(held):
        outbound = sas[0].sa
        if outbound.name not in counters:
            # Its address is being changed.
            continue
        entry, peer = sas[0].entry, counters[outbound.name]
        entries = [each.entry for each in sas]
        begun = [each.since for each in entries if each.since is not None]
        rekeys = [ends for each in entries if (ends := _rekey(each)) is not None]
        found.append(
            {
                "name": name,
                "connection": entry.connection,
                "peer": entry.peer,
                "encapsulation": outbound.encapsulation,
                "local": str(outbound.local),
                "remote": remote_view(peer.remote),
                "remote_port": peer.remote_port,
                "state": health.of_sa(outbound.name).state,
                "age_s": round(max(now - min(begun), 0), 1) if begun else None,
                "rekey_s": round(max(min(rekeys) - now, 0), 1) if rekeys else None,
            }
        )
    return found


def _children(held: Held) -> Iterator[tuple[str, Sequence[HeldSa]]]:
    """Yield the name of each child with its SAs, the outbound one first."""
    by_name = {each.sa.name: each for each in held.sas.values()}
    for tunnel in held.tunnels:
        yield tunnel.name, [by_name[name] for name in tunnel.sas]


def _rekey(entry: ChildSa) -> float | None:
    """Return when the owner rekeys an SA; None if no time limit is known."""
    if entry.since is None or not entry.soft_seconds:
        return None
    return entry.since + entry.soft_seconds
