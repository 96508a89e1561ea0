"""Which engine runs: the native one where it is installed, else the reference."""

from __future__ import annotations

from importlib.util import find_spec

from esp_gw.engine.base import Engine
from esp_gw.engine.python import PythonEngine
from esp_gw.errors import EngineError


def make_engine(name: str) -> Engine:
    """Return the engine called `name`: auto, python or native. Raises EngineError."""
    installed = find_spec("esp_gw_core") is not None
    if name == "native" and not installed:
        raise EngineError(
            "the native engine is not installed", hint="set 'engine: python' or 'engine: auto'"
        )
    if name == "python" or not installed:
        return PythonEngine()
    from esp_gw.engine.native import NativeEngine  # noqa: PLC0415 - only where it is installed

    return NativeEngine()
