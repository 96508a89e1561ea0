"""Parameters of control methods, and their refusals."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from esp_gw.config.added import SaEntry
from esp_gw.errors import ControlError
from esp_gw.model import Sa

Parameters = dict[str, object]


def name_of(parameters: Parameters) -> str:
    """Return the parameter `name`. Raises ControlError."""
    name = parameters.get("name")
    if not isinstance(name, str) or not name:
        raise ControlError("InvalidParameter", "name: expected a non-empty string")
    return name


def refuse_existing(kind: str, name: str, names: Collection[str]) -> None:
    """Raise ControlError if there is something with this name."""
    if name in names:
        raise ControlError(
            "AlreadyExists",
            f"the {kind} {name} exists already",
            hint="choose another name, or delete it first",
        )


def refuse_wrong_pairs(added: Sequence[SaEntry], present: Iterable[Sa]) -> None:
    """Raise ControlError for an SA to add whose pair can't be its pair.

    Both SAs of a pair have the peer's present address in common, so they must have one peer.
    """
    known = {sa.name: sa for sa in present} | {entry.name: entry.to_sa() for entry in added}
    naming: dict[str, list[str]] = {}
    for sa in known.values():
        naming.setdefault(sa.pair or "", []).append(sa.name)
    for entry in added:
        if entry.pair is None:
            continue
        sa, pair = known[entry.name], known.get(entry.pair)
        if pair is None:
            raise ControlError(
                "Refused",
                f"there is no SA {entry.pair} to be the pair of {sa.name}",
                hint="of a pair, the SA that is added last names the other",
            )
        own = [pair.pair] if pair.pair in known else []
        others = [name for name in (*own, *naming[pair.name]) if name != sa.name]
        if pair.direction is sa.direction:
            fault = f"is {pair.direction} like {sa.name}: a pair has an SA of each direction"
        elif _peer(pair) != _peer(sa):
            fault = f"has another peer than {sa.name}: {_peer(pair)}, not {_peer(sa)}"
        elif pair.tunnel is not None or others:
            fault = f"belongs to {pair.tunnel or others[0]} already"
        else:
            continue
        raise ControlError("Refused", f"{pair.name} can't be the pair of {sa.name}: it {fault}")


def _peer(sa: Sa) -> str:
    return sa.remote_name or str(sa.remote)


def refuse_other(config: object, ours: Path) -> None:
    """Raise ControlError for a caller that means another gateway's configuration."""
    if config is not None and os.path.realpath(str(config)) != os.path.realpath(ours):
        raise ControlError(
            "InvalidParameter",
            f"the gateway at this socket reads {ours}, not {config}",
            hint="name its socket with --socket, or restart it with the other configuration",
        )
