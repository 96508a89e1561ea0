"""The marker of the tests inside a virtual machine."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "protocol(name): what the test sends, for its results")
