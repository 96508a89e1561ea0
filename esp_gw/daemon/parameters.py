"""Parameters of control methods, and their refusals."""

from __future__ import annotations

from collections.abc import Collection

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
