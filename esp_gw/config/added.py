"""SAs and policies added by the CLI: one JSON file in the state directory, to survive a restart.

The file holds keys: it has mode 0600, is replaced atomically, and is refused if others can read it.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator

from esp_gw.config import types
from esp_gw.config.conflicts import find_conflicts
from esp_gw.config.keyfile import parse_keymat
from esp_gw.config.models import PolicyFields, SaFields
from esp_gw.config.types import Strict
from esp_gw.crypto.providers import provider_fault
from esp_gw.desired import Desired
from esp_gw.errors import ControlError, EspGwError, KeyFileError, StoreDamagedError, printable
from esp_gw.files import open_regular, privacy_fault, read_bounded, replace
from esp_gw.model import Action, Origin, Policy, Sa, Suite
from esp_gw.values import FieldError

STORE_NAME = "added.json"
"""Name of the file in the state directory."""
FORMAT_VERSION = 1
MAX_STATE_LEN = 16 << 20

Entry = TypeVar("Entry", bound=Strict)


def key_for(suite: Suite | None, key: SecretStr) -> SecretStr:
    """Return a key in hex that a suite can have; None is a suite that was refused.

    Raises FieldError.
    """
    if suite is not None:
        try:
            parse_keymat(key.get_secret_value(), suite)
        except KeyFileError as error:
            raise FieldError(str(error)) from None
    return key


class SaEntry(SaFields):
    """One SA added by the CLI; `key` is hex, key then salt, and appears in no repr and no dump.

    `used_seq` is the highest sequence number that another program may already have used.
    """

    name: types.SaName
    direction: types.DirectionName
    spi: types.Spi
    key: SecretStr
    pair: types.SaName | None = None
    used_seq: types.Seq = 0

    @field_validator("key")
    @classmethod
    def _fits_the_suite(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        return key_for(info.data.get("suite"), key)

    @field_validator("pair")
    @classmethod
    def _is_another_sa(cls, pair: str | None, info: ValidationInfo) -> str | None:
        if pair is not None and pair == info.data.get("name"):
            raise FieldError("is the SA itself: name the SA of the other direction")
        return pair

    def to_sa(self) -> Sa:
        """The SA of this entry, with the CLI as its origin."""
        keymat = parse_keymat(self.key.get_secret_value(), self.suite)
        return self.build_sa(
            self.name,
            self.direction,
            self.spi,
            keymat,
            self.selectors(),
            pair=self.pair,
            origin=Origin.CLI,
            used_seq=self.used_seq,
        )


class PolicyEntry(PolicyFields):
    """One policy added by the CLI, at the end of the SPD or before the policy `before`."""

    name: types.Name
    action: types.ActionName
    sa: types.SaName | None = Field(default=None, validate_default=True)
    before: types.Name | None = None

    @field_validator("sa")
    @classmethod
    def _suits_the_action(cls, sa: str | None, info: ValidationInfo) -> str | None:
        action = info.data.get("action")
        if action is Action.PROTECT and sa is None:
            raise FieldError("is missing: a protect policy needs an outbound SA")
        if action in (Action.BYPASS, Action.DISCARD) and sa is not None:
            raise FieldError(f"has no meaning in a {action} policy")
        return sa

    @field_validator("before")
    @classmethod
    def _is_another_policy(cls, before: str | None, info: ValidationInfo) -> str | None:
        if before is not None and before == info.data.get("name"):
            raise FieldError("is the policy itself")
        return before

    def to_policy(self) -> Policy:
        """The policy of this entry, with the CLI as its origin."""
        sas = () if self.sa is None else (self.sa,)
        return Policy(self.name, self.action, self.selectors(), sas=sas, origin=Origin.CLI)


@dataclass(frozen=True, slots=True)
class StoredState:
    """All SAs and policies added by the CLI, in the order of their addition."""

    sas: tuple[SaEntry, ...] = ()
    policies: tuple[PolicyEntry, ...] = ()


class Store:
    """The file that keeps the SAs and policies added by the CLI."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> StoredState:
        """The state saved last; an empty one if there is no file yet.

        Raises StoreDamagedError if the file can't be trusted, EspGwError if it can't be read.
        """
        try:
            with open_regular(self.path) as (fd, status):
                if text := privacy_fault(status):
                    path = shlex.quote(printable(self.path))
                    raise StoreDamagedError(
                        text, where=printable(self.path), hint=f"run: chmod 600 {path}"
                    )
                content = read_bounded(fd, MAX_STATE_LEN)
        except FileNotFoundError:
            return StoredState()
        except OSError as error:
            raise self._error(error) from None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            raise self._damaged("is not JSON") from None
        if not isinstance(document, dict) or document.get("version") != FORMAT_VERSION:
            raise self._damaged(f"is not of version {FORMAT_VERSION}")
        if document.keys() != {"version", "sas", "policies"}:
            raise self._damaged("does not hold exactly version, sas and policies")
        return StoredState(
            self._entries(SaEntry, "sas", document["sas"]),
            self._entries(PolicyEntry, "policies", document["policies"]),
        )

    def save(self, state: StoredState) -> None:
        """Replace the file atomically. Raises EspGwError; the old file is then still in place."""
        document = {
            "version": FORMAT_VERSION,
            "sas": [revealed(entry) for entry in state.sas],
            "policies": [plain(entry) for entry in state.policies],
        }
        try:
            replace(self.path, json.dumps(document, indent=1).encode() + b"\n")
        except OSError as error:
            raise self._error(error) from None

    def _entries(self, model: type[Entry], name: str, items: object) -> tuple[Entry, ...]:
        if not isinstance(items, list):
            raise self._damaged(f"{name} is not a list")
        entries = []
        for index, item in enumerate(items):
            try:
                entries.append(model.model_validate(item))
            except ValidationError as error:
                location, text = types.describe(error, model)[0]
                place = types.label((name, index, *location))
                raise self._damaged(f"{place}: {text}") from None
        return tuple(entries)

    def _damaged(self, what: str) -> StoreDamagedError:
        path = shlex.quote(printable(self.path))
        return StoreDamagedError(
            f"the state of the CLI's SAs and policies is damaged: {what}",
            where=printable(self.path),
            hint="restore the file, or start without the CLI's additions: "
            f"mv {path} {path}.damaged",
        )

    def _error(self, error: OSError) -> EspGwError:
        return EspGwError(
            error.strerror or "can't be used",
            where=printable(self.path),
            hint="check the gateway's state_dir: it must exist, be writable, and have free space",
        )


def merge(desired: Desired, state: StoredState) -> Desired:
    """Combine the configuration with `state`: SAs appended, each policy at its place in the SPD.

    Raises EspGwError if the policy named by `before` does not exist: the place in the SPD decides
    what a policy does, so there is no safe guess.
    """
    policies = list(desired.policies)
    waiting = list(state.policies)
    while waiting:
        later = []
        for entry in waiting:
            names = [policy.name for policy in policies]
            if entry.before is None:
                policies.append(entry.to_policy())
            elif entry.before in names:
                policies.insert(names.index(entry.before), entry.to_policy())
            else:
                later.append(entry)
        if len(later) == len(waiting):
            entry = later[0]
            raise EspGwError(
                f"the policy {entry.name} must stand before {entry.before}, which does not exist",
                hint=f"restore {entry.before}, or delete {entry.name} and add it again",
            )
        waiting = later
    sas = (*desired.sas, *(entry.to_sa() for entry in state.sas))
    return dataclasses.replace(desired, sas=sas, policies=tuple(policies))


def without_conflicts(configured: Desired, state: StoredState) -> tuple[Desired, dict[str, str]]:
    """Merge both, but for additions that conflict, which are returned by name with the reason."""
    left_out: dict[str, str] = {}
    while (fault := _first_fault(configured, state)) is not None:
        name, message = fault
        left_out[name] = message
        state = StoredState(
            sas=tuple(entry for entry in state.sas if entry.name != name),
            policies=tuple(entry for entry in state.policies if entry.name != name),
        )
    return merge(configured, state), left_out


def _first_fault(configured: Desired, state: StoredState) -> tuple[str, str] | None:
    placed = {policy.name for policy in configured.policies}
    for entry in state.policies:
        if entry.before is not None and entry.before not in placed:
            return entry.name, f"it is placed before {entry.before}, which doesn't exist"
        placed.add(entry.name)
    ours = {entry.name for entry in state.sas} | {entry.name for entry in state.policies}
    for sa in state.sas:
        if text := provider_fault(configured.settings.provider, sa.suite):
            return sa.name, text
    wanted = merge(configured, state)
    for conflict in find_conflicts(wanted.sas, wanted.policies):
        for name in reversed(conflict.names):
            if name in ours:
                return name, conflict.message
    return None


def parse_sa_entry(parameters: Mapping[str, object]) -> SaEntry:
    """Parse the SA in a CLI request. Raises ControlError InvalidParameter."""
    return _parse(SaEntry, parameters)


def parse_policy_entry(parameters: Mapping[str, object]) -> PolicyEntry:
    """Parse the policy in a CLI request. Raises ControlError InvalidParameter."""
    return _parse(PolicyEntry, parameters)


def parse_additions(parameters: Mapping[str, object]) -> StoredState:
    """Parse the lists of SAs and policies in an import request. Raises ControlError."""
    return StoredState(
        _parse_all(SaEntry, "sas", parameters.get("sas", [])),
        _parse_all(PolicyEntry, "policies", parameters.get("policies", [])),
    )


def _parse_all(model: type[Entry], name: str, items: object) -> tuple[Entry, ...]:
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ControlError("InvalidParameter", f"{name}: expected a list of mappings")
    entries = []
    for index, item in enumerate(items):
        try:
            entries.append(_parse(model, item))
        except ControlError as error:
            raise ControlError(error.code, f"{name}[{index}]: {error.what}") from None
    return tuple(entries)


def _parse(model: type[Entry], parameters: Mapping[str, object]) -> Entry:
    try:
        return model.model_validate(dict(parameters))
    except ValidationError as error:
        raise ControlError("InvalidParameter", _on_one_line(types.describe(error, model))) from None


def _on_one_line(faults: Iterable[tuple[types.Location, str]]) -> str:
    return "; ".join(f"{types.label(location)}: {text}" for location, text in faults)


def plain(entry: Strict) -> dict[str, object]:
    """An entry as JSON values, without its key."""
    # Defaults are written out: those of a later version must not change an SA that is in use.
    return entry.model_dump(mode="json", exclude_none=True)


def revealed(entry: SaEntry) -> dict[str, object]:
    """An SA entry as JSON values, including its key."""
    return {**plain(entry), "key": entry.key.get_secret_value()}
