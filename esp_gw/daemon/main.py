"""The daemon process: wires up configuration, ledger, engine, network and control socket."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from esp_gw import limits, logs
from esp_gw.config.added import STORE_NAME, Store
from esp_gw.config.load import load_config, readable_state_dir
from esp_gw.control.server import Caller, ControlServer, Handler, Reply
from esp_gw.crypto.advice import advice
from esp_gw.daemon import memory
from esp_gw.daemon.background import Background
from esp_gw.daemon.engines import make_engine
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.guard import GUARD_FILES, GUARD_SPACE, hold_before_start
from esp_gw.daemon.health import Health
from esp_gw.daemon.held_file import held_path, load_held
from esp_gw.daemon.holding import Holding
from esp_gw.daemon.hooks import Hooks
from esp_gw.daemon.ike_port import IkePort
from esp_gw.daemon.ledgers import Ledgers
from esp_gw.daemon.owner import Owner
from esp_gw.daemon.owner_events import OwnerEvents
from esp_gw.daemon.priority import prefer_control
from esp_gw.daemon.service import Service
from esp_gw.daemon.starts import Starts, may_start
from esp_gw.daemon.systemd import Notifier, watchdog_interval
from esp_gw.desired import Desired
from esp_gw.engine.choose import is_native
from esp_gw.errors import EngineError, EspGwError
from esp_gw.ledger.ledger import LEDGER_NAME
from esp_gw.ledger.thread import EphemeralThread, LedgerThread
from esp_gw.logs import log
from esp_gw.model import Policy
from esp_gw.network.guard import GuardState
from esp_gw.network.icmp_errors import IcmpErrors
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.owned_tables import TABLES_NAME, OwnedTables

GATEWAY_FILES = 32
"""Open files without which no gateway starts; further workers and outer addresses need more."""
GATEWAY_SPACE = 128
"""MiB of address space without which no gateway starts; thousands of SAs need more."""
WORKER_SPACE = 4
"""MiB of address space for each worker of the native engine."""
STATUS_INTERVAL = 15.0
"""Seconds between looks at what is wrong, where no watchdog sets the pace."""

End = Callable[[Gateway], Awaitable[None]]
"""The way in which a gateway ends that was asked to."""


def run(config: Path, log_level: str) -> int:
    """Run the gateway until SIGTERM or SIGINT; protected prefixes stay closed.

    Returns the exit status. Raises EspGwError if it can't start or can't continue.
    """
    return _run(config, log_level, Gateway.stop)


def run_and_release(config: Path, log_level: str) -> int:
    """Run the gateway as `run` does, but open the protected prefixes at SIGTERM or SIGINT."""
    return _run(config, log_level, Gateway.release)


def _run(config: Path, log_level: str, end: End) -> int:
    logs.configure(log_level)
    # By default SIGHUP ends a process. One that comes before the event loop handles it asks for
    # nothing more: a start reads the configuration.
    signal.signal(signal.SIGHUP, lambda *_: None)
    notifier, starts = Notifier.from_environment(), Starts.from_environment()
    # Before the guard is told that a gateway runs: while this one waits, its watcher repairs.
    if not may_start(starts, notifier):
        return 0
    try:
        _start(config, end, notifier, starts)
    except Exception as error:
        told = limits.named(error) or error
        if isinstance(told, EspGwError):
            starts.failed(told.summary)
            notifier.status(told.summary)
        if told is error:
            raise
        raise told from error
    return 0


def _start(config: Path, end: End, notifier: Notifier, starts: Starts) -> None:
    memory.bound_arenas()
    limits.raise_open_files()
    limits.require_open_files(GUARD_FILES)
    limits.require_address_space(GUARD_SPACE)
    # Before a key is read into memory.
    memory.forbid_core_dumps()
    if not memory.lock():
        log.warning("keys may be swapped out: the limit of locked memory is too small")
    guard = GuardState(readable_state_dir(config))
    with guard.gateway():
        # Before anything else that can fail.
        left = hold_before_start(guard, config)
        limits.require_open_files(GATEWAY_FILES)
        limits.require_address_space(GATEWAY_SPACE)
        desired = load_config(config)
        daemon = _Daemon(config, desired, left, guard, end, notifier, starts)
        if is_native(desired.settings.engine):
            workers = desired.settings.workers or len(os.sched_getaffinity(0))
            limits.require_address_space(GATEWAY_SPACE + WORKER_SPACE * workers)
            # The loop carries no packets, so uvloop would only cost 2 MB of memory.
            asyncio.run(daemon.main())
        else:
            _run_fast_loop(daemon.main())


def _run_fast_loop(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


class _Daemon:
    def __init__(
        self,
        config: Path,
        desired: Desired,
        left: tuple[Policy, ...],
        guard: GuardState,
        end: End,
        notifier: Notifier,
        starts: Starts,
    ) -> None:
        self._config = config
        self._desired = desired
        self._left = left
        self._guard = guard
        self._end = end
        self._notifier = notifier
        self._starts = starts
        self._failure: str | None = None

    async def main(self) -> None:
        self._stopping, self._reload_asked = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        # Signals that arrive during the start are handled after it.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_asked.set)
        settings = self._desired.settings
        state_dir = Path(settings.state_dir)
        tables = OwnedTables(state_dir / TABLES_NAME)
        former = tables.read()
        ephemeral = EphemeralThread(held_path(settings.control_socket))
        ledgers = Ledgers(LedgerThread(state_dir / LEDGER_NAME), ephemeral)
        gateway = Gateway(
            partial(make_engine, settings.engine),
            KernelNetwork(settings.table, former),
            ledgers,
            self._guard,
            self._fail,
        )
        errors = IcmpErrors()
        self._health = Health(gateway, errors.drain)
        self._service = Service(
            gateway,
            self._health,
            self._config,
            self._desired,
            Store(state_dir / STORE_NAME),
            advice(settings),
        )
        sources = self._service.sources
        self._hooks = Hooks(lambda: sources.configured.settings.hook)
        self._health.on_event = self._hooks.tell
        holding = Holding(gateway, sources, ledgers)
        self._events = OwnerEvents(gateway, sources, holding, self._fail)
        owner = Owner(sources, holding, self._events, IkePort(gateway, sources))
        self._closed_time = owner.closed_time
        handlers = {name: self._told(each) for name, each in self._service.handlers().items()}
        handlers |= owner.handlers()
        control = ControlServer(Path(settings.control_socket), handlers, on_end=owner.ended)
        tables.write(former | {settings.table})
        held = await load_held(ephemeral)
        sources.held = held.closed().with_left(self._left)
        await gateway.start(self._service.desired())
        tables.write(frozenset({settings.table}))
        for warning in gateway.engine.status().latency.warnings:
            log.warning(warning)
        if is_native(settings.engine):
            prefer_control()
        try:
            await holding.restore(held)
            await control.start()
            await self._service.advise()
            await self._serve(gateway)
        finally:
            self._notifier.stopping()
            log.info("stopping")
            self._hooks.stop()
            self._events.stopping()
            await self._events.stop()
            await (self._end(gateway) if self._failure is None else gateway.abandon())
            await control.close()
            errors.close()
        if self._failure is not None:
            raise EngineError(self._failure, hint="restart the gateway")

    async def _serve(self, gateway: Gateway) -> None:
        log.info(
            "ready",
            engine=gateway.engine.name,
            interface=self._desired.settings.interface,
            mtu=gateway.mtu,
            sas=len(gateway.sas),
        )
        self._starts.forget()
        self._notifier.ready(self._service.status_text())
        background = Background(self._fail)
        background.repeat("the watch over the tunnels", self._health.step)
        background.repeat("the events of the owner", self._events.step)
        background.repeat("the end of what is left closed", self._closed_time.step)
        background.repeat("the hook", self._hooks.step)
        background.repeat("the report to the service manager", self._report)
        background.repeat("the reload at a signal", self._reload_when_asked)
        await self._stopping.wait()
        await background.stop()

    async def _report(self) -> None:
        """Feed the watchdog, and tell of what became wrong since."""
        interval = watchdog_interval()
        if interval is not None:
            self._notifier.watchdog()
        self._notifier.status(self._service.status_text())
        await asyncio.sleep(interval or STATUS_INTERVAL)

    def _told(self, handler: Handler) -> Handler:
        """Return a control method that tells the service manager what has changed by it."""

        async def tell(parameters: dict[str, object], caller: Caller) -> Reply:
            try:
                return await handler(parameters, caller)
            finally:
                self._notifier.status(self._service.status_text())

        return tell

    async def _reload_when_asked(self) -> None:
        await self._reload_asked.wait()
        # Cleared before the reload: a request during it must read the files again.
        self._reload_asked.clear()
        await self._reload()

    async def _reload(self) -> None:
        self._notifier.reloading()
        try:
            await self._service.reload_files()
        except EspGwError as error:
            # The running state is kept: a mistake in a file is no reason to lose a tunnel.
            for line in str(error).splitlines():
                log.error("not reloaded", reason=line)
        except Exception:
            log.exception("not reloaded")
        # The service manager waits for READY=1, even after an unexpected error.
        self._notifier.ready(self._service.status_text())

    def _fail(self, reason: str) -> None:
        # Keep the first reason: later failures follow from it.
        self._failure = self._failure or reason
        self._stopping.set()
