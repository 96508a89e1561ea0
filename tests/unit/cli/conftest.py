"""Commands run as by somebody at the console, however the tests were started."""

from __future__ import annotations

import pytest

from esp_gw.cli import here, login


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (here, login):
        monkeypatch.setattr(module, "find_login", lambda: None)
