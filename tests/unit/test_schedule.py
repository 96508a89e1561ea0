"""The files that start first are there."""

from __future__ import annotations

import pytest

from tests.conftest import LONGEST, ROOT


@pytest.mark.parametrize("name", LONGEST)
def test_a_file_that_starts_early_exists(name: str) -> None:
    assert (ROOT / name).is_file()
