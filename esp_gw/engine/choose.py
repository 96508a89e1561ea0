"""Engine selection: the native engine if it is installed, else the reference engine."""

from __future__ import annotations

from importlib.util import find_spec

from esp_gw.errors import EngineError


def is_native(name: str) -> bool:
    """Return True if `name` (auto, python or native) selects the native engine.

    Raises EngineError if the native engine is required and not installed.
    """
    installed = find_spec("esp_gw_core") is not None
    if name == "native" and not installed:
        raise EngineError(
            "the native engine is not installed", hint="set 'engine: python' or 'engine: auto'"
        )
    return installed and name != "python"
