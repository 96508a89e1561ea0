"""Commands run as by somebody at the console, however the tests were started."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.cli import here, login
from tests.support.canned import Gateway


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (here, login):
        monkeypatch.setattr(module, "find_login", lambda: None)


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway with canned replies, at the control socket that the commands ask."""
    monkeypatch.setenv("ESP_GW_SOCKET", str(tmp_path / "control.sock"))
    with Gateway(tmp_path / "control.sock") as running:
        yield running
