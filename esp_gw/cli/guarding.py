"""The guard as an operator sees it: its state in the kernel and on disk, and the act of opening."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_gw.cli.denial import refuse_unreadable
from esp_gw.cli.output import counted, joined
from esp_gw.config.load import readable_state_dir
from esp_gw.daemon.protection import last_protection
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import EspGwError, NetworkError
from esp_gw.network.changes import network_changes
from esp_gw.network.guard import GuardState, release, without_guard
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.nft import firewall_fault
from esp_gw.network.objects import Network
from esp_gw.network.owned_tables import TABLES_NAME, OwnedTables
from esp_gw.network.plan import plan_guard

CLOSED, OPEN, NOT_CLOSED, NOTHING = "closed", "open", "not closed", "nothing to close"


@dataclass(frozen=True, slots=True)
class Examination:
    """The state of the guard; `missing` names what the kernel lacks of the plan.

    `ikes` are the prefixes that wait for an IKE daemon.
    """

    state: str
    prefixes: tuple[str, ...]
    gateway: bool
    watched: bool
    missing: tuple[str, ...]
    warnings: tuple[str, ...]
    ikes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """0 if everything protected is closed, else 1."""
        return 0 if self.state in (CLOSED, NOTHING) else 1

    def as_json(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {
            "state": self.state,
            "protected": list(self.prefixes),
            "ike": list(self.ikes),
            "gateway_runs": self.gateway,
            "watched": self.watched,
            "missing": list(self.missing),
            "warnings": list(self.warnings),
        }

    def lines(self) -> dict[str, str]:
        """Return the state as titles and texts."""
        return {
            "protected": joined(self.prefixes),
            **({"for ike": joined(self.ikes)} if self.ikes else {}),
            "gateway": "runs" if self.gateway else "does not run",
            "watcher": "runs" if self.watched else "does not run",
        }


def examine(config: Path) -> Examination:
    """Compare the kernel with the plan on disk. Raises EspGwError, also without permission."""
    guard = _state(config)
    with guard.without_gateway() as is_free, guard.watcher() as is_unwatched:
        protection = last_protection(guard, config)
        planned, there, filter_fault = asyncio.run(
            _compare(guard, protection.desired, running=not is_free)
        )
    missing = _missing(planned, there)
    prefixes = sorted({str(route.destination) for route in planned.routes})
    warnings = [] if protection.fault is None else [protection.fault]
    if guard.is_opened:
        state = OPEN
        warnings.append("an operator opened the guard: a start of esp-gw or of the guard closes it")
    elif not prefixes:
        state = NOTHING
    else:
        state = NOT_CLOSED if missing else CLOSED
    if filter_fault is not None and prefixes:
        warnings.append(f"not closed to sockets bound to a device: {filter_fault}")
    if is_free and is_unwatched and state == CLOSED:
        warnings.append("nothing repairs the guard: run 'systemctl start esp-gw-guard'")
    ikes = sorted({str(s.remote) for policy in protection.standing for s in policy.selectors})
    if ikes and is_free and state == CLOSED:
        warnings.append(
            f"{joined(ikes)}: closed until an IKE daemon protects it again; if none will come, "
            "'esp-gw guard down' opens it"
        )
    return Examination(
        state,
        tuple(prefixes),
        not is_free,
        not is_unwatched,
        tuple(missing),
        tuple(warnings),
        tuple(ikes),
    )


def open_guard(config: Path) -> str:
    """Open everything that is closed and return it in words. Raises EspGwError.

    Refused while the gateway runs. IKE's part of the plan is forgotten: nothing else tells that no
    IKE daemon will come.
    """
    guard = _state(config)
    with guard.without_gateway() as is_free:
        if not is_free:
            raise EspGwError(
                "esp-gw runs, and its tunnels need the guard",
                where="guard",
                hint="stop it first, or use --force",
            )
        guard.mark_opened()
        guard.forget_ikes()
        return _told(asyncio.run(_release(guard, _settings(guard, config).table)))


def force_open(config: Path) -> str:
    """Open everything that is closed, also while the gateway runs, and return it in words.

    Tunnels go on. Raises EspGwError.
    """
    guard = _state(config)
    with guard.without_gateway() as is_free:
        guard.mark_opened()
        settings = _settings(guard, config)
        if is_free:
            return _told(asyncio.run(_release(guard, settings.table)))
        return _told(asyncio.run(_open_beside(guard, settings)))


def _state(config: Path) -> GuardState:
    refuse_unreadable(config)
    refuse_unreadable(*sorted(config.glob("*.yaml")))
    guard = GuardState(readable_state_dir(config))
    refuse_unreadable(guard.folder)
    if not guard.is_there:
        raise NetworkError(
            "there is no state directory, so nothing is guarded",
            where=str(guard.folder),
            hint="name the configuration with --config",
        )
    return guard


def _settings(guard: GuardState, config: Path) -> GatewaySettings:
    """Return the settings of what is protected, defaults if nothing of it is readable."""
    try:
        return last_protection(guard, config).desired.settings
    except NetworkError:
        return GatewaySettings()


def _kernel(guard: GuardState, table: int) -> KernelNetwork:
    return KernelNetwork(table, OwnedTables(guard.folder / TABLES_NAME).read())


async def _compare(
    guard: GuardState, desired: Desired, *, running: bool
) -> tuple[Network, Network, str | None]:
    """Return the planned guard, the network in place, and the packet filter's fault."""
    kernel = _kernel(guard, desired.settings.table)
    await kernel.open()
    try:
        if running:
            await kernel.join(desired.settings.interface)
        planned = plan_guard(desired, await kernel.host(desired.settings.fwmark))
        return planned, await kernel.observe(), firewall_fault()
    finally:
        await kernel.close()


def _missing(planned: Network, there: Network) -> list[str]:
    """Name what is missing; of a packet filter in place the contents are not looked at."""
    rules = sorted(planned.rules - there.rules, key=lambda rule: (rule.version, rule.priority))
    routes = sorted(planned.routes - there.routes, key=str)
    names = [f"rule {rule.priority} (IPv{rule.version})" for rule in rules]
    names += [f"route {route.destination} {route.kind}" for route in routes]
    if planned.firewall is not None and there.firewall is None:
        names.append(f"nftables table {planned.firewall.name}")
    return names


async def _release(guard: GuardState, table: int) -> list[str]:
    kernel = _kernel(guard, table)
    await kernel.open()
    try:
        return await release(kernel)
    finally:
        await kernel.close()


async def _open_beside(guard: GuardState, settings: GatewaySettings) -> list[str]:
    """Open what the running gateway closes; it follows when it sees the change."""
    kernel = _kernel(guard, settings.table)
    await kernel.open()
    try:
        await kernel.join(settings.interface)
        there = await kernel.observe()
        changes = network_changes(without_guard(there), there)
        await kernel.apply(changes)
        return [change.describe() for change in changes]
    finally:
        await kernel.close()


def _told(changes: list[str]) -> str:
    return f"{counted(len(changes), 'object')} removed" if changes else ""
