"""The control methods of a gateway with a fake data plane and a fake kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml

from esp_gw.config.added import Store
from esp_gw.config.load import load_config
from esp_gw.config.provision import make_pair
from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller
from esp_gw.crypto.advice import Advice
from esp_gw.crypto.recommend import SIZES, Figures
from esp_gw.daemon.events import EventStream
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.held_file import load_held
from esp_gw.daemon.holding import Holding
from esp_gw.daemon.ledgers import Ledgers
from esp_gw.daemon.owner import Owner
from esp_gw.daemon.owner_events import OwnerEvents
from esp_gw.daemon.service import Service
from esp_gw.ledger import thread as ledger_thread
from esp_gw.ledger.ledger import Ledger
from esp_gw.ledger.thread import EphemeralThread, LedgerThread
from esp_gw.model import NO_AES, SUITES
from esp_gw.network.guard import GuardState
from tests.support.fakes import FakeEngine, FakeKernel
from tests.support.ledgers import MACHINE

ROOT = Caller(1, 0, 0)


class FakeLink:
    """The connection of a caller, which notes what becomes of it."""

    def __init__(self, pid: int = 1) -> None:
        self.pid = pid
        self.is_kept = False
        self.ended: list[str] = []

    def keep(self) -> None:
        self.is_kept = True

    def end(self, why: str) -> None:
        self.ended.append(why)


class Rig:
    def __init__(self, folder: Path) -> None:
        self.config = folder / "init" / "pi-a" / "gateway.yaml"
        self.store = Store(folder / "added.json")
        self.ledger = folder / "ledger.db"
        self.engine, self.kernel = FakeEngine(), FakeKernel()
        # All suites have the same speed unless a test changes it.
        self.figures: dict[str, Figures] = {suite: dict.fromkeys(SIZES, 1000.0) for suite in SUITES}
        self.kernel_figures = dict(self.figures)
        self.ephemeral = EphemeralThread(folder / "ike" / "held.db")
        self.ledgers = Ledgers(LedgerThread(self.ledger), self.ephemeral)
        self.link = FakeLink()
        self.gateway = Gateway(
            lambda: self.engine,
            self.kernel,
            self.ledgers,
            GuardState(folder),
            self._on_failure,
        )

    def _measure(self, suites: list[str], in_kernel: frozenset[str]) -> dict[str, Figures]:
        return {
            suite: (self.kernel_figures if suite in in_kernel else self.figures)[suite]
            for suite in suites
        }

    async def start(self) -> None:
        advice = Advice(NO_AES, self._measure)
        desired = load_config(self.config)
        self.health = Health(self.gateway, list)
        self.service = Service(self.gateway, self.health, self.config, desired, self.store, advice)
        sources = self.service.sources
        self.holding = Holding(self.gateway, sources, self.ledgers)
        self.events = OwnerEvents(self.gateway, sources, self.holding, self._on_failure)
        self.owner = Owner(sources, self.holding, self.events)
        held = await load_held(self.ephemeral)
        sources.held = held.closed()
        await self.gateway.start(self.service.desired())
        await self.holding.restore(held)
        await self.service.advise()

    def _on_failure(self, reason: str) -> None:
        raise AssertionError(reason)

    async def call(
        self, method: str, caller: Caller = ROOT, /, **parameters: object
    ) -> dict[str, Any]:
        handlers = {**self.service.handlers(), **self.owner.handlers()}
        reply = await handlers[PREFIX + method](dict(parameters), caller)
        assert isinstance(reply, dict)
        return reply

    async def ask(self, method: str, /, **parameters: object) -> dict[str, Any]:
        """Call a method of the owner on the connection that is its session."""
        return await self.call(method, replace(ROOT, link=self.link), **parameters)

    async def watch(self) -> EventStream:
        """Watch as the owner."""
        handler = self.owner.handlers()[PREFIX + "Watch"]
        stream = await handler({"owner": "ike"}, replace(ROOT, link=FakeLink()))
        assert isinstance(stream, EventStream)
        return stream

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        document = yaml.safe_load(self.config.read_text())
        change(document)
        self.config.write_text(yaml.safe_dump(document))

    async def warnings(self) -> list[str]:
        status = await self.call("GetStatus")
        return [text for text in status["warnings"] if "added by the CLI" in text]

    def names(self) -> set[str]:
        names = {name for name in self.engine.sas if "~" not in name}
        assert names == {sa.name for sa in self.gateway.sas}
        return names - {"pi-b/out", "pi-b/in"}


async def start_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A running gateway with one tunnel, 192.0.2.1 to 192.0.2.2, pi-a to pi-b."""
    monkeypatch.setattr(ledger_thread, "machine_identity", lambda: MACHINE)
    make_pair(
        tmp_path / "init",
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.2"),
        local_nets=[ip_network("10.1.0.0/24")],
        remote_nets=[ip_network("10.2.0.0/24")],
    )
    Ledger.create(tmp_path / "ledger.db", MACHINE)
    rig = Rig(tmp_path)
    await rig.start()
    return rig


async def restarted(rig: Rig) -> Rig:
    await rig.gateway.stop()
    again = Rig(rig.ledger.parent)
    await again.start()
    return again
