"""Creation of the selected engine."""

from __future__ import annotations

from esp_gw.engine.base import Engine
from esp_gw.engine.choose import is_native


def make_engine(name: str) -> Engine:
    """Return the engine called `name`: auto, python or native. Raises EngineError."""
    # Imported lazily: the python engine pulls in cryptography, the native one may not be installed.
    if is_native(name):
        from esp_gw.engine.native import NativeEngine  # noqa: PLC0415

        return NativeEngine()
    from esp_gw.engine.python.engine import PythonEngine  # noqa: PLC0415

    return PythonEngine()
