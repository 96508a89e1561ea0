"""The methods of the control socket: merge configuration and CLI additions, report state."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from esp_gw import __version__
from esp_gw.config.added import (
    PolicyEntry,
    Store,
    StoredState,
    parse_additions,
    parse_policy_entry,
    parse_sa_entry,
    without_conflicts,
)
from esp_gw.config.difference import differences
from esp_gw.config.keyfile import format_keymat
from esp_gw.config.load import load_config
from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller, Handler
from esp_gw.crypto.advice import Advice
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.nats import nats, where_peers_are
from esp_gw.daemon.parameters import (
    Parameters,
    name_of,
    refuse_existing,
    refuse_other,
    refuse_wrong_pairs,
)
from esp_gw.daemon.queue import ChangeQueue
from esp_gw.daemon.status import status_text
from esp_gw.daemon.tunnel_list import tunnel_list
from esp_gw.daemon.views import (
    all_lanes_view,
    flows_in_use,
    policy_view,
    remote_view,
    sa_view,
    waiting_sa_view,
)
from esp_gw.desired import Desired, GatewaySettings, settings_of
from esp_gw.engine.base import SaCounters
from esp_gw.errors import ConfigError, ControlError, EspGwError
from esp_gw.logs import log
from esp_gw.model import Sa
from esp_gw.network.link import TUN_OVERFLOW
from esp_gw.network.sysctl import network_warnings


class Service:
    """The methods of the control interface for one gateway."""

    def __init__(
        self,
        gateway: Gateway,
        health: Health,
        config: Path,
        desired: Desired,
        store: Store,
        advice: Advice,
    ) -> None:
        self._gateway = gateway
        self._health = health
        self._config = config
        self._configured = desired
        self._store = store
        self._advice = advice
        self._hints: list[str] = []
        self._not_reloaded: str | None = None
        self._state = store.load()
        self._left_out: dict[str, str] = {}
        self._changes = ChangeQueue()
        self._began = time.monotonic()

    def desired(self) -> Desired:
        """Return the configuration merged with the CLI additions.

        The configuration takes precedence: a conflicting addition is left out with a warning.
        """
        wanted, self._left_out = without_conflicts(self._configured, self._state)
        self._warn()
        return wanted

    async def advise(self) -> None:
        """Determine which tunnels use a suite that is slow here, once the engine runs them."""
        statuses = self._gateway.engine.status().af_alg
        in_kernel = frozenset(suite for suite, status in statuses.items() if status.in_use)
        tunnels = self._configured.tunnels
        self._hints = await asyncio.to_thread(self._advice.hints, tunnels, in_kernel)
        for hint in self._hints:
            log.warning(hint)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods, keyed by their full names."""
        methods: dict[str, Handler] = {
            "GetStatus": self.get_status,
            "ListSas": self.list_sas,
            "GetSa": self.get_sa,
            "AddSa": self._in_turn(self.add_sa),
            "DeleteSa": self._in_turn(self.delete_sa),
            "FlushSas": self._in_turn(self.flush_sas),
            "CheckImport": self._in_turn(self.check_import),
            "ImportSas": self._in_turn(self.import_sas),
            "ListPolicies": self.list_policies,
            "AddPolicy": self._in_turn(self.add_policy),
            "DeletePolicy": self._in_turn(self.delete_policy),
            "ListTunnels": self.list_tunnels,
            "GetStats": self.get_stats,
            "ListEvents": self.list_events,
            "Reload": self.reload,
            "CheckReload": self.check_reload,
        }
        return {PREFIX + name: handler for name, handler in methods.items()}

    def _in_turn(self, handler: Handler) -> Handler:
        """Return a method that changes the state, and so waits for its turn."""

        async def run(parameters: Parameters, caller: Caller) -> Parameters:
            return await self._changes.run(lambda: handler(parameters, caller))

        return run

    async def get_status(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the state of the daemon and its engine, with warnings for the operator."""
        settings = self._configured.settings
        status = self._gateway.engine.status()
        return {
            "version": __version__,
            "engine": self._gateway.engine.name,
            **asdict(status),
            "interface": settings.interface,
            "mtu": self._gateway.mtu,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "config": str(self._config),
            "tunnels": len(self._configured.tunnels),
            "states": self._health.counts(),
            "sas": len(self._gateway.sas),
            "policies": len(self._gateway.policies),
            "ledger": str(self._gateway.ledger_path),
            "warnings": [
                *self._faults(),
                *network_warnings(
                    where_peers_are(self._configured, self._gateway), settings.interface
                ),
                *self._health.guesses(),
                *self._hints,
                *status.latency.warnings,
            ],
        }

    def status_text(self) -> str:
        """Return on one line what runs, and what is wrong, as far as the gateway is told of it.

        The kernel tells of no change of the settings behind `network_warnings`.
        """
        return status_text(len(self._gateway.sas), self._gateway.engine.name, self._faults())

    def _faults(self) -> list[str]:
        """Return what is wrong, the worst first."""
        kept = self._not_reloaded
        return [
            *([] if kept is None else [f"the configuration was not reloaded: {kept}"]),
            *self._health.warnings(),
            *self._gateway.warnings,
            *self._warnings(),
            *nats(self._gateway),
        ]

    async def list_sas(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return every SA, without its key; one under a replaced key with the rest of its grace."""
        counters = self._gateway.counters().sas
        there = [*self._gateway.sas, *self._gateway.waiting]
        sas = [self._sa_view(sa, counters) for sa in there]
        sas += [
            {**self._sa_view(sa, counters), "grace_s": round(seconds, 1)}
            for sa, seconds in self._gateway.retired
        ]
        return {"sas": sas}

    async def get_sa(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return one SA; its key is revealed only to root and is always logged as an event."""
        sa = self._find_sa(name_of(parameters))
        info = self._sa_view(sa, self._gateway.counters().sas)
        if parameters.get("reveal_keys") is True:
            if caller.uid != 0:
                raise ControlError("PermissionDenied", "only root may see keys", hint="use sudo")
            log.warning("a key was revealed", sa=sa.name, uid=caller.uid, pid=caller.pid)
            info["key"] = format_keymat(sa.keymat)
        return {"sa": info}

    async def add_sa(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Install an SA and store it."""
        entry = parse_sa_entry(parameters)
        names = [sa.name for sa in self._gateway.sas]
        names += [old.name for old in self._state.sas]
        refuse_existing("SA", entry.name, names)
        refuse_wrong_pairs((entry,), [*self._gateway.sas, *self._gateway.waiting])
        await self._change(
            StoredState(sas=(*self._state.sas, entry), policies=self._state.policies),
            f"SA {entry.name}",
        )
        sa = self._find_sa(entry.name)
        return {"sa": self._sa_view(sa, self._gateway.counters().sas)}

    async def delete_sa(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Remove an SA that the CLI added."""
        name = name_of(parameters)
        if name not in [entry.name for entry in self._state.sas]:
            raise self._not_added("SA", name, [sa.name for sa in self._gateway.sas])
        for policy in self._placed():
            if policy.sa == name:
                raise ControlError(
                    "Refused",
                    f"the policy {policy.name} needs the SA {name}",
                    hint=f"run 'esp-gw policy delete {policy.name}' first",
                )
        await self._change(
            StoredState(
                sas=tuple(entry for entry in self._state.sas if entry.name != name),
                policies=self._state.policies,
            ),
            f"SA {name}",
        )
        return {}

    async def flush_sas(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Remove every SA that the CLI added, and the CLI's policies that need one of them."""
        names = [entry.name for entry in self._state.sas]
        kept = tuple(entry for entry in self._state.policies if entry.sa not in names)
        self._refuse_displacing({entry.name for entry in self._state.policies if entry.sa in names})
        await self._change(StoredState(sas=(), policies=kept), "flush")
        return {"deleted": names}

    async def check_import(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Raise the error that `import_sas` would raise; only the ledger isn't consulted."""
        _, state = self._with_import(parameters)
        self._refuse_left_out(without_conflicts(self._configured, state)[1])
        return {}

    async def import_sas(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Install and store SAs begun by another program, with policies: all or none."""
        added, state = self._with_import(parameters)
        await self._change(state)
        log.info("imported", sas=len(added.sas), policies=len(added.policies))
        return {
            "sas": [entry.name for entry in added.sas],
            "policies": [entry.name for entry in added.policies],
        }

    def _with_import(self, parameters: Parameters) -> tuple[StoredState, StoredState]:
        """Return the parsed additions, and the CLI's state with them."""
        added = parse_additions(parameters)
        names = [sa.name for sa in self._gateway.sas] + [old.name for old in self._state.sas]
        for sa in added.sas:
            refuse_existing("SA", sa.name, names)
        refuse_wrong_pairs(added.sas, [*self._gateway.sas, *self._gateway.waiting])
        names = [policy.name for policy in self._gateway.policies]
        names += [old.name for old in self._state.policies]
        for policy in added.policies:
            refuse_existing("policy", policy.name, names)
        port = self._configured.settings.port
        if parameters.get("port") not in (None, port):
            raise ControlError(
                "Refused",
                f"the SAs use another local UDP port than the gateway, which has {port}",
                hint="set gateway.port to theirs, and restart the gateway",
            )
        state = StoredState(
            sas=(*self._state.sas, *added.sas), policies=(*self._state.policies, *added.policies)
        )
        return added, state

    async def list_policies(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the SPD, in order."""
        return {"policies": [policy_view(policy) for policy in self._gateway.policies]}

    async def add_policy(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Insert a policy into the SPD and store it."""
        entry = parse_policy_entry(parameters)
        names = [policy.name for policy in self._gateway.policies]
        known = [*names, *(old.name for old in self._state.policies)]
        refuse_existing("policy", entry.name, known)
        if entry.before is not None and entry.before not in names:
            raise ControlError("NotFound", f"there is no policy {entry.before} to precede")
        if entry.sa is not None and entry.sa not in [sa.name for sa in self._gateway.sas]:
            raise ControlError(
                "Refused",
                f"there is no SA {entry.sa} for the policy {entry.name}",
                hint="add it first, or name one of 'esp-gw sa list'",
            )
        await self._change(
            StoredState(sas=self._state.sas, policies=(*self._state.policies, entry)),
            f"policy {entry.name}",
        )
        (policy,) = [p for p in self._gateway.policies if p.name == entry.name]
        return {"policy": policy_view(policy)}

    async def delete_policy(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Remove a policy that the CLI added."""
        name = name_of(parameters)
        if name not in [entry.name for entry in self._state.policies]:
            raise self._not_added("policy", name, [p.name for p in self._gateway.policies])
        self._refuse_displacing({name})
        await self._change(
            StoredState(
                sas=self._state.sas,
                policies=tuple(entry for entry in self._state.policies if entry.name != name),
            ),
            f"policy {name}",
        )
        return {}

    async def list_tunnels(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the tunnels with the counters of their SAs, those that the CLI added included."""
        configured = self._configured.tunnels
        tunnels = tunnel_list(configured, self._gateway, self._health, self._flows())
        return {"tunnels": tunnels}

    async def get_stats(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return every counter; `drops` includes those of the packet filter and the kernel."""
        outside = await self._gateway.filter_drops()
        if overflow := await self._gateway.tun_overflow():
            outside[TUN_OVERFLOW] = overflow
        counters = self._gateway.counters()
        values = asdict(counters)
        values["drops"] = {**counters.drops, **outside}
        values["lanes"] = all_lanes_view(self._configured.tunnels, self._flows())
        for name, entry in counters.sas.items():
            values["sas"][name]["remote"] = remote_view(entry.remote)
        return values

    async def list_events(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the last changes of the tunnels' states; `after` is the number of a known one."""
        after = parameters.get("after", 0)
        if not isinstance(after, int):
            raise ControlError("InvalidParameter", "after: expected a number")
        known = list(self._health.events)
        events = [asdict(event) for event in known if event.number > after]
        return {"events": events, "last": known[-1].number if known else 0}

    async def reload(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Reload the configuration, changing only what differs; return the changes."""
        refuse_other(parameters.get("config"), self._config)
        try:
            changes = await self.reload_files()
            return {"changes": changes, "warnings": [*self._warnings(), *nats(self._gateway)]}
        except ConfigError as error:
            hint = f"nothing has changed; see 'esp-gw config check {self._config}'"
            raise ControlError("Refused", error.summary, hint=hint) from None

    async def check_reload(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return what a reload would change, in the words of the file."""
        refuse_other(parameters.get("config"), self._config)
        try:
            configured = await asyncio.to_thread(load_config, self._config)
        except ConfigError as error:
            hint = f"see 'esp-gw config check {self._config}'"
            raise ControlError("Refused", error.summary, hint=hint) from None
        return {"changes": differences(self._configured, configured)}

    async def reload_files(self) -> list[str]:
        """Reload the configuration, and return the changes.

        Raises EspGwError; until a reload succeeds, it is among the warnings.
        """
        changes = await self._changes.run(self._reload_files)
        self._warn()
        try:
            await self.advise()
        except Exception:
            # The reload has succeeded.
            log.exception("no advice on suites")
        log.info("reloaded", changes=len(changes))
        return changes

    async def _reload_files(self) -> list[str]:
        try:
            changes = await self._follow_files()
        except EspGwError as error:
            self._not_reloaded = error.summary
            raise
        except Exception:
            self._not_reloaded = "internal error, see the log"
            raise
        self._not_reloaded = None
        return changes

    async def _follow_files(self) -> list[str]:
        configured = await asyncio.to_thread(load_config, self._config)
        # The parsed models have reference cycles, megabytes for thousands of tunnels: free
        # them before the next allocations.
        gc.collect()
        self._refuse_fixed(configured)
        wanted, left_out = without_conflicts(configured, self._state)
        changes = await self._gateway.apply(wanted)
        self._configured, self._left_out = configured, left_out
        return changes

    def _warn(self) -> None:
        for warning in (*self._warnings(), *nats(self._gateway)):
            log.warning(warning)

    def _warnings(self) -> list[str]:
        left_out = [
            f"'{name}', added by the CLI, is left out: {message}"
            for name, message in self._left_out.items()
        ]
        return [*self._configured.warnings, *left_out]

    def _refuse_left_out(self, left_out: Mapping[str, str], what: str | None = None) -> None:
        for name, message in left_out.items():
            if name not in self._left_out:
                raise ControlError("Refused", f"{what or name}: {message}")

    async def _change(self, state: StoredState, what: str | None = None) -> None:
        """Apply the CLI's new state, and store it once it works: both, or neither.

        A refusal begins with `what`, or with the name of the conflicting addition.
        """
        wanted, left_out = without_conflicts(self._configured, state)
        self._refuse_left_out(left_out, what)
        before = self._state

        async def record() -> None:
            try:
                await asyncio.to_thread(self._store.save, state)
            except EspGwError:
                # The new file may be there, if only its folder couldn't be synced.
                with contextlib.suppress(EspGwError):
                    await asyncio.to_thread(self._store.save, before)
                raise

        await self._gateway.apply(wanted, record)
        self._state, self._left_out = state, left_out

    def _sa_view(self, sa: Sa, counters: Mapping[str, SaCounters]) -> Parameters:
        if sa.name not in counters:
            return waiting_sa_view(sa, used_up=self._gateway.is_used_up(sa))
        return sa_view(sa, counters[sa.name], self._health.of_sa(sa.name))

    def _flows(self) -> dict[str, int]:
        return flows_in_use(self._gateway.engine.lane_flows(), self._gateway.placed.policies)

    def _find_sa(self, name: str) -> Sa:
        for sa in (*self._gateway.sas, *self._gateway.waiting):
            if sa.name == name:
                return sa
        raise ControlError(
            "NotFound", f"there is no SA {name}", hint="'esp-gw sa list' shows the existing ones"
        )

    def _not_added(self, kind: str, name: str, present: list[str]) -> ControlError:
        """The error for the deletion of an entry that the CLI did not add."""
        if name not in present:
            return ControlError("NotFound", f"there is no {kind} {name}")
        return ControlError(
            "Refused",
            f"the {kind} {name} comes from the configuration",
            hint=f"remove it from {self._config} and run 'esp-gw reload'",
        )

    def _placed(self) -> list[PolicyEntry]:
        """Return the CLI's policies that are in place."""
        return [entry for entry in self._state.policies if entry.name not in self._left_out]

    def _refuse_displacing(self, removed: set[str]) -> None:
        for entry in self._placed():
            if entry.before in removed and entry.name not in removed:
                raise ControlError(
                    "Refused",
                    f"the policy {entry.name} is placed before {entry.before}",
                    hint=f"run 'esp-gw policy delete {entry.name}' first",
                )

    def _refuse_fixed(self, configured: Desired) -> None:
        """Refuse changes of settings that are fixed when the daemon starts."""
        old, new = self._configured.settings, configured.settings
        for name, setting in settings_of(GatewaySettings).items():
            if not setting.live and getattr(old, name) != getattr(new, name):
                raise ControlError(
                    "Refused",
                    f"{setting.section}.{setting.key or name} can't change while the gateway runs",
                    hint="restart it with 'systemctl restart esp-gw'",
                )
