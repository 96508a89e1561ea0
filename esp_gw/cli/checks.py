"""The checks of `esp-gw config check`: one configuration, looked at as the service does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from esp_gw.cli.denial import SUDO, is_ordinary_user
from esp_gw.cli.here import RESOLVERS, look, nameservers
from esp_gw.cli.viewpoint import viewpoint
from esp_gw.config.load import load_config
from esp_gw.crypto.advice import advice
from esp_gw.desired import Desired
from esp_gw.errors import ConfigError, NetworkError, Problem
from esp_gw.network.surroundings import ALLOW, resolvers_behind

_NAMED = 5


def check_file(path: Path) -> dict[str, Any]:
    """Return the outcome as a JSON object: `problems`, or sizes and warnings, and `as` whom.

    Raises EspGwError if it can't be looked at as the service does.
    """
    with viewpoint(path) as view:
        desired, problems = _loaded(path)
        if view.identity is not None:
            seen = view.look(lambda: [asdict(problem) for problem in _loaded(path)[1]])
            problems = [Problem(**fields) for fields in seen] or problems
    problems = [*view.faults, *problems]
    around, lost = ([], []) if desired is None or problems else _around(path, desired)
    problems += lost
    outcome: dict[str, Any] = {"file": str(path), "as": view.who, "ok": not problems}
    outcome["todo"] = SUDO if view.identity is None and _is_denied(problems) else ""
    outcome["problems"] = [
        {"file": each.file, "line": each.line, "field": each.field, "message": each.message}
        for each in problems
    ]
    if desired is None or problems:
        return outcome
    return outcome | {
        "tunnels": len(desired.tunnels),
        "sas": len(desired.sas),
        "policies": len(desired.policies),
        "warnings": [
            *around,
            *_one_sided(desired),
            *desired.warnings,
            *advice(desired.settings).hints(desired.tunnels),
        ],
    }


def _is_denied(problems: list[Problem]) -> bool:
    return is_ordinary_user() and any(problem.denied for problem in problems)


def _one_sided(desired: Desired) -> list[str]:
    """Return a warning for tunnels that wait for their peers: what they need of the other end."""
    waiting = [tunnel for tunnel in desired.tunnels if tunnel.learns_peer]
    if not waiting:
        return []
    names, ours = (
        ", ".join(sorted({str(each) for each in found})[:_NAMED])
        for found in ([tunnel.name for tunnel in waiting], [tunnel.local for tunnel in waiting])
    )
    return [
        f"remote: any ({names}): nothing is sent before the other end has sent to {ours}; it needs "
        "this address or a name of it, for with any at both ends none finds the other"
    ]


def _around(path: Path, desired: Desired) -> tuple[list[str], list[Problem]]:
    """Return warnings and problems of a configuration of this machine, with what is around it."""
    try:
        here = look(desired.settings)
    except NetworkError as error:
        return [f"the networks around this machine were not looked at: {error}"], []
    if not here.is_home_of([sa.local for sa in desired.sas]):
        return [], []
    deaf = [
        Problem(str(path), 0, "", text)
        for text in resolvers_behind(desired, here.host, nameservers(RESOLVERS))
    ]
    lost, others = here.cut_off(desired), here.clashes(desired)
    if desired.settings.allow_cut_off:
        return [*lost, *others], deaf
    return others, deaf + [Problem(str(path), 0, "", f"{text}; {ALLOW}") for text in lost]


def _loaded(path: Path) -> tuple[Desired | None, list[Problem]]:
    try:
        return load_config(path), []
    except ConfigError as error:
        return None, error.problems
