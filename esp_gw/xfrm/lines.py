"""Lines of `ip xfrm` and the values in them; anything unknown is a fault, never a guess.

A fault names the line and quotes at most one short word of it: a line may hold a key.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from esp_gw.errors import EspGwError
from esp_gw.model import IPAddress, IPNetwork, Mode
from esp_gw.xfrm.records import XfrmSelector

PROTOCOLS = {
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "ipv6": 41,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "ipv6-icmp": 58,
    "ospf": 89,
    "sctp": 132,
    "udplite": 136,
}
"""Names that iproute2 takes from /etc/protocols (Debian's netbase); others are numbers."""

# With -s a number is followed by its value in another base: 0x00001001(4097).
_NUMBER = re.compile(r"(0x[0-9a-f]{1,8}|[0-9]{1,10})(\([0-9a-fx]{1,10}\))?,?")
_SAFE_WORD = re.compile(r"(?!.*[0-9a-fA-F]{16})[A-Za-z0-9(),.:/_-]{1,40}")


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its place in the input, its words, and `first` if it begins a block."""

    where: str
    first: bool
    words: tuple[str, ...] = field(repr=False)

    def fault(self, what: str, hint: str | None = None) -> NoReturn:
        """Raise EspGwError with the place of this line."""
        raise EspGwError(what, where=self.where, hint=hint)

    def unknown(self) -> NoReturn:
        """Refuse a line that this version does not know."""
        self.fault(
            f"a line that begins with {show_word(self.words[0])} is not understood",
            "pass the unmodified output of 'ip xfrm state' and 'ip xfrm policy'",
        )

    def unsupported(self, what: str) -> NoReturn:
        """Refuse a feature of the kernel that esp-gw does not have."""
        self.fault(f"{what}: not supported by esp-gw")


def read_lines(text: str, name: str) -> Iterator[Line]:
    """The non-empty lines, each with `name:number` as its place."""
    for number, raw in enumerate(text.split("\n"), 1):
        words = tuple(raw.split())
        if words:
            yield Line(f"{name}:{number}", not raw[0].isspace(), words)


def show_word(word: str) -> str:
    """A word in quotes, or a substitute for one that may hold a key."""
    return f"'{word}'" if _SAFE_WORD.fullmatch(word) else "a word not shown here"


def number(line: Line, word: str) -> int:
    """A number as iproute2 writes it: decimal or hexadecimal, 32 bits."""
    match = _NUMBER.fullmatch(word)
    value = int(match[1], 16 if match[1].startswith("0x") else 10) if match else 2**32
    if value >= 2**32:
        line.fault(f"expected a number, not {show_word(word)}")
    return value


def address(line: Line, word: str) -> IPAddress:
    """An address without prefix length or zone."""
    try:
        return ipaddress.ip_address(word)
    except ValueError:
        line.fault(f"expected an address, not {show_word(word)}")


def mode(line: Line, word: str) -> Mode:
    """Tunnel or transport mode."""
    if word not in tuple(Mode):
        line.unsupported(f"mode {show_word(word)}")
    return Mode(word)


def pairs(line: Line, words: Sequence[str]) -> dict[str, str]:
    """Alternating names and values as a mapping; each name may occur once."""
    names = words[::2]
    if len(words) % 2 or len(set(names)) != len(names):
        line.fault("the line is incomplete")
    return dict(zip(names, words[1::2], strict=True))


def selector(line: Line, words: Sequence[str]) -> XfrmSelector:
    """`src PREFIX dst PREFIX [proto NAME] [sport N] [dport N] [uid 0]`."""
    values = pairs(line, words)
    for name in values.keys() - {"src", "dst", "proto", "sport", "dport", "uid"}:
        line.unsupported(f"a selector with {show_word(name)}")
    if number(line, values.get("uid", "0")):
        line.unsupported("a selector for one user")
    src, dst = (_prefix(line, values.get(end, "")) for end in ("src", "dst"))
    if src.version != dst.version:
        line.fault("the prefixes are of different families")
    return XfrmSelector(
        src,
        dst,
        _protocol(line, values),
        _port(line, values, "sport"),
        _port(line, values, "dport"),
    )


def _prefix(line: Line, word: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(word)
    except ValueError:
        line.fault(f"expected a prefix, not {show_word(word)}")


def _protocol(line: Line, values: dict[str, str]) -> int | None:
    word = values.get("proto")
    if word is None or word in PROTOCOLS:
        return PROTOCOLS[word] if word else None
    protocol = int(word) if word.isascii() and word.isdigit() and len(word) < 4 else 0
    if not 0 < protocol < 256:
        line.fault(f"the protocol name {show_word(word)} is unknown")
    return protocol


def _port(line: Line, values: dict[str, str], end: str) -> int | None:
    if end not in values:
        return None
    port = number(line, values[end])
    if port > 65535:
        line.fault(f"{port} is not a port number")
    return port
