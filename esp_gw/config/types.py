"""Field types of the models: pydantic types around the parsers of esp_gw/values.py.

Also converts validation errors to readable faults, each with its place.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)

from esp_gw import values
from esp_gw.errors import printable
from esp_gw.model import (
    AUTO,
    Action,
    Direction,
    Encapsulation,
    IPAddress,
    IPNetwork,
    Mode,
    PortRange,
    Selector,
    Suite,
)
from esp_gw.protocol import PORT_PROTOCOLS
from esp_gw.values import MAX_NAME_LEN, FieldError, family, looks_like_a_key

Location = tuple[str | int, ...]
"""Path to a value: field names and list indexes."""

MAX_LIST_LEN = 64
MAX_PAIRS = 1024
"""Largest number of pairs of a local and a remote prefix in one tunnel, SA or policy."""
_REMOVED = {
    "busy_poll_us": "it made round trips longer; take it out, 'latency: low' is what shortens them"
}
"""Settings of earlier versions, each with why it went and what to write instead."""
EVERYTHING: dict[int, IPNetwork] = {
    4: ipaddress.IPv4Network("0.0.0.0/0"),
    6: ipaddress.IPv6Network("::/0"),
}


class Strict(BaseModel):
    """A frozen model that refuses unknown fields and keeps input out of its errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def as_list(value: object) -> object:
    """Wrap a single value in a list. Raises FieldError if a list is empty or longer than 64."""
    if not isinstance(value, list | tuple):
        return [value]
    if not 1 <= len(value) <= MAX_LIST_LEN:
        raise FieldError(f"expected 1 to {MAX_LIST_LEN} entries, not {len(value)}")
    return value


def pairing_fault(local: tuple[IPNetwork, ...], remote: tuple[IPNetwork, ...]) -> str | None:
    """The fault of two prefix lists: too many pairs, or a prefix without one of its family."""
    if len(local) * len(remote) > MAX_PAIRS:
        return f"local_ts and remote_ts make more than {MAX_PAIRS} pairs of prefixes"
    for mine, others, side in ((local, remote, "remote"), (remote, local, "local")):
        versions = {other.version for other in others}
        for prefix in mine:
            if prefix.version not in versions:
                return f"{prefix} has no partner: there is no {family(prefix)} prefix in {side}_ts"
    return None


def ports_fault(ports: PortRange | None, protocol: int | None) -> str | None:
    """The reason that a selector can't have ports, or None."""
    if ports is None or protocol is None or protocol in PORT_PROTOCOLS:
        return None
    return f"protocol {protocol} has no ports: leave this out, or choose tcp, udp or sctp"


def selectors_of(
    local: tuple[IPNetwork, ...],
    remote: tuple[IPNetwork, ...],
    protocol: int | None,
    local_port: PortRange | None,
    remote_port: PortRange | None,
) -> tuple[Selector, ...]:
    """Every pair of a local and a remote prefix of one family (RFC 7296 2.9)."""
    return tuple(
        Selector(ours, theirs, protocol, local_port, remote_port)
        for ours in local
        for theirs in remote
        if ours.version == theirs.version
    )


def describe(error: ValidationError, model: type[BaseModel]) -> list[tuple[Location, str]]:
    """Every fault of a failed validation: its place inside `model`, and a readable message."""
    found: list[tuple[Location, str]] = []
    for detail in error.errors(include_url=False, include_input=False):
        location = detail["loc"]
        match detail["type"]:
            case "value_error" if isinstance(detail["ctx"]["error"], FieldError):
                text = str(detail["ctx"]["error"])
            case "missing":
                text = "is missing"
            case "extra_forbidden":
                text = unknown_field(location[-1], _model_at(model, location[:-1]).model_fields)
            case "model_type":
                names = ", ".join(_model_at(model, location).model_fields)
                text = f"expected a mapping with {names}"
            case "string_type":
                text = "expected text"
            case _:
                text = "has an invalid value"
        found.append((location, text))
    return found


def unknown_field(name: object, known: Iterable[str]) -> str:
    """The message for an unknown field, with the nearest known name if there is one."""
    if isinstance(name, str) and name in _REMOVED:
        return f"was removed: {_REMOVED[name]}"
    known = list(known)
    near = difflib.get_close_matches(str(name)[:MAX_NAME_LEN], known, n=1)
    return f"unknown field; {f'did you mean {near[0]}?' if near else 'known: ' + ', '.join(known)}"


def label(location: Location) -> str:
    """A location in the notation `policies[0].remote_ts`."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            odd = len(part) > MAX_NAME_LEN or looks_like_a_key(part)
            name = "(a long name)" if odd else printable(part)
            text += f".{name}" if text else name
    return text


def _model_at(model: type[BaseModel], location: Location) -> type[BaseModel]:
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return model


_TEXT: Any = PlainSerializer(str, return_type=str, when_used="json-unless-none")

Name = Annotated[str, PlainValidator(values.parse_name)]
SaName = Annotated[str, PlainValidator(values.parse_sa_name)]
LocalAddress = Annotated[
    IPAddress | None,
    PlainValidator(values.parse_local_address),
    PlainSerializer(lambda value: AUTO if value is None else str(value)),
]
Remote = Annotated[IPAddress | str, PlainValidator(values.parse_remote), _TEXT]
OuterAddress = Annotated[IPAddress, PlainValidator(values.parse_outer_address), _TEXT]
Prefix = Annotated[IPNetwork, PlainValidator(values.parse_prefix), _TEXT]
Prefixes = Annotated[tuple[Prefix, ...], BeforeValidator(as_list)]
ProtocolNumber = Annotated[int | None, PlainValidator(values.parse_protocol)]
Ports = Annotated[PortRange | None, PlainValidator(values.parse_ports), _TEXT]
UdpPort = Annotated[int, PlainValidator(values.parse_udp_port)]
Spi = Annotated[int, PlainValidator(values.parse_spi)]
Seq = Annotated[int, PlainValidator(values.parse_seq)]
Keepalive = Annotated[int, PlainValidator(values.parse_keepalive)]
Liveness = Annotated[int, PlainValidator(values.parse_liveness)]
SaCount = Annotated[int, PlainValidator(values.parse_sa_count)]
ReplayWindow = Annotated[int, PlainValidator(values.parse_window)]
Flag = Annotated[bool, PlainValidator(values.parse_flag)]
SuiteName = Annotated[Suite, PlainValidator(values.parse_suite), _TEXT]
ModeName = Annotated[Mode, PlainValidator(values.parse_mode), _TEXT]
EncapsulationName = Annotated[Encapsulation, PlainValidator(values.parse_encapsulation), _TEXT]
DirectionName = Annotated[Direction, PlainValidator(values.parse_direction), _TEXT]
ActionName = Annotated[Action, PlainValidator(values.parse_action), _TEXT]
UnprotectedActionName = Annotated[Action, PlainValidator(values.parse_unprotected_action), _TEXT]
