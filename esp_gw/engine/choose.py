"""Which engine runs: the native one where it is installed, else the reference."""

from __future__ import annotations

from esp_gw.engine.base import Engine
from esp_gw.engine.python import PythonEngine
from esp_gw.errors import EngineError


def make_engine(name: str) -> Engine:
    """Return the engine called `name`: auto, python or native. Raises EngineError."""
    if name == "native":
        raise EngineError(
            "the native engine is not installed", hint="set 'engine: python' or 'engine: auto'"
        )
    return PythonEngine()
