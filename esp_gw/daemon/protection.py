"""Protected prefixes as last known: those of the plan, or else of configuration and CLI; and IKE's.

IKE's are those of the records beside the control socket, which are gone after a boot and a stop;
without them, the standing ones of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from esp_gw.config.added import STORE_NAME, Store, without_conflicts
from esp_gw.config.conflicts import leaking
from esp_gw.config.load import load_protection, readable_control_socket
from esp_gw.daemon.held_file import last_policies
from esp_gw.daemon.left_policies import left_behind
from esp_gw.desired import Desired
from esp_gw.errors import ConfigError, EspGwError, NetworkError
from esp_gw.model import Policy
from esp_gw.network.guard import GuardState


@dataclass(frozen=True, slots=True)
class Protection:
    """Settings and policies without keys; `fault` names in one line what could not be read.

    `known` is false for a state that was never in place: it may cut off the host. `planned` is true
    for the plan of the last run. `standing` are policies of IKE in the plan that no record has.
    """

    desired: Desired
    fault: str | None = None
    known: bool = True
    planned: bool = False
    standing: tuple[Policy, ...] = ()

    def plus(self, policies: tuple[Policy, ...]) -> Protection:
        """Return it with policies of IKE, last in order; a bypass of what it closes is left out."""
        there = self.desired.policies
        left_out = {conflict.names[-1] for conflict in leaking(there, policies)}
        joined = (*there, *(each for each in policies if each.name not in left_out))
        return replace(self, desired=replace(self.desired, policies=joined))


def last_protection(guard: GuardState, config: Path) -> Protection:
    """Return what was protected last, while no gateway runs.

    Without a readable plan that is what the configuration and the additions of the CLI protect.
    Raises NetworkError if nothing is readable; its exit status is that of the configuration's
    error.
    """
    lasting = _lasting(guard, config)
    ikes: tuple[Policy, ...] = ()
    try:
        ikes = last_policies(readable_control_socket(config))
    except EspGwError as error:
        text = str(error)
        lasting = replace(lasting, fault=f"{lasting.fault}; {text}" if lasting.fault else text)
    recorded = {(each.action, each.selectors) for each in ikes}
    standing = left_behind(
        each for each in lasting.standing if (each.action, each.selectors) not in recorded
    )
    return replace(lasting, standing=standing).plus((*ikes, *standing))


def _lasting(guard: GuardState, config: Path) -> Protection:
    why = None
    try:
        stored = guard.plan.read()
        if stored is not None:
            return Protection(
                stored.protection, stored.fault, planned=True, standing=stored.standing
            )
    except NetworkError as error:
        why = str(error)
    try:
        configured = load_protection(config)
    except ConfigError as error:
        nothing = NetworkError(
            f"nothing is guarded: {why or 'there is no plan of an earlier run'}, "
            f"and {error.problems[0]}",
            hint="mend the configuration and start again",
        )
        nothing.exit_status = error.exit_status
        raise nothing from None
    try:
        additions = Store(guard.folder / STORE_NAME).load()
    except EspGwError as error:
        return Protection(configured, f"{why}; {error}" if why else str(error))
    return Protection(without_conflicts(configured, additions)[0], why, known=why is not None)
