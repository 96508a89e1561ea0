"""SAs and policies of IKE's children as the owner's session gives them, checked.

The same form is kept in the records beside the control socket.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from esp_gw.config import types
from esp_gw.config.added import key_for
from esp_gw.config.keyfile import parse_keymat
from esp_gw.config.types import Strict
from esp_gw.errors import ControlError
from esp_gw.model import (
    DEFAULT_REPLAY_WINDOW,
    MAX_REPLAY_WINDOW,
    MIN_REPLAY_WINDOW,
    Action,
    Direction,
    Encapsulation,
    IPNetwork,
    KeyMaterial,
    Mode,
    Selector,
)
from esp_gw.protocol import IPPROTO_ICMP, IPPROTO_ICMPV6, UDP_ENCAP_PORT
from esp_gw.values import FieldError, family, integer, parse_address, parse_prefix, shown

MAX_PREFIXES = 64
"""Prefixes that a range of addresses may take."""
MAX_ITEMS = 256
"""SAs, or policies, of one request."""
MAX_LABEL_LEN = 64
MAX_IDENTITY_LEN = 255

Model = TypeVar("Model", bound=Strict)


def parse_range(value: object) -> tuple[IPNetwork, ...]:
    """A prefix, or a range of addresses `first-last` as the prefixes that make it up."""
    if isinstance(value, list):
        return _recorded(value)
    if not isinstance(value, str) or "-" not in value:
        return (parse_prefix(value),)
    try:
        first, last = (ipaddress.ip_address(end.strip()) for end in value.split("-"))
        # Of two versions, or in the wrong order: TypeError, ValueError.
        prefixes = [*ipaddress.summarize_address_range(first, last)]
    except (ValueError, TypeError):
        raise FieldError(
            f"expected a prefix, or a range such as 10.1.0.5-10.1.0.9, not {shown(value)}"
        ) from None
    if len(prefixes) > MAX_PREFIXES:
        raise FieldError(
            f"a range of {len(prefixes)} prefixes, at most {MAX_PREFIXES} are supported: narrow it "
            "to prefixes in the traffic selectors"
        )
    return tuple(prefixes)


def _recorded(value: list[object]) -> tuple[IPNetwork, ...]:
    """Return the prefixes of a range, as the records have them."""
    prefixes = tuple(parse_prefix(each) for each in value)
    if not 1 <= len(prefixes) <= MAX_PREFIXES:
        raise FieldError(f"expected 1 to {MAX_PREFIXES} prefixes, not {len(prefixes)}")
    if len({each.version for each in prefixes}) > 1:
        raise FieldError("expected prefixes of one IP version")
    return prefixes


def parse_label(value: object) -> str:
    """At most 64 printable characters."""
    return _printable(value, MAX_LABEL_LEN)


def parse_identity(value: object) -> str:
    """At most 255 printable characters."""
    return _printable(value, MAX_IDENTITY_LEN)


def _printable(value: object, limit: int) -> str:
    if isinstance(value, str) and len(value) <= limit and value.isprintable():
        return value
    raise FieldError(f"expected at most {limit} printable characters")


def parse_id(value: object) -> str:
    """At most 64 printable characters, at least one."""
    if value == "":
        raise FieldError("is empty")
    return parse_label(value)


def parse_instant(value: object) -> float:
    """A time of a clock that counts from the boot, in seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < _MAX_INSTANT:
        return float(value)
    raise FieldError(f"expected seconds of the monotonic clock, not {shown(value)}")


_MAX_INSTANT = 2.0**32


def parse_any_window(value: object) -> int:
    """A replay window of any size up to the largest; the next larger one that there is."""
    window = integer(0, MAX_REPLAY_WINDOW)(value)
    return max(-(-window // 64) * 64, MIN_REPLAY_WINDOW)


Prefixes = Annotated[
    tuple[IPNetwork, ...],
    PlainValidator(parse_range),
    PlainSerializer(lambda prefixes: [str(each) for each in prefixes]),
]
Label = Annotated[str, PlainValidator(parse_label)]
Identity = Annotated[str, PlainValidator(parse_identity)]
Instant = Annotated[float, PlainValidator(parse_instant)]
PolicyId = Annotated[str, PlainValidator(parse_id)]
Window = Annotated[int, PlainValidator(parse_any_window)]
Number = Annotated[int, PlainValidator(integer(0, 2**32 - 1))]
Priority = Annotated[int, PlainValidator(integer(0, 2**32 - 1))]
Count = Annotated[int, PlainValidator(integer(0, 2**64 - 1))]


class TrafficSelector(Strict):
    """Inner traffic as seen from this gateway (RFC 7296 2.9), both ends as prefixes."""

    local: Prefixes
    remote: Prefixes
    protocol: types.ProtocolNumber = None
    local_port: types.Ports = None
    remote_port: types.Ports = None

    @field_validator("protocol", mode="before")
    @classmethod
    def _zero_is_any(cls, value: object) -> object:
        return None if value == 0 and not isinstance(value, bool) else value

    @field_validator("remote")
    @classmethod
    def _is_of_one_family(
        cls, remote: tuple[IPNetwork, ...], info: ValidationInfo
    ) -> tuple[IPNetwork, ...]:
        local = info.data.get("local")
        if local and local[0].version != remote[0].version:
            raise FieldError(f"is {family(remote[0])}, local is {family(local[0])}")
        return remote

    @field_validator("local_port", "remote_port")
    @classmethod
    def _has_ports(cls, ports: types.Ports, info: ValidationInfo) -> types.Ports:
        protocol = info.data.get("protocol")
        if ports is not None and protocol in (IPPROTO_ICMP, IPPROTO_ICMPV6):
            raise FieldError("types and codes of ICMP can't be selected: leave this out")
        if text := types.ports_fault(ports, protocol):
            raise FieldError(text)
        return ports

    def selectors(self) -> tuple[Selector, ...]:
        """Every pair of a local and a remote prefix."""
        return types.selectors_of(
            self.local, self.remote, self.protocol, self.local_port, self.remote_port
        )


class _Selecting(Strict):
    """Selectors of an SA or a policy, and the name of its child for people."""

    selectors: tuple[TrafficSelector, ...]
    child: Label = ""

    @field_validator("selectors")
    @classmethod
    def _are_few(cls, value: tuple[TrafficSelector, ...]) -> tuple[TrafficSelector, ...]:
        pairs = sum(len(each.local) * len(each.remote) for each in value)
        if not 1 <= pairs <= types.MAX_PAIRS:
            raise FieldError(f"expected 1 to {types.MAX_PAIRS} pairs of prefixes, not {pairs}")
        return value

    @property
    def pairs(self) -> tuple[Selector, ...]:
        """Every pair of prefixes, each once."""
        return tuple(dict.fromkeys(pair for each in self.selectors for pair in each.selectors()))


class SaRef(Strict):
    """The name of an SA: its direction and SPI, and a number that tells outbound ones apart."""

    direction: types.DirectionName
    spi: types.Spi
    number: Number = 0


class ReservedSpi(Strict):
    """An SPI of an inbound SA that has not come."""

    spi: types.Spi


class ChildSa(_Selecting):
    """One SA of a child; `key` is hex, key then salt, and appears in no repr and no dump.

    A limit of 0 is none. `peer` and `connection` are for people, and so are the limits in seconds,
    which are the owner's own, and `since`, from which on they count.
    """

    direction: types.DirectionName
    spi: types.Spi
    number: Number = 0
    suite: types.SuiteName
    key: SecretStr
    mode: types.ModeName = Mode.TUNNEL
    encapsulation: types.EncapsulationName = Encapsulation.UDP
    local: types.OuterAddress
    remote: types.OuterAddress
    local_port: types.UdpPort | None = None
    remote_port: types.UdpPort | None = None
    esn: types.Flag = False
    replay_window: Window = DEFAULT_REPLAY_WINDOW
    keepalive: types.Keepalive = 0
    local_original: types.OuterAddress | None = None
    remote_original: types.OuterAddress | None = None
    soft_bytes: Count | None = None
    hard_bytes: Count | None = None
    soft_packets: Count | None = None
    hard_packets: Count | None = None
    peer: Identity = ""
    connection: Label = ""
    soft_seconds: Count | None = None
    hard_seconds: Count | None = None
    since: Instant | None = None

    @field_validator("number")
    @classmethod
    def _is_of_an_outbound_sa(cls, number: int, info: ValidationInfo) -> int:
        if number and info.data.get("direction") is Direction.INBOUND:
            raise FieldError("an inbound SA has an SPI of its own: leave this out")
        return number

    @field_validator("key")
    @classmethod
    def _fits_the_suite(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        return key_for(info.data.get("suite"), key)

    @field_validator("remote")
    @classmethod
    def _is_another_host(
        cls, remote: types.OuterAddress, info: ValidationInfo
    ) -> types.OuterAddress:
        refuse_same_host(info.data.get("local"), remote)
        return remote

    @field_validator("local_original", "remote_original")
    @classmethod
    def _has_a_nat(
        cls, value: types.OuterAddress | None, info: ValidationInfo
    ) -> types.OuterAddress | None:
        if value is None:
            return value
        if info.data.get("mode") is not Mode.TRANSPORT:
            raise FieldError("is valid only with mode: transport")
        if info.data.get("encapsulation") is not Encapsulation.UDP:
            raise FieldError("is valid only with encapsulation: udp: no NAT changes the address")
        return value

    @property
    def keymat(self) -> KeyMaterial:
        """Cipher key and salt."""
        return parse_keymat(self.key.get_secret_value(), self.suite)

    @property
    def peer_port(self) -> int:
        """The peer's UDP port."""
        return self.remote_port or UDP_ENCAP_PORT

    @property
    def nat_keepalive(self) -> int:
        """Seconds between NAT keepalives, which an outbound SA in UDP alone sends."""
        is_sent = self.direction is Direction.OUTBOUND and self.encapsulation is Encapsulation.UDP
        return self.keepalive if is_sent else 0

    def begun(self, now: float) -> ChildSa:
        """Return it with the time at which it was installed, `now` unless its owner has told it."""
        return self if self.since is not None else self.model_copy(update={"since": now})

    def revealed(self) -> dict[str, object]:
        """Return it as JSON values, including its key."""
        return {**self.model_dump(mode="json"), "key": self.key.get_secret_value()}


class SaChange(SaRef):
    """The fields of an SA that may change while its key and its numbers go on."""

    local: types.OuterAddress
    remote: types.OuterAddress
    remote_port: types.UdpPort | None = None
    encapsulation: types.EncapsulationName

    @field_validator("remote")
    @classmethod
    def _is_another_host(
        cls, remote: types.OuterAddress, info: ValidationInfo
    ) -> types.OuterAddress:
        refuse_same_host(info.data.get("local"), remote)
        return remote


class ChildPolicy(_Selecting):
    """A policy of the owner; `sa` is the SPI of an outbound SA, `sa_number` its number.

    A protect policy without one holds: it drops what it matches. A `trap` is in the owner's
    configuration, and stays closed over a boot.
    """

    id: PolicyId
    action: types.ActionName
    priority: Priority = 0
    sa: types.Spi | None = Field(default=None)
    sa_number: Number = 0
    connection: Label = ""
    trap: types.Flag

    @model_validator(mode="before")
    @classmethod
    def _is_a_trap_without_an_sa(cls, fields: object) -> object:
        if not isinstance(fields, dict) or "trap" in fields:
            return fields
        return {**fields, "trap": fields.get("sa") is None}

    @field_validator("sa")
    @classmethod
    def _suits_the_action(cls, sa: int | None, info: ValidationInfo) -> int | None:
        if sa is not None and info.data.get("action") in (Action.BYPASS, Action.DISCARD):
            raise FieldError(f"has no meaning in a {info.data['action']} policy")
        return sa

    def plain(self) -> dict[str, object]:
        """Return it as JSON values."""
        return self.model_dump(mode="json")


def refuse_same_host(local: object, remote: object) -> None:
    """Raise FieldError for outer addresses that are equal, or of two families."""
    if local is None:
        return
    ours, theirs = parse_address(local), parse_address(remote)
    if ours == theirs:
        raise FieldError(f"is the same address as local, {theirs}")
    if ours.version != theirs.version:
        raise FieldError(f"is an {family(theirs)} address, local is {family(ours)}")


def parse(model: type[Model], parameters: Mapping[str, object], place: str = "") -> Model:
    """Parse the parameters of a request, or the one at `place`. Raises ControlError."""
    try:
        return model.model_validate(dict(parameters))
    except ValidationError as error:
        faults = [
            f"{place}{types.label(location)}: {text}"
            for location, text in types.describe(error, model)
        ]
        # One line, however many there are.
        raise ControlError("InvalidParameter", "; ".join(faults[:_MAX_FAULTS])) from None


_MAX_FAULTS = 5


def parse_all(model: type[Model], parameters: Mapping[str, object], name: str) -> list[Model]:
    """Parse a list of the request; one that is left out is empty. Raises ControlError."""
    items = parameters.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ControlError("InvalidParameter", f"{name}: expected a list of objects")
    if len(items) > MAX_ITEMS:
        raise ControlError(
            "InvalidParameter", f"{name}: expected at most {MAX_ITEMS} entries, not {len(items)}"
        )
    return [parse(model, item, f"{name}[{number}].") for number, item in enumerate(items)]


def refuse_unknown(parameters: Mapping[str, object], known: Sequence[str]) -> None:
    """Raise ControlError for a parameter that the method doesn't have."""
    for name in parameters:
        if name not in known:
            text = types.unknown_field(name, known) if known else "unknown field"
            raise ControlError("InvalidParameter", f"{types.label((name,))}: {text}")
