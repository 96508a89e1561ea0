"""The cases of tests in virtual machines: those of every run, and the rest of the matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

REST = "vm_full"
"""The marker of the rest of the matrix."""


def every_run(chosen: Callable[[Mapping[str, Any]], bool]) -> pytest.MarkDecorator:
    """Mark a test whose cases are in every run if `chosen(parameters)`, in the rest otherwise."""
    return pytest.mark.every_run(chosen=chosen)


def mark_tiers(items: Iterable[pytest.Item]) -> None:
    """Mark each test in virtual machines `vm` or REST, never both."""
    for item in items:
        mark = item.get_closest_marker("every_run")
        if mark is not None:
            assert isinstance(item, pytest.Function)
            if not mark.kwargs["chosen"](item.callspec.params):
                item.add_marker(REST)
        if item.get_closest_marker(REST) is None:
            item.add_marker("vm")
