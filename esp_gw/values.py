"""Parsers of user-supplied values, given as text or as the equivalent JSON value.

One parser for each kind of value serves the configuration, the command line and the state file. A
parser raises FieldError with a readable message, which never quotes text that may be a key.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable

from esp_gw.errors import printable
from esp_gw.model import (
    AF_ALG_CHOICES,
    ANY,
    AUTO,
    ENGINES,
    LAST_TABLE,
    LATENCIES,
    MAX_REPLAY_WINDOW,
    MAX_SAS,
    MIN_REPLAY_WINDOW,
    OFF,
    PROVIDERS,
    RESERVED_TABLES,
    SUITES,
    Action,
    Direction,
    Encapsulation,
    IPAddress,
    IPNetwork,
    Mode,
    PortRange,
    Suite,
)
from esp_gw.protocol import MAX_SPI, MIN_SPI

MAX_NAME_LEN = 32
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}

_INTEGER = re.compile(r"0|[1-9][0-9]{0,19}|0[xX][0-9a-fA-F]{1,16}")
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_LEN - 1}}}")
_SA_NAME = re.compile(rf"{_NAME.pattern}(/(in|out)(\.[1-9][0-9]?)?)?")
_INTERFACE = re.compile(r"(?![^/:%]*[/:%])[!-~]{1,15}")
_LIKE_A_KEY = re.compile(r"[0-9a-fA-F]{16}")
_PORTS = re.compile(r"([0-9]{1,5})(?:\s*-\s*([0-9]{1,5}))?")


class FieldError(ValueError):
    """An invalid value; the text is a readable message."""


def looks_like_a_key(text: str) -> bool:
    """True if text has a run of hex digits so long that it may be key material."""
    return _LIKE_A_KEY.search(text) is not None


def shown(value: object) -> str:
    """A value as quoted in an error: short, on one line, and never possible key material."""
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = printable(value)
    if len(text) > 48 or looks_like_a_key(text):
        return f"text of {len(text)} characters"
    return f"'{text}'"


def family(value: IPAddress | IPNetwork) -> str:
    """Name of the address family: IPv4 or IPv6."""
    return f"IPv{value.version}"


_PRIVATE = [
    ipaddress.ip_network(prefix)
    for prefix in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
]


def is_private(address: IPAddress) -> bool:
    """True for addresses behind a NAT, if the peer is elsewhere (RFC 1918, RFC 6598, RFC 4193)."""
    return any(address.version == each.version and address in each for each in _PRIVATE)


def host_network(address: IPAddress) -> IPNetwork:
    """The prefix that contains only this address."""
    return ipaddress.ip_network(address)


def parse_integer(value: object, low: int, high: int) -> int:
    """A whole number from `low` to `high`, decimal or hexadecimal with 0x."""
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        number = int(value, 0)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise FieldError(f"expected a number from {low} to {high}, not {shown(value)}")
    if not low <= number <= high:
        raise FieldError(f"expected a number from {low} to {high}, not {shown(value)}")
    return number


def integer(low: int, high: int) -> Callable[[object], int]:
    """A parser of whole numbers from `low` to `high`."""
    return functools.partial(parse_integer, low=low, high=high)


def parse_flag(value: object) -> bool:
    """True or false, in any spelling of YAML."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
        return value.lower() in ("true", "yes", "on")
    raise FieldError(f"expected true or false, not {shown(value)}")


def one_of(*words: str) -> Callable[[object], str]:
    """A parser that accepts one of `words`."""

    def parse(value: object) -> str:
        if isinstance(value, str) and value in words:
            return str(value)
        raise FieldError(f"expected {' or '.join(words)}, not {shown(value)}")

    return parse


def parse_suite(value: object) -> Suite:
    """A suite, by name."""
    if isinstance(value, str) and value in SUITES:
        return SUITES[value]
    raise FieldError(f"expected one of {', '.join(SUITES)}, not {shown(value)}")


def parse_name(value: object) -> str:
    """The name of a tunnel or a policy."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise FieldError(
        f"expected a name: at most {MAX_NAME_LEN} letters, digits, '.', '_' and '-', "
        "beginning with a letter or a digit"
    )


def parse_sa_name(value: object) -> str:
    """The name of an SA: that of a policy, optionally with /out or /in and a number after a dot."""
    if isinstance(value, str) and _SA_NAME.fullmatch(value):
        return value
    raise FieldError(
        f"expected a name: at most {MAX_NAME_LEN} letters, digits, '.', '_' and '-', beginning "
        "with a letter or a digit; /out or /in may follow, or /out.2 and so on"
    )


def parse_interface(value: object) -> str:
    """The name of a network interface, as accepted by Linux (dev_valid_name)."""
    if isinstance(value, str) and _INTERFACE.fullmatch(value) and value not in (".", ".."):
        return value
    raise FieldError(
        "expected an interface name: at most 15 characters, without space, '/', ':' and '%'"
    )


def parse_absolute_path(value: object) -> str:
    """An absolute path."""
    if isinstance(value, str) and value.startswith("/") and value.isprintable():
        return value
    raise FieldError(f"expected a path that begins with '/', not {shown(value)}")


def parse_argument(value: object) -> str:
    """An argument of a program: text on one line, of at most 1,024 characters."""
    if isinstance(value, str) and value.isprintable() and 0 < len(value) <= 1024:
        if looks_like_a_key(value):
            raise FieldError("looks like a key, which others could see in the process list")
        return value
    raise FieldError(f"expected text of 1 to 1024 characters on one line, not {shown(value)}")


def parse_socket_path(value: object) -> str:
    """An absolute path that fits the address of a unix socket: at most 107 bytes (unix(7))."""
    path = parse_absolute_path(value)
    if len(path.encode()) > 107:
        raise FieldError("is too long: the path of a unix socket has at most 107 bytes")
    return path


def parse_address(value: object) -> IPAddress:
    """A unicast IPv4 or IPv6 address without prefix length or zone."""
    if isinstance(value, ipaddress.IPv4Address | ipaddress.IPv6Address):
        address: IPAddress = value
    else:
        if not isinstance(value, str):
            raise FieldError(f"expected an IPv4 or IPv6 address, not {shown(value)}")
        if "/" in value:
            raise FieldError(
                f"expected an address without prefix length, for example {_bare(value)}"
                if _bare(value)
                else f"expected an IPv4 or IPv6 address, not {shown(value)}"
            )
        try:
            address = _address(value)
        except ValueError:
            raise _not("an IPv4 or IPv6 address", value) from None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            raise FieldError(
                "a zone ('%...') is not supported: use a global or unique local address"
            )
        if address.ipv4_mapped is not None:
            raise FieldError(f"write the IPv4 address {address.ipv4_mapped} instead")
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        raise FieldError(
            f"{address} is a multicast or broadcast address, expected the address of a host"
        )
    if address.is_unspecified:
        raise FieldError(f"{address} is not the address of a host")
    return address


def parse_outer_address(value: object) -> IPAddress:
    """An address usable as an ESP endpoint without naming an interface."""
    address = parse_address(value)
    if address.version == 6 and address.is_link_local:
        raise FieldError(
            "link-local addresses are not supported: use a global or unique local address"
        )
    return address


def parse_local_address(value: object) -> IPAddress | None:
    """An outer address of this host; None for `auto`, where the route to the peer decides."""
    return None if value == AUTO else parse_outer_address(value)


_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(
    rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?\.?", re.I
)
"""The last label begins with a letter (RFC 1123 2.1): a mistyped address is no name."""


_MEANT_ANY = ("%any", "*")
"""Words of other programs for a peer that may be anywhere."""


def parse_remote(value: object) -> IPAddress | str:
    """An outer address of a peer, a name that a resolver knows, in lower case, or `any`."""
    if isinstance(value, str) and (value in _MEANT_ANY or _is_unspecified(value)):
        raise FieldError(f"{value} is not the address of a host: write any for a peer anywhere")
    if isinstance(value, str) and value.lower() == AUTO:
        raise FieldError("auto is for local: write an address, a name, or any for a peer anywhere")
    if _is_name(value):
        return str(value).rstrip(".").lower()
    return parse_outer_address(value)


def _is_name(value: object) -> bool:
    """True for text that may be a host's name, and is no key."""
    is_like_one = isinstance(value, str) and _HOST_NAME.fullmatch(value) is not None
    return is_like_one and not looks_like_a_key(str(value))


def _not(expected: str, value: object) -> FieldError:
    """The error for a value that is none of what is expected; a host's name is called one."""
    quoted = shown(value)
    if not _is_name(value) or value in (ANY, AUTO) or quoted != f"'{value}'":
        return FieldError(f"expected {expected}, not {quoted}")
    found = f"'getent ahosts {value}' shows its addresses"
    return FieldError(f"expected {expected}, not the name {quoted}: {found}")


@functools.lru_cache(maxsize=64)
def _address(value: str) -> IPAddress:
    """Share one object for an address common to thousands of tunnels, as their local end."""
    return ipaddress.ip_address(value)


def _is_unspecified(value: str) -> bool:
    bare = _bare(value)
    return bare is not None and ipaddress.ip_address(bare).is_unspecified


def _bare(value: str) -> str | None:
    try:
        return str(ipaddress.ip_interface(value).ip)
    except ValueError:
        return None


def parse_prefix(value: object) -> IPNetwork:
    """An IPv4 or IPv6 prefix; a bare address is the prefix of that host."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    expected = "a prefix such as 10.1.0.0/24 or fd00:1::/64"
    if not isinstance(value, str):
        raise _not(expected, value)
    address, slash, length = value.partition("/")
    if "%" in address or (slash and not re.fullmatch("[0-9]{1,3}", length)):
        raise _not(expected, value)
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise _not(expected, value) from None
    if network.network_address != ipaddress.ip_address(address):
        raise FieldError(f"host bits are set in {value}; the prefix is {network}")
    return network


def parse_protocol(value: object) -> int | None:
    """An IP protocol by name or number; `any` is None."""
    if value is None or value == "any":
        return None
    if isinstance(value, str) and value in PROTOCOLS:
        return PROTOCOLS[value]
    try:
        return parse_integer(value, 1, 255)
    except FieldError:
        words = ", ".join(PROTOCOLS)
        raise FieldError(
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
    raise FieldError(f"expected any, a port, or a range such as 1000-2000, not {shown(value)}")


def parse_window(value: object) -> int:
    """A replay window in packets: a multiple of 64."""
    window = parse_integer(value, MIN_REPLAY_WINDOW, MAX_REPLAY_WINDOW)
    if window % 64:
        raise FieldError(f"expected a multiple of 64, for example {window - window % 64 + 64}")
    return window


def parse_table(value: object) -> int:
    """A routing table for exclusive use by the gateway."""
    # The gateway's rules come before its table's number, and after the kernel's first rule, 0.
    table = parse_integer(value, 3, LAST_TABLE)
    if table in RESERVED_TABLES:
        raise FieldError(f"is the system's table '{RESERVED_TABLES[table]}': choose another number")
    return table


def parse_mode(value: object) -> Mode:
    """A mode, by name."""
    return Mode(one_of(*Mode)(value))


def parse_encapsulation(value: object) -> Encapsulation:
    """An encapsulation, by name."""
    return Encapsulation(one_of(*Encapsulation)(value))


def parse_direction(value: object) -> Direction:
    """A direction, by name."""
    return Direction(one_of(*Direction)(value))


def parse_action(value: object) -> Action:
    """The action of a policy, by name."""
    return Action(one_of(*Action)(value))


def parse_unprotected_action(value: object) -> Action:
    """The action of a policy without an SA: `bypass` or `discard`."""
    return Action(one_of(Action.BYPASS, Action.DISCARD)(value))


parse_udp_port = integer(1, 65535)
parse_spi = integer(MIN_SPI, MAX_SPI)
parse_seq = integer(0, 2**64 - 1)
parse_mark = integer(1, 2**32 - 1)
parse_mtu = integer(576, 65535)
"""Bytes of an inner packet; every IPv4 host accepts 576 (RFC 791 3.1)."""
parse_keepalive = integer(0, 3600)
parse_liveness = integer(0, 3600)
"""Seconds."""
parse_sa_count = integer(1, MAX_SAS)
parse_workers = integer(1, 64)
parse_engine = one_of(*ENGINES)
parse_provider = one_of(*PROVIDERS)
parse_af_alg = one_of(*AF_ALG_CHOICES)
parse_auto = one_of(AUTO, OFF)
parse_latency = one_of(*LATENCIES)
