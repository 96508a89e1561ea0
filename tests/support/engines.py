"""The engines installed here, for tests that run over each of them."""

from __future__ import annotations

from importlib.util import find_spec

ENGINES = ["python", *(["native"] if find_spec("esp_gw_core") else [])]
"""Names of the installed engines, the reference engine first."""
