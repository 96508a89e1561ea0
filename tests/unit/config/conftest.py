from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.config_files import write_keys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the key files of tunnel `b`."""
    write_keys(tmp_path)
    return tmp_path
