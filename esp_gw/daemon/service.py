"""The methods of the control socket: merge configuration and CLI additions, report state."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from esp_gw import __version__
from esp_gw.config.added import Store
from esp_gw.config.difference import differences
from esp_gw.config.keyfile import format_keymat
from esp_gw.config.load import load_config
from esp_gw.control.protocol import PREFIX
from esp_gw.control.server import Caller, Handler
from esp_gw.crypto.advice import Advice
from esp_gw.daemon.added_tunnels import AddedTunnels
from esp_gw.daemon.additions import Additions
from esp_gw.daemon.child_list import child_list, waiting_list
from esp_gw.daemon.drops import explain_drops
from esp_gw.daemon.explain import Explainer
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.health import Health
from esp_gw.daemon.nats import nats, where_peers_are
from esp_gw.daemon.parameters import Parameters, name_of, refuse_other
from esp_gw.daemon.profile import Profiler
from esp_gw.daemon.sa_report import SaReport
from esp_gw.daemon.sources import Sources
from esp_gw.daemon.status import status_text
from esp_gw.daemon.tunnel_list import tunnel_list
from esp_gw.daemon.views import (
    all_lanes_view,
    flows_in_use,
    policy_view,
    remote_view,
)
from esp_gw.desired import Desired, GatewaySettings, settings_of
from esp_gw.errors import ConfigError, ControlError, EspGwError
from esp_gw.logs import log
from esp_gw.model import Origin
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
        self._advice = advice
        self._hints: list[str] = []
        self._not_reloaded: str | None = None
        self.sources = Sources(gateway, desired, store)
        self._report = SaReport(gateway, health)
        self._explainer = Explainer(gateway, health)
        self._additions = Additions(gateway, self.sources, self._report, config)
        self._tunnels = AddedTunnels(gateway, self.sources, self._additions)
        self._profiler = Profiler(lambda: gateway.engine, self._tunnel_list)
        self._began = time.monotonic()

    def desired(self) -> Desired:
        """Return the state that is wanted at the start, from all sources; log what is left out."""
        wanted = self.sources.desired()
        self._warn()
        return wanted

    async def advise(self) -> None:
        """Determine which tunnels use a suite that is slow here, once the engine runs them."""
        statuses = self._gateway.engine.status().af_alg
        in_kernel = frozenset(suite for suite, status in statuses.items() if status.in_use)
        tunnels = self.sources.configured.tunnels
        self._hints = await asyncio.to_thread(self._advice.hints, tunnels, in_kernel)
        for hint in self._hints:
            log.warning(hint)

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods, keyed by their full names."""
        methods: dict[str, Handler] = {
            "GetStatus": self.get_status,
            "ListSas": self.list_sas,
            "GetSa": self.get_sa,
            "ListPolicies": self.list_policies,
            "ListTunnels": self.list_tunnels,
            "GetStats": self.get_stats,
            "ListEvents": self.list_events,
            "Reload": self.reload,
            "CheckReload": self.check_reload,
            "Explain": self.explain,
            "ExplainDrops": self.explain_drops,
            **self._additions.handlers(),
            **self._tunnels.handlers(),
            **self._profiler.handlers(),
        }
        return {PREFIX + name: handler for name, handler in methods.items()}

    async def get_status(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the state of the daemon and its engine, with warnings for the operator."""
        settings = self.sources.configured.settings
        status = self._gateway.engine.status()
        held, now = self.sources.held, time.monotonic()
        return {
            "version": __version__,
            "engine": self._gateway.engine.name,
            **asdict(status),
            "interface": settings.interface,
            "mtu": self._gateway.mtu,
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 1),
            "config": str(self._config),
            "tunnels": len(self.sources.tunnels),
            "states": self._health.counts(),
            "children": [
                *child_list(held, self._gateway, self._health, now),
                *waiting_list(held, self.sources.acquired, now),
            ],
            "sas": len(self._gateway.sas),
            "policies": len(self._gateway.policies),
            "ledger": str(self._gateway.ledger_path),
            "warnings": [
                *self._faults(),
                *network_warnings(
                    where_peers_are(self.sources.configured, self._gateway), settings.interface
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
            *self.sources.warnings(),
            *nats(self._gateway),
        ]

    async def list_sas(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return every SA, without its key; one under a replaced key with the rest of its grace."""
        counters = self._gateway.counters().sas
        there = [*self._gateway.sas, *self._gateway.waiting]
        sas = [self._report.view(sa, counters) for sa in there]
        sas += [
            {**self._report.view(sa, counters), "grace_s": round(seconds, 1)}
            for sa, seconds in self._gateway.retired
        ]
        return {"sas": sas}

    async def get_sa(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return one SA; its key is revealed only to root and is always logged as an event."""
        sa = self._report.find(name_of(parameters))
        info = self._report.view(sa, self._gateway.counters().sas)
        if parameters.get("reveal_keys") is True:
            if caller.uid != 0:
                raise ControlError("PermissionDenied", "only root may see keys", hint="use sudo")
            if sa.origin is Origin.IKE:
                raise ControlError("Refused", f"{sa.name}: the keys of ike are shown to nobody")
            log.warning("a key was revealed", sa=sa.name, uid=caller.uid, pid=caller.pid)
            info["key"] = format_keymat(sa.keymat)
        return {"sa": info}

    async def list_policies(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the SPD, in order."""
        return {"policies": [policy_view(policy) for policy in self._gateway.policies]}

    async def list_tunnels(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the tunnels with their SAs' counters, those of the CLI and IKE's included."""
        return {"tunnels": self._tunnel_list()}

    async def get_stats(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return every counter; `drops` includes those of the packet filter and the kernel."""
        outside = await self._outside_drops()
        counters = self._gateway.counters()
        values = asdict(counters)
        values["drops"] = {**counters.drops, **outside}
        values["lanes"] = all_lanes_view(self.sources.configured.tunnels, self._flows())
        for name, entry in counters.sas.items():
            values["sas"][name]["remote"] = remote_view(entry.remote)
        return values

    async def explain(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return the way of a flow in steps, and what stops it."""
        return await self._explainer.explain(parameters)

    async def explain_drops(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Return what was dropped since the start, why, and the last packet of each reason."""
        outside = await self._outside_drops()
        tunnels = self._tunnel_list()
        totals = {**self._gateway.counters().drops, **outside}
        return explain_drops(tunnels, totals, self._health.samples, parameters.get("tunnel"))

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
            return {
                "changes": changes,
                "warnings": [*self.sources.warnings(), *nats(self._gateway)],
            }
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
        return {"changes": differences(self.sources.configured, configured)}

    async def reload_files(self) -> list[str]:
        """Reload the configuration, and return the changes.

        Raises EspGwError; until a reload succeeds, it is among the warnings.
        """
        changes = await self.sources.changes.run(self._reload_files)
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
        return await self.sources.follow(configured)

    def _warn(self) -> None:
        for warning in (*self.sources.warnings(), *nats(self._gateway)):
            log.warning(warning)

    async def _outside_drops(self) -> dict[str, int]:
        """Return the drops of the packet filter and the kernel, by reason."""
        outside = await self._gateway.filter_drops()
        if overflow := await self._gateway.tun_overflow():
            outside[TUN_OVERFLOW] = overflow
        return outside

    def _tunnel_list(self) -> list[dict[str, object]]:
        return tunnel_list(self.sources.tunnels, self._gateway, self._health, self._flows())

    def _flows(self) -> dict[str, int]:
        return flows_in_use(self._gateway.engine.lane_flows(), self._gateway.placed.policies)

    def _refuse_fixed(self, configured: Desired) -> None:
        """Refuse changes of settings that are fixed when the daemon starts."""
        old, new = self.sources.configured.settings, configured.settings
        for name, setting in settings_of(GatewaySettings).items():
            if not setting.live and getattr(old, name) != getattr(new, name):
                raise ControlError(
                    "Refused",
                    f"{setting.section}.{setting.key or name} can't change while the gateway runs",
                    hint="restart it with 'systemctl restart esp-gw'",
                )
