"""What the CLI added, kept in one JSON file in the state directory, so that it survives a restart.

The file holds keys: mode 0600, replaced in one step, and refused where others could read it.
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
from esp_gw.config.keyfile import parse_keymat
from esp_gw.config.models import PolicyFields, SaFields
from esp_gw.config.types import Strict
from esp_gw.desired import Desired
from esp_gw.errors import ControlError, EspGwError, KeyFileError, printable
from esp_gw.files import open_regular, privacy_fault, read_bounded, replace
from esp_gw.model import Action, Origin, Policy, Sa
from esp_gw.values import FieldError

STORE_NAME = "added.json"
"""Its name in the state directory."""
FORMAT_VERSION = 1
MAX_STATE_LEN = 16 << 20

Entry = TypeVar("Entry", bound=Strict)


class SaEntry(SaFields):
    """One SA that the CLI added; `key` is hex, key then salt, and shows in no repr and no dump.

    `used_seq` is the highest sequence number that another program may have used before.
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
        if (suite := info.data.get("suite")) is not None:
            try:
                parse_keymat(key.get_secret_value(), suite)
            except KeyFileError as error:
                raise FieldError(str(error)) from None
        return key

    @field_validator("pair")
    @classmethod
    def _is_another_sa(cls, pair: str | None, info: ValidationInfo) -> str | None:
        if pair is not None and pair == info.data.get("name"):
            raise FieldError("is the SA itself: name the SA of the other direction")
        return pair

    def to_sa(self) -> Sa:
        """The SA of this entry, its origin the CLI."""
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
    """One policy that the CLI added, at the end of the SPD or before the policy `before`."""

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
        """The policy of this entry, its origin the CLI."""
        sas = () if self.sa is None else (self.sa,)
        return Policy(self.name, self.action, self.selectors(), sas=sas, origin=Origin.CLI)


@dataclass(frozen=True, slots=True)
class StoredState:
    """Everything that the CLI added, in the order in which it came."""

    sas: tuple[SaEntry, ...] = ()
    policies: tuple[PolicyEntry, ...] = ()


class Store:
    """The file with what the CLI added."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> StoredState:
        """What was saved last; nothing where there is no file yet.

        Raises EspGwError where the file can't be read or trusted.
        """
        try:
            with open_regular(self.path) as (fd, status):
                if text := privacy_fault(status):
                    path = shlex.quote(printable(self.path))
                    raise EspGwError(
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
        """Put `state` on the disk in one step; raises EspGwError, and then the old one is there."""
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

    def _damaged(self, what: str) -> EspGwError:
        path = shlex.quote(printable(self.path))
        return EspGwError(
            f"the state of the CLI's SAs and policies is damaged: {what}",
            where=printable(self.path),
            hint=f"restore the file, or start without what the CLI added: mv {path} {path}.damaged",
        )

    def _error(self, error: OSError) -> EspGwError:
        return EspGwError(
            error.strerror or "can't be used",
            where=printable(self.path),
            hint="check the gateway's state_dir: it has to be there, writable, and have room",
        )


def merge(desired: Desired, state: StoredState) -> Desired:
    """The configuration and what the CLI added: SAs behind the configuration's, policies in place.

    Raises EspGwError where a policy is to stand before one that isn't there: its place in the SPD
    decides what it does, so there is no safe guess.
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
                f"the policy {entry.name} has to stand before {entry.before}, which is not there",
                hint=f"bring {entry.before} back, or delete {entry.name} and add it anew",
            )
        waiting = later
    sas = (*desired.sas, *(entry.to_sa() for entry in state.sas))
    return dataclasses.replace(desired, sas=sas, policies=tuple(policies))


def parse_sa_entry(parameters: Mapping[str, object]) -> SaEntry:
    """An SA as the CLI asks for it. Raises ControlError InvalidParameter."""
    return _parse(SaEntry, parameters)


def parse_policy_entry(parameters: Mapping[str, object]) -> PolicyEntry:
    """A policy as the CLI asks for it. Raises ControlError InvalidParameter."""
    return _parse(PolicyEntry, parameters)


def parse_additions(parameters: Mapping[str, object]) -> StoredState:
    """Lists of SAs and policies, as an import asks for them. Raises ControlError."""
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
    """An entry as JSON values, without a key."""
    # Defaults are written out: a later version's must not change an SA that is in use.
    return entry.model_dump(mode="json", exclude_none=True)


def revealed(entry: SaEntry) -> dict[str, object]:
    """An SA's entry as JSON values, the key among them."""
    return {**plain(entry), "key": entry.key.get_secret_value()}
