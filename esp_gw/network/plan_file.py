"""The plan on disk: what the gateway protected when it last applied a state, without any key.

Of IKE it has the standing policies, and none of a child.
Two copies, each with a checksum, written one after the other: a crash or a bad block damages one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from esp_gw import files
from esp_gw.desired import Desired, GatewaySettings, settings_of
from esp_gw.errors import NetworkError
from esp_gw.model import Origin, Policy, PortRange, Selector
from esp_gw.per_object import PerObject
from esp_gw.values import (
    parse_action,
    parse_integer,
    parse_prefix,
)

NAMES = ("guard.json", "guard.backup.json")
_SETTINGS = (
    "interface",
    "port",
    "fwmark",
    "addresses",
    "table",
    "firewall",
    "source_check",
)
"""The settings that routes, rules and packet filter depend on."""
_LIMIT = 64 << 20


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan read from disk; `fault` says in one line which copy was unusable, or is None.

    `protection` is that of configuration and CLI, `standing` has the policies of IKE.
    """

    protection: Desired
    standing: tuple[Policy, ...] = ()
    fault: str | None = None


class PlanFile:
    """The two copies in the state directory `folder`."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder / name for name in NAMES]
        self._texts = PerObject(_encoded), PerObject(_encoded_unnamed)
        self._mutex = threading.Lock()

    def read(self) -> StoredPlan | None:
        """Return the newest readable copy, or None if there is no file.

        Raises NetworkError if there are files, and none of them is readable.
        """
        faults: list[str] = []
        for path in self._paths:
            try:
                plan, standing = decode(_content(path))
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                faults.append(f"{path}: {getattr(error, 'strerror', None) or error}")
                continue
            return StoredPlan(plan, standing, "; ".join(faults) or None)
        if faults:
            raise NetworkError("; ".join(faults), where="the guard's plan can't be read")
        return None

    def write(self, desired: Desired) -> None:
        """Write both copies, unless they hold this already. Raises OSError."""
        with self._mutex:
            content = _whole(desired, *self._texts)
            for path in self._paths:
                try:
                    same = _content(path) == content
                except OSError:
                    same = False
                if not same:
                    files.replace(path, content)


def encode(desired: Desired) -> bytes:
    """Return settings and policies as JSON with a checksum; of SAs nothing."""
    return _whole(desired, PerObject(_encoded), PerObject(_encoded_unnamed))


def _whole(
    desired: Desired, lasting: PerObject[Policy, str], standing: PerObject[Policy, str]
) -> bytes:
    # Known texts cost no call: a child of IKE changes one of many.
    settings = {name: _plain(getattr(desired.settings, name)) for name in _SETTINGS}
    policies = ", ".join(lasting.of(desired.lasting.policies))
    # Without names and order: sessions of the same configuration write nothing.
    ikes = ", ".join(sorted(set(standing.of(desired.standing))))
    body = f'{{"settings": {json.dumps(settings)}, "policies": [{policies}], "ikes": [{ikes}]}}'
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"sha256": digest, "plan": body}).encode()


def _encoded(policy: Policy) -> str:
    return json.dumps({"name": policy.name, **_closing(policy)})


def _encoded_unnamed(policy: Policy) -> str:
    return json.dumps(_closing(policy))


def _closing(policy: Policy) -> dict[str, object]:
    selectors = [_plain_selector(selector) for selector in policy.selectors]
    return {"action": str(policy.action), "selectors": selectors}


def decode(content: bytes) -> tuple[Desired, tuple[Policy, ...]]:
    """Return what configuration and CLI protect, and the standing policies of IKE.

    Raises ValueError if the content is damaged.
    """
    try:
        whole = json.loads(content)
        body = whole["plan"]
        if hashlib.sha256(body.encode()).hexdigest() != whole["sha256"]:
            raise ValueError
        plan = json.loads(body)
        parsers = settings_of(GatewaySettings)
        values: dict[str, Any] = {}
        for name in _SETTINGS:
            setting, value = parsers[name], plan["settings"][name]
            values[name] = (
                tuple(map(setting.parse, value)) if setting.many else setting.parse(value)
            )
        policies = tuple(_policy(each["name"], each) for each in plan["policies"])
        # Earlier versions wrote none.
        ikes = tuple(
            replace(_policy(f"ike {number}", each), origin=Origin.IKE, standing=True)
            for number, each in enumerate(plan.get("ikes", ()), 1)
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("is damaged") from None
    return Desired(GatewaySettings(**values), policies=policies), ikes


def _policy(name: str, fields: dict[str, Any]) -> Policy:
    selectors = tuple(_selector(each) for each in fields["selectors"])
    return Policy(name, parse_action(fields["action"]), selectors)


def _content(path: Path) -> bytes:
    with files.open_regular(path) as (fd, _):
        return files.read_bounded(fd, _LIMIT)


def _plain(value: object) -> object:
    return [str(each) for each in value] if isinstance(value, tuple) else value


def _plain_selector(selector: Selector) -> dict[str, object]:
    return {
        "local": str(selector.local),
        "remote": str(selector.remote),
        "protocol": selector.protocol,
        "local_port": _plain_ports(selector.local_port),
        "remote_port": _plain_ports(selector.remote_port),
    }


def _plain_ports(ports: PortRange | None) -> list[int] | None:
    return None if ports is None else [ports.first, ports.last]


def _selector(fields: dict[str, Any]) -> Selector:
    protocol = fields["protocol"]
    return Selector(
        parse_prefix(fields["local"]),
        parse_prefix(fields["remote"]),
        None if protocol is None else parse_integer(protocol, 0, 255),
        _ports(fields["local_port"]),
        _ports(fields["remote_port"]),
    )


def _ports(bounds: list[Any] | None) -> PortRange | None:
    if bounds is None:
        return None
    first, last = (parse_integer(bound, 0, 65535) for bound in bounds)
    return PortRange(first, last)
