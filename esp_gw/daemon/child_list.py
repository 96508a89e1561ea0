"""IKE's children for people: the peer's identity, their age, and when this end rekeys them.

Behind them come the policies that wait for a child, traps mostly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from esp_gw.daemon.children import ChildPolicy, ChildSa
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.held import PREFIX, Held, HeldSa, policy_name
from esp_gw.daemon.views import remote_view
from esp_gw.model import Action, Tunnel


def child_list(held: Held, gateway: Gateway, health: Health, now: float) -> list[dict[str, object]]:
    """Return the children that have an SA in use in each direction, at `now` in seconds.

    The next rekey is by the owner's time limits alone: other limits, and the peer, may be first.
    """
    counters = gateway.counters().sas
    found = []
    for tunnel, sas in _children(held):
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
                "name": tunnel.name,
                "connection": entry.connection,
                "peer": entry.peer,
                "encapsulation": outbound.encapsulation,
                "local": str(outbound.local),
                "remote": remote_view(peer.remote),
                "remote_port": peer.remote_port,
                "state": health.of_sa(outbound.name).state,
                "age_s": round(max(now - min(begun), 0), 1) if begun else None,
                "rekey_s": round(max(min(rekeys) - now, 0), 1) if rekeys else None,
                "remote_ts": [str(each) for each in tunnel.remote_ts],
                "acquired_s": None,
            }
        )
    return found


def waiting_list(held: Held, acquired: Mapping[str, float], now: float) -> list[dict[str, object]]:
    """Return the children that policies without an SA wait for, with the same members.

    `acquired` has the time of each policy's last packet that was told, by the policy's id.
    """
    children: dict[tuple[str, str], list[ChildPolicy]] = {}
    for policy in held.policies.values():
        if policy.sa is None and policy.action is Action.PROTECT:
            name = f"{PREFIX}{policy.child}" if policy.child else policy_name(policy.id)
            children.setdefault((policy.connection, name), []).append(policy)
    found = []
    for (connection, name), policies in children.items():
        remotes = dict.fromkeys(pair.remote for each in policies for pair in each.pairs)
        times = [acquired[each.id] for each in policies if each.id in acquired]
        found.append(
            {
                **dict.fromkeys(_UNKNOWN),
                "name": name,
                "connection": connection,
                "state": WAITING,
                "remote_ts": [str(each) for each in remotes],
                "acquired_s": round(max(now - max(times), 0), 1) if times else None,
            }
        )
    return found


WAITING = "waiting"
"""The state of a child that isn't there, and whose traffic is dropped until it is."""
_UNKNOWN = (
    *("name", "connection", "peer", "encapsulation", "local", "remote", "remote_port"),
    *("state", "age_s", "rekey_s"),
)
"""Members in the order of those of a child; a trap knows no peer."""


def _children(held: Held) -> Iterator[tuple[Tunnel, Sequence[HeldSa]]]:
    """Yield each child with its SAs, the outbound one first."""
    by_name = {each.sa.name: each for each in held.sas.values()}
    for tunnel in held.tunnels:
        yield tunnel, [by_name[name] for name in tunnel.sas]


def _rekey(entry: ChildSa) -> float | None:
    """Return when the owner rekeys an SA; None if no time limit is known."""
    if entry.since is None or not entry.soft_seconds:
        return None
    return entry.since + entry.soft_seconds
