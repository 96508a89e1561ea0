"""Loading of the configuration: YAML files to the desired state, or to a list of every fault."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from esp_gw.config.conflicts import find_conflicts
from esp_gw.config.document import Document, find_scalar, read_document
from esp_gw.config.keyfile import generate
from esp_gw.config.models import (
    SETTINGS_MODELS,
    KeySource,
    PolicyModel,
    TunnelModel,
    gateway_settings,
)
from esp_gw.config.nat import needs_local_original
from esp_gw.config.redundancy import find_redundant
from esp_gw.config.types import Location, Strict, describe, unknown_field
from esp_gw.crypto.providers import provider_fault
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import (
    ConfigError,
    KeyAbsentError,
    KeyDeniedError,
    KeyFileError,
    Problem,
    printable,
)
from esp_gw.files import is_absence
from esp_gw.model import AWS_LC, DEFAULT_SUITE, KeyMaterial, Policy, Sa, Suite, Tunnel
from esp_gw.protocol import MIN_IPV6_MTU
from esp_gw.values import (
    FieldError,
    parse_absolute_path,
    parse_name,
    parse_sa_count,
    parse_socket_path,
    parse_suite,
)

MAX_SELECTORS = 32768
"""Largest number of prefix pairs in the whole configuration."""

SECTIONS = ("gateway", "crypto", "policies", "tunnels")

Model = TypeVar("Model", bound=Strict)


def load_config(path: Path) -> Desired:
    """Read a YAML file, or all *.yaml of a folder in the order of their names.

    Key file names are relative to the folder of the file that names them. Raises ConfigError with
    every problem of every file, each with file, line and field.
    """
    files, warnings = _files(path)
    return _Reader([read_document(file) for file in files], warnings).desired()


def load_protection(path: Path) -> Desired:
    """Read what a configuration protects: settings and policies, without a look at its keys.

    The SAs have random keys. Raises ConfigError as `load_config` does, but for keys.
    """
    files, warnings = _files(path)
    return _KeylessReader([read_document(file) for file in files], warnings).desired()


def load_state_dir(path: Path) -> Path:
    """Read the state directory alone: no key is read, and other faults don't matter.

    Raises ConfigError if it is faulty, or may be in what can't be read.
    """
    files, _ = _files(path)
    return _Reader([read_document(file) for file in files], []).state_dir()


def readable_state_dir(path: Path) -> Path:
    """Return the state directory of a configuration, however broken its files are.

    It is the default one if no file names another before a syntax error.
    """
    found = _readable(path, "state_dir", parse_absolute_path)
    return Path(found or GatewaySettings().state_dir)


def readable_control_socket(path: Path) -> Path:
    """Return the control socket of a configuration, as `readable_state_dir` does."""
    found = _readable(path, "control_socket", parse_socket_path)
    return Path(found or GatewaySettings().control_socket)


def _readable(path: Path, name: str, parse: Callable[[object], str]) -> str | None:
    try:
        files, _ = _files(path)
    except ConfigError:
        return None
    for file in files:
        found = find_scalar(file, name)
        if found is not None:
            with contextlib.suppress(FieldError):
                return parse(found)
    return None


def _files(path: Path) -> tuple[list[Path], list[str]]:
    try:
        path.lstat()
        if not path.is_dir():
            return [path], []
        names = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except FileNotFoundError:
        text = "does not exist ('esp-gw init' writes one)"
        raise ConfigError([Problem(printable(path), 0, "", text, absent=True)]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is not a usable file name"
        absent = isinstance(error, OSError) and is_absence(error)
        denied = isinstance(error, PermissionError)
        raise ConfigError([Problem(printable(path), 0, "", reason, absent, denied)]) from None
    files = [entry for entry in names if entry.suffix == ".yaml"]
    if not files:
        # The mount point of a late file system is such a folder.
        text = "contains no *.yaml file"
        raise ConfigError([Problem(printable(path), 0, "", text, absent=True)])
    warnings = [
        f"{printable(entry)}: is not read; its name must end in .yaml"
        for entry in names
        if entry.suffix == ".yml"
    ]
    return files, warnings


class _Reader:
    """Collects the desired state and the faults of all documents in one pass."""

    def __init__(self, documents: list[Document], warnings: list[str]) -> None:
        self._documents = documents
        self._warnings = warnings
        self._problems = [problem for document in documents for problem in document.problems]
        self._settings = GatewaySettings()
        self._homes: dict[str, Document] = {}
        self._tunnels: list[Tunnel] = []
        self._tunnel_files: dict[str, str] = {}
        self._sas: list[Sa] = []
        self._policies: list[Policy] = []
        self._protects: list[Policy] = []
        self._selector_count = 0
        self._places: dict[str, tuple[Document, Location]] = {}

    def desired(self) -> Desired:
        """The desired state of all documents. Raises ConfigError."""
        for document in self._documents:
            for name in document.value:
                if name not in SECTIONS:
                    self._complain(document, (name,), unknown_field(name, SECTIONS))
        self._read_settings()
        for document, section in self._sections("policies"):
            self._read_policies(document, section)
        for document, section in self._sections("tunnels"):
            self._read_tunnels(document, section)
        self._check_together()
        self._refuse_problems()
        return Desired(
            settings=self._settings,
            tunnels=tuple(self._tunnels),
            sas=tuple(self._sas),
            policies=(*self._policies, *self._protects),
            warnings=tuple(self._warnings),
        )

    def state_dir(self) -> Path:
        """The state directory. Raises ConfigError."""
        unread, self._problems = self._problems, []
        self._read_settings()
        places = ("gateway", "gateway.state_dir")
        self._problems = [problem for problem in self._problems if problem.field in places]
        if "gateway" not in self._homes:
            self._problems += unread
        self._refuse_problems()
        return Path(self._settings.state_dir)

    def _refuse_problems(self) -> None:
        if self._problems:
            order = {document.name: index for index, document in enumerate(self._documents)}
            raise ConfigError(sorted(self._problems, key=lambda p: (order[p.file], p.line)))

    def _read_settings(self) -> None:
        sections: dict[str, Strict] = {name: model() for name, model in SETTINGS_MODELS.items()}
        for name, model in SETTINGS_MODELS.items():
            for document, section in self._sections(name):
                sections[name] = self._only(model, document, name, section) or sections[name]
        self._settings = gateway_settings(sections)

    def _complain(
        self,
        document: Document,
        location: Location,
        message: str,
        *,
        absent: bool = False,
        denied: bool = False,
    ) -> None:
        self._problems.append(document.problem(location, message, absent=absent, denied=denied))

    def _sections(self, name: str) -> Iterator[tuple[Document, object]]:
        for document in self._documents:
            section = document.value.get(name)
            if section is not None:
                yield document, section

    def _only(
        self, model: type[Model], document: Document, name: str, section: object
    ) -> Model | None:
        """The model of a section that only one file may contain."""
        if name in self._homes:
            text = f"is already in {self._homes[name].name}: only one file may have this section"
            self._complain(document, (name,), text)
            return None
        self._homes[name] = document
        return self._validated(model, document, (name,), section)

    def _read_policies(self, document: Document, section: object) -> None:
        if not isinstance(section, list):
            self._complain(document, ("policies",), "expected a list, each entry after '- '")
            return
        for index, raw in enumerate(section):
            place: Location = ("policies", index)
            model = self._validated(PolicyModel, document, place, raw)
            if model is not None and self._selector_count <= MAX_SELECTORS:
                policy = model.policy(f"policy-{len(self._policies) + 1}")
                self._policies.append(policy)
                self._selector_count += len(policy.selectors)
                self._places[policy.name] = (document, place)

    def _read_tunnels(self, document: Document, section: object) -> None:
        if not isinstance(section, dict):
            self._complain(document, ("tunnels",), "expected a mapping: a name, then its fields")
            return
        for name, raw in section.items():
            place: Location = ("tunnels", name)
            try:
                parse_name(name)
            except FieldError as error:
                self._complain(document, place, str(error))
                continue
            first = self._tunnel_files.setdefault(name, document.name)
            if first != document.name:
                self._complain(document, place, f"is already in {first}: names must be unique")
                continue
            model = self._validated(TunnelModel, document, place, raw)
            keymats = self._keymats(document, place, raw)
            if model is None or self._selector_count > MAX_SELECTORS:
                continue
            # Random stand-ins for unreadable keys let the search for conflicts go on. An unreadable
            # key is a recorded problem, so loading fails and a stand-in is never used.
            out, in_ = (
                read or tuple(generate(model.suite) for _ in range(model.sas)) for read in keymats
            )
            # A copy of the name: a string kept from the document pins the memory pages around it.
            tunnel, sas, policy = model.expand(name.encode().decode(), out, in_)
            self._tunnels.append(tunnel)
            self._sas += sas
            self._protects.append(policy)
            self._selector_count += len(policy.selectors)
            self._places[name] = (document, place)
            if model.suite.is_readable:
                text = (
                    f"{model.suite} authenticates but does not encrypt: "
                    "anyone on the path can read the traffic"
                )
                self._warnings.append(str(document.problem((*place, "suite"), text)))
            self._places |= {sa.name: (document, (*place, sa.direction)) for sa in sas}

    def _validated(
        self, model: type[Model], document: Document, place: Location, raw: object
    ) -> Model | None:
        """The model of a section; without its faulty fields if those that remain suffice.

        The faults are recorded, so such a partial model only serves to find further faults.
        """
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            faults = describe(error, model)
        for location, text in faults:
            self._complain(document, (*place, *location), text)
        if not isinstance(raw, dict):
            return None
        wrong = {location[0] for location, _ in faults if location}
        try:
            return model.model_validate({k: v for k, v in raw.items() if k not in wrong})
        except ValidationError:
            return None

    def _keymats(
        self, document: Document, place: Location, raw: object
    ) -> tuple[tuple[KeyMaterial, ...] | None, tuple[KeyMaterial, ...] | None]:
        """The keys of both directions of a tunnel, read even if its other fields are faulty."""
        if not isinstance(raw, dict):
            return None, None
        try:
            suite = parse_suite(raw.get("suite", DEFAULT_SUITE.name))
            count = parse_sa_count(raw.get("sas", 1))
        except FieldError:
            return None, None
        return (
            self._keymat(document, (*place, "outbound"), raw.get("outbound"), suite, count),
            self._keymat(document, (*place, "inbound"), raw.get("inbound"), suite, count),
        )

    def _keymat(
        self, document: Document, place: Location, raw: object, suite: Suite, count: int
    ) -> tuple[KeyMaterial, ...] | None:
        try:
            source = KeySource.model_validate(raw.get("key") if isinstance(raw, dict) else None)
        except ValidationError:
            return None
        if source.inline is not None:
            if not self._settings.allow_inline_keys:
                text = "keys in the configuration need allow_inline_keys: true; use a key file"
                self._complain(document, (*place, "key", "inline"), text)
                return None
            text = "the key is in the configuration itself; a key file keeps it separate"
            self._warnings.append(str(document.problem((*place, "key", "inline"), text)))
        try:
            return source.read(suite, count, document.path.parent)
        except KeyFileError as error:
            self._complain(
                document,
                (*place, "key", source.kind),
                str(error),
                absent=isinstance(error, KeyAbsentError),
                denied=isinstance(error, KeyDeniedError),
            )
            return None

    def _check_together(self) -> None:
        policies = (*self._policies, *self._protects)
        if self._selector_count > MAX_SELECTORS:
            document, place = self._places[policies[-1].name]
            text = f"too many prefixes: at most {MAX_SELECTORS} pairs in the whole configuration"
            self._complain(document, place, text)
            return
        for conflict in find_conflicts(self._sas, policies):
            document, place = self._places[conflict.names[-1]]
            self._complain(document, place, conflict.message)
        for redundant in find_redundant(policies):
            document, place = self._places[redundant.name]
            self._warnings.append(str(document.problem(place, redundant.message)))
        self._check_nats()
        mtu = self._settings.mtu
        if mtu is not None and mtu < MIN_IPV6_MTU:
            for policy in self._protects:
                if any(selector.local.version == 6 for selector in policy.selectors):
                    text = f"IPv6 in tunnel {policy.name} needs at least {MIN_IPV6_MTU}"
                    self._complain(self._homes["gateway"], ("gateway", "mtu"), text)
                    break
        self._check_provider()
        self._check_hook()

    def _check_nats(self) -> None:
        for sa in self._sas:
            # One for each tunnel.
            if sa.name == f"{sa.tunnel}/in" and (text := needs_local_original(sa)) is not None:
                document, place = self._places[str(sa.tunnel)]
                self._warnings.append(str(document.problem((*place, "local"), text)))

    def _check_hook(self) -> None:
        hook = self._settings.hook
        if hook and not hook[0].startswith("/"):
            text = f"expected a program by its path, which begins with '/', not '{hook[0]}'"
            self._complain(self._homes["gateway"], ("gateway", "hook"), text)

    def _check_provider(self) -> None:
        provider = self._settings.provider
        if provider == AWS_LC and self._settings.engine == "python":
            text = "aws-lc needs the native engine, and gateway.engine is python"
            self._complain(self._homes["crypto"], ("crypto", "provider"), text)
        for tunnel in self._tunnels:
            lacking = provider_fault(provider, tunnel.suite)
            if lacking is not None:
                document, place = self._places[tunnel.name]
                self._complain(document, (*place, "suite"), lacking)


class _KeylessReader(_Reader):
    """Uses random keys instead of those that the documents name."""

    def _keymat(
        self, document: Document, place: Location, raw: object, suite: Suite, count: int
    ) -> tuple[KeyMaterial, ...] | None:
        return tuple(generate(suite) for _ in range(count))
