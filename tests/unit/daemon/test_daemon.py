"""The daemon process: signals at any moment, notifications to the service manager, shutdown."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw import limits, logs
from esp_gw.config.load import load_config
from esp_gw.config.provision import make_pair
from esp_gw.control.client import call
from esp_gw.daemon import main as daemon_module
from esp_gw.daemon import memory
from esp_gw.daemon import service as service_module
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.service import Service
from esp_gw.daemon.starts import Starts
from esp_gw.daemon.systemd import Notifier
from esp_gw.engine.base import EngineFailed
from esp_gw.errors import ConfigError, ControlError, EngineError, EspGwError
from esp_gw.ledger import thread as ledger_thread
from esp_gw.ledger.ledger import Ledger
from esp_gw.network.guard import GuardState
from esp_gw.network.objects import Network
from tests.support.fakes import FakeEngine, FakeKernel, captured_logs, until
from tests.support.ledgers import MACHINE


class StartingKernel(FakeKernel):
    """Calls `when_observed` once, in the middle of the daemon's start."""

    def __init__(self, when_observed: Callable[[], None]) -> None:
        super().__init__()
        self._when_observed: Callable[[], None] | None = when_observed

    async def observe(self) -> Network:
        if self._when_observed is not None:
            self._when_observed()
            self._when_observed = None
        return await super().observe()


class Rig:
    """A daemon with a fake engine and a fake kernel, and the service manager's socket."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        state = {"state_dir": str(folder), "control_socket": str(folder / "control.sock")}
        self.folder = folder
        self.socket = folder / "control.sock"
        self.config = make_pair(
            folder / "init",
            local=ip_address("192.0.2.1"),
            remote=ip_address("192.0.2.2"),
            local_nets=[ip_network("10.1.0.0/24")],
            remote_nets=[ip_network("10.2.0.0/24")],
            local_settings=state,
        ).local
        Ledger.create(folder / "ledger.db", MACHINE)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.setblocking(False)
        self.received: list[str] = []
        self.status = ""
        self.messages = 0
        self.engine = FakeEngine()
        monkeypatch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
        monkeypatch.setattr(ledger_thread, "machine_identity", lambda: MACHINE)
        monkeypatch.setattr(daemon_module, "make_engine", lambda _: self.engine)
        # The process is that of the tests, and starts the programs of later ones.
        monkeypatch.setattr(daemon_module, "prefer_control", lambda: None)
        self._monkeypatch = monkeypatch

    def launch(self, while_starting: Callable[[], None] = lambda: None) -> asyncio.Task[None]:
        self.kernel = StartingKernel(while_starting)
        self._monkeypatch.setattr(daemon_module, "KernelNetwork", lambda *_: self.kernel)
        self.daemon = daemon_module._Daemon(
            self.config,
            load_config(self.config),
            (),
            GuardState(self.folder),
            Gateway.stop,
            Notifier.from_environment(),
            Starts(None),
        )
        return asyncio.create_task(self.daemon.main())

    def states(self) -> list[str]:
        """Return the first assignment of every message about a state so far.

        `status` is the text of the last message with one.
        """
        try:
            while True:
                lines = self.manager.recv(4096).decode().split("\n")
                self.messages += 1
                for line in lines:
                    if line.startswith("STATUS="):
                        self.status = line.removeprefix("STATUS=")
                if lines != [f"STATUS={self.status}"]:
                    self.received.append(lines[0])
        except BlockingIOError:
            return self.received

    async def received_last(self, *states: str) -> None:
        await until(lambda: tuple(self.states()[-len(states) :]) == states)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """Yield the rig; fail the test if a signal arrives while the daemon has no handler for it."""
    missed: list[int] = []
    numbers = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda n, _: missed.append(n)) for number in numbers}
    rig = Rig(tmp_path, monkeypatch)
    yield rig
    rig.manager.close()
    for number, handler in before.items():
        signal.signal(number, handler)
    assert missed == []


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("locked", [True, False])
def test_memory_is_locked_before_any_key_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    steps: list[object] = []

    def load(_: Path) -> None:
        steps.append("keys are read")
        raise EspGwError("no further")

    def lock() -> bool:
        steps.append("memory is locked")
        return locked

    monkeypatch.setattr(limits, "raise_open_files", lambda: None)
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: steps.append(limit))
    monkeypatch.setattr(memory, "lock", lock)
    monkeypatch.setattr(logs, "configure", lambda _: None)
    monkeypatch.setattr(daemon_module, "load_config", load)
    monkeypatch.setattr(daemon_module, "hold_before_start", lambda *_: ())
    with captured_logs() as lines, pytest.raises(EspGwError, match="no further"):
        daemon_module.run(tmp_path, "info")
    assert steps == [(resource.RLIMIT_CORE, (0, 0)), "memory is locked", "keys are read"]
    assert [line["event"].partition(":")[0] for line in lines] == (
        [] if locked else ["keys may be swapped out"]
    )


async def test_a_reload_asked_for_during_the_start_happens_after_it(rig: Rig) -> None:
    text = rig.config.read_text()

    def while_starting() -> None:
        rig.config.write_text(text[: text.index("tunnels:")])
        send(signal.SIGHUP)

    running = rig.launch(while_starting)
    await rig.received_last("READY=1", "RELOADING=1", "READY=1")
    assert rig.engine.sas == {}
    rig.config.write_text(text)
    send(signal.SIGHUP)
    await rig.received_last("READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1")
    assert set(rig.engine.sas) == {"pi-b/out", "pi-b/in"}
    send(signal.SIGTERM)
    await running
    assert rig.states()[-1] == "STOPPING=1"
    assert not rig.engine.is_open
    assert not rig.socket.exists()


async def test_a_failed_data_plane_ends_the_daemon_with_the_first_reason(rig: Rig) -> None:
    running = rig.launch()
    await rig.received_last("READY=1")
    rig.engine.tell(EngineFailed("esp0: worker 1: panicked: a fault of ours"))
    rig.engine.tell(EngineFailed("esp0: worker 0: the TUN device is gone"))
    with pytest.raises(EngineError, match="worker 1: panicked"):
        await running
    assert rig.states()[-1] == "STOPPING=1"
    assert not rig.engine.is_open


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_asked_for_during_the_start_leaves_nothing(rig: Rig, number: int) -> None:
    await rig.launch(lambda: send(number))
    assert rig.states()[-1] == "STOPPING=1"
    assert "RELOADING=1" not in rig.received
    assert (rig.engine.sas, rig.engine.is_open) == ({}, False)
    assert not rig.socket.exists()


@pytest.mark.parametrize("error", [EspGwError("a mistake"), ValueError("a fault of ours")])
async def test_a_reload_that_fails_ends_and_the_next_one_works(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    running = rig.launch()
    await rig.received_last("READY=1")

    def broken(_: Path) -> None:
        raise error

    monkeypatch.setattr(service_module, "load_config", broken)
    send(signal.SIGHUP)
    await rig.received_last("READY=1", "RELOADING=1", "READY=1")
    assert rig.status.startswith("2 SAs, engine fake; the configuration was not reloaded: ")
    assert ("a mistake" in rig.status) is isinstance(error, EspGwError)
    assert set(rig.engine.sas) == {"pi-b/out", "pi-b/in"}
    monkeypatch.setattr(service_module, "load_config", load_config)
    send(signal.SIGHUP)
    await rig.received_last("READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1")
    send(signal.SIGTERM)
    await running


async def test_the_status_tells_what_is_wrong_as_soon_as_it_is_and_only_then(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "STATUS_INTERVAL", 0.001)
    running = rig.launch()
    await rig.received_last("READY=1")
    assert rig.status == "2 SAs, engine fake"
    looks, before = 0, rig.messages
    status_text = Service.status_text

    def looking(service: Service) -> str:
        nonlocal looks
        looks += 1
        return status_text(service)

    monkeypatch.setattr(Service, "status_text", looking)
    kernel = rig.kernel
    kernel.network = replace(kernel.network, is_up=False)
    kernel.events.release()
    await until(lambda: rig.states() and "esp0 is down" in rig.status)
    assert rig.status.startswith("2 SAs, engine fake; ")
    looks = 0
    await until(lambda: looks > 10)
    rig.states()
    assert rig.messages == before + 1
    kernel.network = replace(kernel.network, is_up=True)
    kernel.events.release()
    await until(lambda: rig.states() and "esp0 is down" not in rig.status)
    send(signal.SIGTERM)
    await running


async def test_a_change_by_the_command_line_is_in_the_status_at_once(rig: Rig) -> None:
    running = rig.launch()
    await rig.received_last("READY=1")
    text = rig.config.read_text()
    rig.config.write_text(text + "colour: blue\n")
    with pytest.raises(ControlError, match="colour"):
        await asyncio.to_thread(call, rig.socket, "Reload", {})
    await until(lambda: rig.states() and "not reloaded" in rig.status)
    rig.config.write_text(text[: text.index("tunnels:")])
    await asyncio.to_thread(call, rig.socket, "Reload", {})
    await until(lambda: rig.states() and rig.status == "0 SAs, engine fake")
    # Nothing but a change of the status: the service manager waits for no end of this reload.
    assert rig.received == ["READY=1"]
    send(signal.SIGTERM)
    await running


@pytest.mark.parametrize("fault", ["colour: blue\n", None])
def test_a_start_that_fails_leaves_its_reason_in_the_status(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: str | None
) -> None:
    monkeypatch.setattr(memory, "lock", lambda: True)
    monkeypatch.setattr(memory, "forbid_core_dumps", lambda: None)
    monkeypatch.setattr(limits, "raise_open_files", lambda: None)
    monkeypatch.setattr(logs, "configure", lambda _: None)
    if fault is None:
        rig.config.unlink()
    else:
        rig.config.write_text(rig.config.read_text() + fault)
    with pytest.raises(ConfigError) as refused:
        daemon_module.run(rig.config, "info")
    assert refused.value.exit_status == (1 if fault is None else 78)
    rig.states()
    assert rig.status == refused.value.summary
    assert rig.received == []
