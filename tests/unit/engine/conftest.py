"""The native engine's tests run where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("esp_gw_core") else ["test_native_seam.py"]
