"""The field types of everything that a person configures: one definition for YAML, CLI and state.

Every type takes text, as YAML and the command line give it, or the JSON value of the same meaning.
A value that doesn't fit raises a fault in plain words; text that may be a key is never repeated.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    PlainValidator,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from esp_gw.engine.python import wire
from esp_gw.files import printable
from esp_gw.model import (
    AES_GCM,
    AF_ALG_CHOICES,
    AWS_LC,
    CHACHA20_POLY1305,
    MAX_REPLAY_WINDOW,
    MAX_SAS,
    MAX_SPI,
    MIN_REPLAY_WINDOW,
    MIN_SPI,
    PROVIDERS,
    SUITES,
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
from esp_gw.network.plan import LAST_TABLE

Location = tuple[str | int, ...]
"""Names and list positions that lead to a value."""

MAX_LIST_LEN = 64
MAX_PAIRS = 1024
"""Pairs of a local and a remote prefix in one tunnel, SA or policy."""
MAX_NAME_LEN = 32
PORT_PROTOCOLS = wire.PORT_PROTOCOLS
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}

EVERYTHING: dict[int, IPNetwork] = {
    4: ipaddress.IPv4Network("0.0.0.0/0"),
    6: ipaddress.IPv6Network("::/0"),
}

_INTEGER = re.compile(r"0|[1-9][0-9]{0,19}|0[xX][0-9a-fA-F]{1,16}")
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_LEN - 1}}}")
_SA_NAME = re.compile(rf"{_NAME.pattern}(/(in|out)(\.[1-9][0-9]?)?)?")
_INTERFACE = re.compile(r"(?![^/:%]*[/:%])[!-~]{1,15}")
_LIKE_A_KEY = re.compile(r"[0-9a-fA-F]{16}")
_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")
_RESERVED_TABLES = {252: "compat", 253: "default", 254: "main", 255: "local"}


class Strict(BaseModel):
    """A model without room for unknown fields, whose errors hold no input."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


def fault(text: str) -> PydanticCustomError:
    """The error of a value that doesn't fit, in words for a person."""
    return PydanticCustomError("fault", "{text}", {"text": text})


def looks_like_a_key(text: str) -> bool:
    """Whether text has so many hex digits in a row that it may be key material."""
    return _LIKE_A_KEY.search(text) is not None


def shown(value: object) -> str:
    """A value as an error may repeat it: short, on one line, and nothing that may be a key."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = printable(value)
    if len(text) > 48 or looks_like_a_key(text):
        return f"a text of {len(text)} characters"
    return f"'{text}'"


def family(value: IPAddress | IPNetwork) -> str:
    """IPv4 or IPv6, as people write it."""
    return f"IPv{value.version}"


def host_network(address: IPAddress) -> IPNetwork:
    """The prefix that holds one address and no other."""
    return ipaddress.ip_network(address)


def parse_integer(value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`, decimal or hexadecimal with 0x."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        number = int(value, 0)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise fault(f"expected a number from {low} to {high}, not {shown(value)}")
    if not low <= number <= high:
        raise fault(f"expected a number from {low} to {high}, not {shown(value)}")
    return number


def integer(low: int, high: int) -> PlainValidator:
    """The validator of a whole number from `low` to `high`."""
    return PlainValidator(lambda value: parse_integer(value, low, high))


def parse_flag(value: object) -> bool:
    """True or false, with YAML's words for them."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
        return value.lower() in ("true", "yes", "on")
    raise fault(f"expected true or false, not {shown(value)}")


def choice(*words: str) -> Callable[[object], str]:
    """A parser that takes one of `words`."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in words:
            return str(value)
        raise fault(f"expected {' or '.join(words)}, not {shown(value)}")

    return parse


def parse_suite(value: object) -> Suite:
    """A suite by its name."""
    if isinstance(value, str) and value in SUITES:
        return SUITES[value]
    raise fault(f"expected one of {', '.join(SUITES)}, not {shown(value)}")


def parse_name(value: object) -> str:
    """The name of a tunnel or a policy."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise fault(
        f"expected a name: at most {MAX_NAME_LEN} letters, digits, '.', '_' and '-', "
        "beginning with a letter or a digit"
    )


def parse_sa_name(value: object) -> str:
    """The name of an SA: like a policy's, and /out or /in may follow, and a number after a dot."""
    if isinstance(value, str) and _SA_NAME.fullmatch(value):
        return value
    raise fault(
        f"expected a name: at most {MAX_NAME_LEN} letters, digits, '.', '_' and '-', beginning "
        "with a letter or a digit; /out or /in may follow, or /out.2 and so on"
    )


def parse_interface(value: object) -> str:
    """The name of a network interface as Linux takes it (dev_valid_name)."""
    if isinstance(value, str) and _INTERFACE.fullmatch(value) and value not in (".", ".."):
        return value
    raise fault(
        "expected an interface name: at most 15 characters, without space, '/', ':' and '%'"
    )


def parse_absolute_path(value: object) -> str:
    """A path from the root."""
    if isinstance(value, str) and value.startswith("/") and value.isprintable():
        return value
    raise fault(f"expected a path that begins with '/', not {shown(value)}")


def parse_socket_path(value: object) -> str:
    """A path from the root that fits a unix socket's address: at most 107 bytes (unix(7))."""
    path = parse_absolute_path(value)
    if len(path.encode()) > 107:
        raise fault("is too long: a unix socket's path has at most 107 bytes")
    return path


def parse_address(value: object) -> IPAddress:
    """A unicast IPv4 or IPv6 address without prefix length or zone."""
    if isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        address: IPAddress = value
    else:
        if not isinstance(value, str):
            raise fault(f"expected an IPv4 or IPv6 address, not {shown(value)}")
        if "/" in value:
            raise fault(
                f"expected an address without prefix length, for example {_bare(value)}"
                if _bare(value)
                else f"expected an IPv4 or IPv6 address, not {shown(value)}"
            )
        try:
            address = _address(value)
        except ValueError:
            raise fault(f"expected an IPv4 or IPv6 address, not {shown(value)}") from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise fault("a zone ('%...') is not supported: use a global or unique local address")
        if address.ipv4_mapped is not None:
            raise fault(f"write the IPv4 address {address.ipv4_mapped} instead")
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise fault(
            f"{address} is a multicast or broadcast address, expected the address of a host"
        )
    if address.is_unspecified:
        raise fault(f"{address} is no host's address")
    return address


def parse_outer_address(value: object) -> IPAddress:
    """An address that ESP can travel from and to without naming an interface."""
    address = parse_address(value)
    if address.version == 6 and address.is_link_local:
        raise fault("link-local addresses are not supported: use a global or unique local address")
    return address


@functools.lru_cache(maxsize=64)
def _address(value: str) -> IPAddress:
    """One object for an address that thousands of tunnels have, as their own end."""
    return ipaddress.ip_address(value)


def _bare(value: str) -> str | None:
    try:
        return str(ipaddress.ip_interface(value).ip)
    except ValueError:
        return None


def parse_prefix(value: object) -> IPNetwork:
    """An IPv4 or IPv6 prefix; an address alone is that one host."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    expected = f"expected a prefix such as 10.1.0.0/24 or fd00:1::/64, not {shown(value)}"
    if not isinstance(value, str):
        raise fault(expected)
    address, slash, length = value.partition("/")
    if "%" in address or (slash and not re.fullmatch("[0-9]{1,3}", length)):
        raise fault(expected)
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise fault(expected) from None
    if network.network_address != ipaddress.ip_address(address):
        raise fault(f"host bits are set in {value}; the prefix is {network}")
    return network


def parse_protocol(value: object) -> int | None:
    """An IP protocol by name or number; `any` is None."""
    if value is None or value == "any":
        return None
    if isinstance(value, str) and value in PROTOCOLS:
        return PROTOCOLS[value]
    try:
        return parse_integer(value, 1, 255)
    except PydanticCustomError:
        words = ", ".join(PROTOCOLS)
        raise fault(
            f"expected any, {words} or a number from 1 to 255, not {shown(value)}"
        ) from None


def parse_ports(value: object) -> PortRange | None:
    """One port, or a range `first-last`; `any` is None."""
    if value is None or value == "any":
        return None
    if isinstance(value, PortRange):
        return value
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and (match := _PORTS.fullmatch(text)):
        first = int(match[1])
        last = int(match[2] or first)
        if first <= last <= 65535:
            return PortRange(first, last)
    raise fault(f"expected any, a port, or a range such as 1000-2000, not {shown(value)}")


def parse_window(value: object) -> int:
    """A replay window in packets: a multiple of 64."""
    window = parse_integer(value, MIN_REPLAY_WINDOW, MAX_REPLAY_WINDOW)
    if window % 64:
        raise fault(f"expected a multiple of 64, for example {window - window % 64 + 64}")
    return window


def parse_table(value: object) -> int:
    """A routing table that is ours alone."""
    # With 1 a rule of ours would stand beside the kernel's first one, for addresses of this host.
    table = parse_integer(value, 2, LAST_TABLE)
    if table in _RESERVED_TABLES:
        raise fault(f"is the system's table '{_RESERVED_TABLES[table]}': choose another number")
    return table


def _as_list(value: object) -> object:
    if not isinstance(value, list | tuple):
        return [value]
    if not 1 <= len(value) <= MAX_LIST_LEN:
        raise fault(f"expected 1 to {MAX_LIST_LEN} entries, not {len(value)}")
    return value


def pairing_fault(local: tuple[IPNetwork, ...], remote: tuple[IPNetwork, ...]) -> str | None:
    """Which prefix has no partner of its family on the other side, or that there are too many."""
    if len(local) * len(remote) > MAX_PAIRS:
        return f"local_ts and remote_ts make more than {MAX_PAIRS} pairs of prefixes"
    for mine, others, side in ((local, remote, "remote"), (remote, local, "local")):
        versions = {other.version for other in others}
        for prefix in mine:
            if prefix.version not in versions:
                return f"{prefix} has no partner: there is no {family(prefix)} prefix in {side}_ts"
    return None


def ports_fault(ports: PortRange | None, protocol: int | None) -> str | None:
    """Why a selector can't have ports."""
    if ports is None or protocol is None or protocol in PORT_PROTOCOLS:
        return None
    return f"protocol {protocol} has no ports: leave this out, or choose tcp, udp or sctp"


def provider_fault(provider: str, suite: Suite) -> str | None:
    """Why a provider can't seal a suite: AWS-LC has only the ICV of 16 bytes."""
    if provider != AWS_LC or (suite.cipher in (AES_GCM, CHACHA20_POLY1305) and suite.icv_len == 16):
        return None
    return f"crypto.provider aws-lc has no {suite}: choose a suite with an ICV of 16, or auto"


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
    """Every fault of a validation: the place inside `model`, and what is wrong in plain words."""
    found: list[tuple[Location, str]] = []
    for detail in error.errors(include_url=False, include_input=False):
        location = detail["loc"]
        match detail["type"]:
            case "fault":
                text = detail["msg"]
            case "missing":
                text = "is missing"
            case "extra_forbidden":
                text = unknown_field(location[-1], _model_at(model, location[:-1]).model_fields)
            case "model_type":
                names = ", ".join(_model_at(model, location).model_fields)
                text = f"expected a mapping with {names}"
            case "string_type":
                text = "expected a text"
            case _:
                text = "has a value that is not understood"
        found.append((location, text))
    return found


def unknown_field(name: object, known: Iterable[str]) -> str:
    """What to say about a field that isn't known."""
    known = list(known)
    near = difflib.get_close_matches(str(name)[:MAX_NAME_LEN], known, n=1)
    return f"unknown field; {f'did you mean {near[0]}?' if near else 'known: ' + ', '.join(known)}"


def label(location: Location) -> str:
    """A place as people write it, `policies[0].remote_ts`."""
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

Name = Annotated[str, PlainValidator(parse_name)]
SaName = Annotated[str, PlainValidator(parse_sa_name)]
InterfaceName = Annotated[str, PlainValidator(parse_interface)]
AbsolutePath = Annotated[str, PlainValidator(parse_absolute_path)]
SocketPath = Annotated[str, PlainValidator(parse_socket_path)]
Address = Annotated[IPAddress, PlainValidator(parse_address), _TEXT]
OuterAddress = Annotated[IPAddress, PlainValidator(parse_outer_address), _TEXT]
Addresses = Annotated[tuple[Address, ...], BeforeValidator(_as_list)]
Prefix = Annotated[IPNetwork, PlainValidator(parse_prefix), _TEXT]
Prefixes = Annotated[tuple[Prefix, ...], BeforeValidator(_as_list)]
ProtocolNumber = Annotated[int | None, PlainValidator(parse_protocol)]
Ports = Annotated[PortRange | None, PlainValidator(parse_ports), _TEXT]
UdpPort = Annotated[int, integer(1, 65535)]
Spi = Annotated[int, integer(MIN_SPI, MAX_SPI)]
Seq = Annotated[int, integer(0, 2**64 - 1)]
Mark = Annotated[int, integer(1, 2**32 - 1)]
Table = Annotated[int, PlainValidator(parse_table)]
Mtu = Annotated[int, integer(576, 65535)]
Keepalive = Annotated[int, integer(0, 3600)]
SaCount = Annotated[int, integer(1, MAX_SAS)]
ReplayWindow = Annotated[int, PlainValidator(parse_window)]
Flag = Annotated[bool, PlainValidator(parse_flag)]
EngineName = Annotated[str, PlainValidator(choice("auto", "python", "native"))]
Workers = Annotated[int, integer(1, 64)]
BusyPoll = Annotated[int, integer(0, 1000)]
ProviderName = Annotated[str, PlainValidator(choice(*PROVIDERS))]
AfAlgChoice = Annotated[str, PlainValidator(choice(*AF_ALG_CHOICES))]
SuiteName = Annotated[Suite, PlainValidator(parse_suite), _TEXT]
ModeName = Annotated[Mode, PlainValidator(lambda value: Mode(choice(*Mode)(value))), _TEXT]
EncapsulationName = Annotated[
    Encapsulation, PlainValidator(lambda value: Encapsulation(choice(*Encapsulation)(value))), _TEXT
]
DirectionName = Annotated[
    Direction, PlainValidator(lambda value: Direction(choice(*Direction)(value))), _TEXT
]
ActionName = Annotated[Action, PlainValidator(lambda value: Action(choice(*Action)(value))), _TEXT]
UnprotectedActionName = Annotated[
    Action,
    PlainValidator(lambda value: Action(choice(Action.BYPASS, Action.DISCARD)(value))),
    _TEXT,
]
