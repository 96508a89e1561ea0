"""The control methods of the CLI's SAs and policies, which are kept over a restart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from esp_gw.config.added import (
    PolicyEntry,
    StoredState,
    parse_additions,
    parse_policy_entry,
    parse_sa_entry,
)
from esp_gw.control.server import Caller, Handler, Reply
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.held import PREFIX
from esp_gw.daemon.left_policies import LEFT
from esp_gw.daemon.parameters import Parameters, name_of, refuse_existing, refuse_wrong_pairs
from esp_gw.daemon.sa_report import SaReport
from esp_gw.daemon.sources import Sources
from esp_gw.daemon.views import policy_view
from esp_gw.errors import ControlError
from esp_gw.logs import log


class Additions:
    """The methods that add and remove SAs and policies; `config` is the configuration's path."""

    def __init__(self, gateway: Gateway, sources: Sources, report: SaReport, config: Path) -> None:
        self._gateway = gateway
        self._sources = sources
        self._report = report
        self._config = config

    def handlers(self) -> Mapping[str, Handler]:
        """Return the methods by name, each of which waits for its turn."""
        methods: dict[str, Handler] = {
            "AddSa": self.add_sa,
            "DeleteSa": self.delete_sa,
            "FlushSas": self.flush_sas,
            "CheckImport": self.check_import,
            "ImportSas": self.import_sas,
            "AddPolicy": self.add_policy,
            "DeletePolicy": self.delete_policy,
        }
        return {name: self._in_turn(handler) for name, handler in methods.items()}

    def _in_turn(self, handler: Handler) -> Handler:
        """Return a method that changes the state, and so waits for its turn."""

        async def run(parameters: Parameters, caller: Caller) -> Reply:
            return await self._sources.changes.run(lambda: handler(parameters, caller))

        return run

    async def add_sa(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Install an SA and store it."""
        entry = parse_sa_entry(parameters)
        names = [sa.name for sa in self._gateway.sas]
        names += [old.name for old in self._sources.added.sas]
        refuse_existing("SA", entry.name, names)
        refuse_wrong_pairs((entry,), [*self._gateway.sas, *self._gateway.waiting])
        await self._sources.add(
            StoredState(
                sas=(*self._sources.added.sas, entry), policies=self._sources.added.policies
            ),
            f"SA {entry.name}",
        )
        return {"sa": self._report.view_of(entry.name)}

    async def delete_sa(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Remove an SA that the CLI added."""
        name = name_of(parameters)
        if name not in [entry.name for entry in self._sources.added.sas]:
            raise self.not_added("SA", name, [sa.name for sa in self._gateway.sas])
        for policy in self.placed():
            if policy.sa == name:
                raise ControlError(
                    "Refused",
                    f"the policy {policy.name} needs the SA {name}",
                    hint=f"run 'esp-gw policy delete {policy.name}' first",
                )
        await self._sources.add(
            StoredState(
                sas=tuple(entry for entry in self._sources.added.sas if entry.name != name),
                policies=self._sources.added.policies,
            ),
            f"SA {name}",
        )
        return {}

    async def flush_sas(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Remove every SA that the CLI added, and the CLI's policies that need one of them."""
        names = [entry.name for entry in self._sources.added.sas]
        kept = tuple(entry for entry in self._sources.added.policies if entry.sa not in names)
        self.refuse_displacing(
            {entry.name for entry in self._sources.added.policies if entry.sa in names}
        )
        await self._sources.add(StoredState(sas=(), policies=kept), "flush")
        return {"deleted": names}

    async def check_import(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Raise the error that `import_sas` would raise; only the ledger isn't consulted."""
        _, state = self._with_import(parameters)
        self._sources.check(state)
        return {}

    async def import_sas(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Install and store SAs begun by another program, with policies: all or none."""
        added, state = self._with_import(parameters)
        await self._sources.add(state)
        log.info("imported", sas=len(added.sas), policies=len(added.policies))
        return {
            "sas": [entry.name for entry in added.sas],
            "policies": [entry.name for entry in added.policies],
        }

    def _with_import(self, parameters: Parameters) -> tuple[StoredState, StoredState]:
        """Return the parsed additions, and the CLI's state with them."""
        added = parse_additions(parameters)
        names = [sa.name for sa in self._gateway.sas] + [
            old.name for old in self._sources.added.sas
        ]
        for sa in added.sas:
            refuse_existing("SA", sa.name, names)
        refuse_wrong_pairs(added.sas, [*self._gateway.sas, *self._gateway.waiting])
        names = [policy.name for policy in self._gateway.policies]
        names += [old.name for old in self._sources.added.policies]
        for policy in added.policies:
            refuse_existing("policy", policy.name, names)
        port = self._sources.configured.settings.port
        if parameters.get("port") not in (None, port):
            raise ControlError(
                "Refused",
                f"the SAs use another local UDP port than the gateway, which has {port}",
                hint="set gateway.port to theirs, and restart the gateway",
            )
        state = StoredState(
            sas=(*self._sources.added.sas, *added.sas),
            policies=(*self._sources.added.policies, *added.policies),
        )
        return added, state

    async def add_policy(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Insert a policy into the SPD and store it."""
        entry = parse_policy_entry(parameters)
        names = [policy.name for policy in self._gateway.policies]
        known = [*names, *(old.name for old in self._sources.added.policies)]
        refuse_existing("policy", entry.name, known)
        if entry.before is not None and entry.before not in names:
            raise ControlError(
                "NotFound",
                f"there is no policy {entry.before} to precede",
                hint="'esp-gw policy list' shows the existing ones",
            )
        if entry.sa is not None and entry.sa not in [sa.name for sa in self._gateway.sas]:
            raise ControlError(
                "Refused",
                f"there is no SA {entry.sa} for the policy {entry.name}",
                hint="add it first, or name one of 'esp-gw sa list'",
            )
        await self._sources.add(
            StoredState(
                sas=self._sources.added.sas, policies=(*self._sources.added.policies, entry)
            ),
            f"policy {entry.name}",
        )
        (policy,) = [p for p in self._gateway.policies if p.name == entry.name]
        return {"policy": policy_view(policy)}

    async def delete_policy(self, parameters: Parameters, caller: Caller) -> Parameters:
        """Remove a policy that the CLI added."""
        name = name_of(parameters)
        if name not in [entry.name for entry in self._sources.added.policies]:
            raise self.not_added("policy", name, [p.name for p in self._gateway.policies])
        self.refuse_displacing({name})
        await self._sources.add(
            StoredState(
                sas=self._sources.added.sas,
                policies=tuple(
                    entry for entry in self._sources.added.policies if entry.name != name
                ),
            ),
            f"policy {name}",
        )
        return {}

    def not_added(
        self, kind: str, name: str, present: list[str], todo: str = "remove it from"
    ) -> ControlError:
        """The error for the change of an entry that the CLI did not add.

        `todo` is what a person does with it in the configuration.
        """
        if name not in present:
            return ControlError(
                "NotFound",
                f"there is no {kind} {name}",
                hint=f"'esp-gw {kind.lower()} list' shows the existing ones",
            )
        if name.startswith((PREFIX, LEFT)):
            return ControlError(
                "Refused",
                f"the {kind} {name} belongs to ike",
                hint="run 'swanctl --terminate'",
            )
        return ControlError(
            "Refused",
            f"the {kind} {name} comes from the configuration",
            hint=f"{todo} {self._config} and run 'esp-gw reload'",
        )

    def placed(self) -> list[PolicyEntry]:
        """Return the CLI's policies that are in place."""
        return [
            entry
            for entry in self._sources.added.policies
            if entry.name not in self._sources.left_out
        ]

    def refuse_displacing(self, removed: set[str]) -> None:
        """Raise ControlError if another policy of the CLI stands before one that is removed."""
        for entry in self.placed():
            if entry.before in removed and entry.name not in removed:
                raise ControlError(
                    "Refused",
                    f"the policy {entry.name} is placed before {entry.before}",
                    hint=f"run 'esp-gw policy delete {entry.name}' first",
                )
