"""The guard's watcher, `esp-gw guard run`, and the guard as the first step of a gateway's start."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

from esp_gw import limits, logs
from esp_gw.config.load import readable_state_dir
from esp_gw.daemon import memory
from esp_gw.daemon.around import Around
from esp_gw.daemon.background import Background
from esp_gw.daemon.protection import Protection, last_protection
from esp_gw.daemon.systemd import Notifier
from esp_gw.desired import Desired
from esp_gw.errors import EngineError, EspGwError, NetworkError
from esp_gw.logs import log
from esp_gw.model import Action, Policy
from esp_gw.network.guard import GuardState, Held, hold, left_closed
from esp_gw.network.kernel import FILTER_RETRY, KernelNetwork
from esp_gw.network.objects import Network
from esp_gw.network.owned_tables import TABLES_NAME, OwnedTables
from esp_gw.network.watch import CheckResult, Watch

GUARD_FILES = 16
"""Open files that it takes to close prefixes by routes and rules; the packet filter needs more."""

GUARD_SPACE = 80
"""MiB of address space that it takes."""


def run(config: Path, log_level: str) -> int:
    """Keep the last plan closed until SIGTERM or SIGINT, whenever no gateway runs.

    Returns the exit status. Raises EspGwError if nothing is guarded.
    """
    logs.configure(log_level)
    memory.bound_arenas()
    limits.raise_open_files()
    limits.require_open_files(GUARD_FILES)
    limits.require_address_space(GUARD_SPACE)
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


def hold_before_start(guard: GuardState, config: Path) -> tuple[Policy, ...]:
    """Close what was protected last, before a gateway starts; only log a failure.

    Returns policies for what is closed for IKE beyond the records of its children.
    """
    guard.forget_opened()
    try:
        protection = last_protection(guard, config)
        _tell(guard, protection)
        return asyncio.run(_hold_once(guard, protection))
    except EspGwError as error:
        log.error("not closed before the start", reason=str(error))
        return ()


async def _hold_once(guard: GuardState, protection: Protection) -> tuple[Policy, ...]:
    kernel = _kernel(guard, protection.desired)
    await kernel.open()
    try:
        # Without a plan nobody can tell it from what the configuration has protected before.
        left = left_closed(await kernel.observe(), protection.desired) if protection.planned else ()
        await _hold(kernel, protection.plus(left))
        return (*protection.standing, *left)
    finally:
        await kernel.close()


async def _hold(
    kernel: KernelNetwork, protection: Protection, before: Network | None = None
) -> Held:
    """Close what is protected. Raises NetworkError, also if a first start would refuse it."""
    if not protection.known:
        await Around(kernel).refuse_cut_off(
            protection.desired, Desired(protection.desired.settings)
        )
    return await hold(kernel, protection.desired, before)


def _kernel(guard: GuardState, desired: Desired) -> KernelNetwork:
    """Return the network of the plan's table, which later runs find recorded."""
    tables = OwnedTables(guard.folder / TABLES_NAME)
    former = tables.read()
    tables.write(former | {desired.settings.table})
    return KernelNetwork(desired.settings.table, former)


def _tell(guard: GuardState, protection: Protection) -> None:
    """Log what of the plan is unusable, and write it anew."""
    if protection.fault is not None:
        log.warning("the guard's plan is not whole", reason=protection.fault)
        try:
            guard.remember(protection.desired)
        except NetworkError as error:
            log.error("can't write the guard's plan", reason=str(error))


class _Watcher:
    """Repairs the guard after each change of the network while no gateway runs."""

    def __init__(self, guard: GuardState, config: Path) -> None:
        self._guard = guard
        self._config = config
        self._notifier = Notifier.from_environment()
        self._kernel: KernelNetwork | None = None
        self._held: Network | None = None
        self._left: tuple[Policy, ...] = ()
        self._fault: str | None = None
        self._waiting = False
        self._failure: str | None = None

    async def main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping, self._ended = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        prefixes = _prefixes(last_protection(self._guard, self._config).desired)
        try:
            await self._check()
            count = len(prefixes)
            self._notifier.ready(f"{count} protected prefixes closed without the gateway")
            log.info("guarding", prefixes=count)
            background = Background(self._fail)
            watch = Watch(self._changed, self._check, self._next_look)
            background.repeat("the watch of the network", watch.step)
            await self._stopping.wait()
            await background.stop()
            self._notifier.stopping()
            if self._failure is not None:
                raise EngineError(self._failure, hint="what is closed stays closed; restart it")
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

    def _next_look(self) -> float | None:
        if self._kernel is None or self._kernel.filter_warning is None:
            return None
        return self._looked + FILTER_RETRY

    async def _check(self) -> CheckResult:
        self._looked = self._loop.time()
        with self._guard.without_gateway() as is_free:
            if not is_free:
                await self._close()
                self._wait_for_end()
                return CheckResult()
            protection = last_protection(self._guard, self._config)
            if protection.fault != self._fault:
                self._fault = protection.fault
                _tell(self._guard, protection)
            if self._kernel is None:
                kernel = _kernel(self._guard, protection.desired)
                await kernel.open()
                self._kernel = kernel
                self._left = left_closed(await kernel.observe(), protection.desired.lasting)
            if self._guard.is_opened:
                self._held = None
                return CheckResult()
            held = await _hold(self._kernel, protection.plus(self._left), self._held)
            self._held = held.network
            return CheckResult(held.missing, held.done)

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._stopping.set()

    async def _close(self) -> None:
        if self._kernel is not None:
            kernel, self._kernel, self._held = self._kernel, None, None
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


def _prefixes(desired: Desired) -> set[str]:
    return {
        str(selector.remote)
        for policy in desired.policies
        if policy.action is not Action.BYPASS
        for selector in policy.selectors
    }
