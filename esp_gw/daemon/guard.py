"""The guard's watcher, `esp-gw guard run`, and the guard as the first step of a gateway's start."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

from esp_gw import logs
from esp_gw.config.load import load_protection, readable_state_dir
from esp_gw.daemon.systemd import Notifier
from esp_gw.desired import Desired
from esp_gw.errors import ConfigError, EngineError, EspGwError, NetworkError
from esp_gw.logs import log
from esp_gw.model import Action
from esp_gw.network.guard import GuardState, hold
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.owned_tables import TABLES_NAME, OwnedTables
from esp_gw.network.watch import CheckResult, Watch


def run(config: Path, log_level: str) -> int:
    """Keep the last plan closed until SIGTERM or SIGINT, whenever no gateway runs.

    Returns the exit status. Raises EspGwError if nothing is guarded.
    """
    logs.configure(log_level)
    guard = GuardState(readable_state_dir(config))
    if not guard.is_there:
        raise NetworkError(
            "there is no state directory, so nothing is guarded",
            where=str(guard.folder),
            hint="run 'esp-gw ledger create'",
        )
    with guard.watcher() as is_first:
        if not is_first:
            raise EngineError("the guard is watched already", where=str(guard.folder))
        guard.forget_opened()
        asyncio.run(_Watcher(guard, config).main())
    return 0


def hold_before_start(guard: GuardState, config: Path) -> None:
    """Close what was protected last, before a gateway starts; only log a failure."""
    try:
        guard.forget_opened()
        asyncio.run(_hold_once(guard, _last_protection(guard, config)))
    except EspGwError as error:
        log.error("not closed before the start", reason=str(error))


def _last_protection(guard: GuardState, config: Path) -> Desired:
    """Return the last plan, or what the configuration protects. Raises NetworkError.

    A damaged copy of the plan is replaced.
    """
    why = "there is no plan of an earlier run"
    try:
        stored = guard.plan.read()
        if stored is not None:
            if stored.fault is not None:
                log.warning("a copy of the guard's plan was damaged", reason=stored.fault)
                guard.remember(stored.protection)
            return stored.protection
    except NetworkError as error:
        why = str(error)
        log.error("no copy of the guard's plan is usable", reason=why)
    try:
        return load_protection(config)
    except ConfigError as error:
        nothing = NetworkError(
            f"nothing is guarded: {why}, and {error.problems[0]}",
            hint="mend the configuration and start again",
        )
        nothing.exit_status = error.exit_status
        raise nothing from None


async def _hold_once(guard: GuardState, protection: Desired) -> None:
    kernel = _kernel(guard, protection)
    await kernel.open()
    try:
        await hold(kernel, protection)
    finally:
        await kernel.close()


def _kernel(guard: GuardState, protection: Desired) -> KernelNetwork:
    tables = OwnedTables(guard.folder / TABLES_NAME)
    return KernelNetwork(protection.settings.table, tables.read())


class _Watcher:
    """Repairs the guard after each change of the network while no gateway runs."""

    def __init__(self, guard: GuardState, config: Path) -> None:
        self._guard = guard
        self._config = config
        self._notifier = Notifier.from_environment()
        self._kernel: KernelNetwork | None = None
        self._waiting = False

    async def main(self) -> None:
        self._loop = asyncio.get_running_loop()
        stopping, self._ended = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stopping.set)
        protection = _last_protection(self._guard, self._config)
        try:
            await self._check()
            self._notifier.ready(_described(protection))
            log.info("guarding", prefixes=len(_prefixes(protection)))
            watch = asyncio.create_task(Watch(self._changed, self._check).run())
            await stopping.wait()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            self._notifier.stopping()
            log.info("not watched any more: what is closed stays closed")
        finally:
            await self._close()

    async def _changed(self) -> None:
        """Wait for the end of the running gateway, or for a change of the network without one."""
        if self._kernel is None:
            await self._ended.wait()
            self._ended.clear()
        else:
            await self._kernel.changed()

    async def _check(self) -> CheckResult:
        with self._guard.without_gateway() as is_free:
            if not is_free:
                await self._close()
                self._wait_for_end()
                return CheckResult()
            protection = _last_protection(self._guard, self._config)
            if self._kernel is None:
                kernel = _kernel(self._guard, protection)
                await kernel.open()
                self._kernel = kernel
            if self._guard.is_opened:
                return CheckResult()
            done = await hold(self._kernel, protection)
            return CheckResult(done=tuple(done), fault=self._kernel.filter_fault, waits=True)

    async def _close(self) -> None:
        if self._kernel is not None:
            kernel, self._kernel = self._kernel, None
            await kernel.close()

    def _wait_for_end(self) -> None:
        """Set `_ended` when the running gateway ends; the lock is waited for in a thread."""
        if self._waiting:
            return
        self._waiting = True

        def wait() -> None:
            self._guard.wait_for_end()
            self._loop.call_soon_threadsafe(self._gateway_ended)

        # A daemon thread: the wait can't be interrupted, and the process must be able to end.
        threading.Thread(target=wait, name="gateway", daemon=True).start()

    def _gateway_ended(self) -> None:
        self._waiting = False
        self._ended.set()


def _prefixes(protection: Desired) -> set[str]:
    return {
        str(selector.remote)
        for policy in protection.policies
        if policy.action is not Action.BYPASS
        for selector in policy.selectors
    }


def _described(protection: Desired) -> str:
    return f"{len(_prefixes(protection))} protected prefixes closed without the gateway"
