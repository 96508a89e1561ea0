"""The marker `protocol` of tests inside a virtual machine."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "protocol(name): the test's traffic, for its results")
