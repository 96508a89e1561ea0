"""A fresh ledger file, and the open ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.ledger.ledger import Ledger
from tests.support.ledgers import MACHINE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    Ledger.create(path, MACHINE)
    return path


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with closing(Ledger.open(path, MACHINE)) as ledger:
        yield ledger
