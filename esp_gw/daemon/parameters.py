"""Parameters of control methods, and their refusals."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from esp_gw.errors import ControlError

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


def refuse_other(config: object, ours: Path) -> None:
    """Raise ControlError for a caller that means another gateway's configuration."""
    if config is not None and os.path.realpath(str(config)) != os.path.realpath(ours):
        raise ControlError(
            "InvalidParameter",
            f"the gateway at this socket reads {ours}, not {config}",
            hint="name its socket with --socket, or restart it with the other configuration",
        )
