"""A gateway with a real ledger, a fake engine and a fake kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from esp_gw.daemon import background as background_module
from esp_gw.daemon.gateway import Gateway
from esp_gw.ledger import thread as ledger_thread
from esp_gw.ledger.ledger import Ledger
from esp_gw.ledger.thread import LedgerThread
from esp_gw.network.guard import GuardState
from tests.support.fakes import FakeEngine, FakeKernel
from tests.support.ledgers import MACHINE


class Rig:
    """A gateway and its dependencies; `failures` are the reasons passed to on_failure."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "ledger.db"
        self.engine = FakeEngine()
        self.kernel = FakeKernel()
        self.guard = GuardState(folder)
        self.failures: list[str] = []
        self.gateway = Gateway(
            lambda: self.engine,
            self.kernel,
            LedgerThread(self.path),
            self.guard,
            self.failures.append,
        )

    def seen(self) -> tuple[object, ...]:
        """Return all state that a change could affect."""
        return (
            dict(self.engine.sas),
            self.engine.policies,
            self.engine.sockets,
            self.kernel.network,
            [sa.name for sa in self.gateway.sas],
        )


MakeRig = Callable[[], Rig]


@asynccontextmanager
async def rigs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeRig]:
    """Yield a maker of gateways that share a ledger; those that run at the end are stopped."""
    monkeypatch.setattr(background_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(ledger_thread, "machine_identity", lambda: MACHINE)
    Ledger.create(folder / "ledger.db", MACHINE)
    made: list[Rig] = []

    def make() -> Rig:
        made.append(Rig(folder))
        return made[-1]

    yield make
    for rig in made:
        if rig.engine.is_open:
            await rig.gateway.stop()
