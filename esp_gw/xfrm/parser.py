"""Parser of the output of `ip xfrm state` and `ip xfrm policy`, with or without -s; no I/O.

The format is that of iproute2 (ip/ipxfrm.c, 6.1 to 6.15): a block begins in the first column, `src
A dst B` for a state and `src A/N dst B/N` for a policy, and its further lines are indented. Every
feature of a state or policy that esp-gw does not have is refused with its line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from esp_gw.errors import EspGwError
from esp_gw.model import (
    AES_GCM,
    AES_GMAC,
    CHACHA20_POLY1305,
    SUITES,
    Direction,
    KeyMaterial,
    Mode,
    Suite,
)
from esp_gw.protocol import MIN_SPI, SALT_LEN
from esp_gw.xfrm.lines import Line, address, mode, number, pairs, read_lines, selector, show_word
from esp_gw.xfrm.records import (
    Dump,
    PolicyDirection,
    Template,
    UdpPorts,
    XfrmPolicy,
    XfrmSelector,
    XfrmState,
)

KERNEL_CIPHERS = {
    AES_GCM: "rfc4106(gcm(aes))",
    AES_GMAC: "rfc4543(gcm(aes))",
    CHACHA20_POLY1305: "rfc7539esp(chacha20,poly1305)",
}
"""The kernel's name of each cipher."""
ALGORITHMS: dict[tuple[str, int, int], Suite] = {
    (KERNEL_CIPHERS[suite.cipher], suite.keymat_len, 8 * suite.icv_len): suite
    for suite in SUITES.values()
}
"""Suites by kernel algorithm name, bytes of key and salt, and bits of the ICV."""

_NO_KEYS = "print the states as root, without 'nokeys'"
_KEY = re.compile(r"0x([0-9a-f]{2})+")
_BITMAP = re.compile(r"[0-9a-f]{8}")
_USED = re.compile(r"[0-9]+\(bytes\),")
# Lines without relevant content: times of use, statistics, headings.
_IGNORED = {"lastused", "add", "lifetime", "stats:", "enc-mask"}


def parse(text: str, name: str) -> Dump:
    """Parse the states and policies of one output; errors refer to it by `name`.

    Raises EspGwError with `name:line` for the first line that is unknown or not supported.
    """
    blocks: list[list[Line]] = []
    for line in read_lines(text, name):
        if line.first:
            blocks.append([line])
        elif blocks:
            blocks[-1].append(line)
        else:
            line.fault("the beginning is missing", "pass the complete output")
    states, policies = [], []
    for block in blocks:
        words = block[0].words
        if words[0] != "src" or len(words) < 4 or words[2] != "dst":
            block[0].unknown()
        if "/" not in words[1]:
            states.append(_State(block).record())
        elif (policy := _Policy(block).record()) is not None:
            policies.append(policy)
    return Dump(tuple(states), tuple(policies))


def _common(line: Line) -> None:
    """Check a line that both a state and a policy may have; none of these yields a value."""
    words = line.words
    match words[0]:
        case "mark" | "output-mark":
            if words[0] == "output-mark" or "output-mark" in words or not _matches_all(line):
                line.unsupported("a mark")
        case "if_id":
            if number(line, words[-1]):
                line.unsupported("an interface ID (if_id)")
        case "crypto":
            line.unsupported("a crypto offload to a network card")
        case "limit:" | "expire":
            # `limit: soft X(bytes), hard Y(bytes)`, `expire add: soft X(sec), hard Y(sec)`
            hard = words[words.index("hard") + 1] if "hard" in words[:-1] else ""
            if not hard.startswith(("(INF)", "0(sec)")):
                line.fault(
                    "a finite lifetime: the SA belongs to an IKE daemon and can't be moved",
                    "only SAs with manual keys can be imported",
                )
        case "security":
            line.unsupported("a security context")
        case word if word in _IGNORED or _USED.fullmatch(word):
            pass
        case _:
            line.unknown()


def _matches_all(line: Line) -> bool:
    value, slash, mask = line.words[1].partition("/") if len(line.words) > 1 else ("", "", "")
    return bool(slash) and number(line, mask) == 0 and number(line, value) == 0


def _flags(line: Line, words: Sequence[str], known: set[str]) -> set[str]:
    """The flags in `words`; with -s their bits follow in parentheses."""
    flags = {word for word in words if not word.startswith("(0x")}
    for flag in sorted(flags - known):
        line.unsupported(f"the flag {show_word(flag)}")
    return flags


class _State:
    """One block of `ip xfrm state`."""

    def __init__(self, block: list[Line]) -> None:
        self.head = block[0]
        self.flags: set[str] = set()
        self.identity: tuple[int, int, Mode] | None = None
        self.cipher: tuple[Suite, KeyMaterial] | None = None
        self.window = 0
        self.seqs: dict[str, int] = {}
        self.udp: UdpPorts | None = None
        self.selector: XfrmSelector | None = None
        self.direction: Direction | None = None
        for line in block[1:]:
            self._read(line)

    def record(self) -> XfrmState:
        """The state, checked for everything that an SA must have."""
        line = self.head
        if len(line.words) != 4:
            line.unknown()
        src, dst = address(line, line.words[1]), address(line, line.words[3])
        if self.identity is None:
            line.fault("the state has no line 'proto'", "pass the complete output")
        if self.cipher is None:
            line.fault("the state has no key", "the kernel waits for an IKE daemon here")
        if "oseq" not in self.seqs:
            line.fault("the state has no line with its sequence numbers ('anti-replay')")
        (spi, reqid, state_mode), (suite, keymat) = self.identity, self.cipher
        seqs = {"seq": 0, "seq-hi": 0, "oseq-hi": 0, **self.seqs}
        return XfrmState(
            where=line.where,
            src=src,
            dst=dst,
            spi=spi,
            reqid=reqid,
            mode=state_mode,
            suite=suite,
            keymat=keymat,
            esn="esn" in self.flags,
            window=self.window,
            seq=seqs["seq-hi"] << 32 | seqs["seq"],
            oseq=seqs["oseq-hi"] << 32 | seqs["oseq"],
            udp=self.udp,
            selector=self.selector,
            direction=self.direction,
        )

    def _read(self, line: Line) -> None:
        words = line.words
        match words[0]:
            case "proto":
                self.identity = _identity(line, words)
            case "replay-window":
                # With -s a line of the statistics begins with the same word.
                if words[2:3] != ("replay",):
                    self._read_flags(line)
            case "flag":
                self.flags |= _flags(line, words[1:], {"esn", "af-unspec"})
            case "aead":
                self.cipher = _aead(line)
            case "auth" | "auth-trunc" | "enc" | "comp":
                name = show_word(words[1]) if len(words) > 1 else ""
                line.unsupported(f"the algorithm {name}")
            case "encap":
                self.udp = _encap(line)
            case "anti-replay":
                if words[1:] != ("esn", "context:"):
                    self._read_seqs(line, words[2:])
            case "seq-hi" | "oseq-hi" | "oseq":
                self._read_seqs(line, words)
            case "replay_window":
                self.window = number(line, pairs(line, words)["replay_window"])
            case "dir":
                self.direction = _direction(line)
            case "sel":
                self.selector = selector(line, words[1:])
            case "coa" | "tfcpad" | "iptfs-opts" | "pcpu-num":
                line.unsupported(words[0])
            case _ if all(_BITMAP.fullmatch(word) for word in words):
                pass
            case _:
                _common(line)

    def _read_flags(self, line: Line) -> None:
        """`replay-window N [seq 0xN] [flag NAMES] [extra-flag NAMES] [(0xBITS)]`"""
        words = line.words
        self.window = number(line, words[1]) if len(words) > 1 else line.unknown()
        rest = words[4:] if words[2:3] == ("seq",) else words[2:]
        if rest:
            if rest[0] != "flag":
                line.fault(f"{show_word(rest[0])} is not understood")
            self.flags |= _flags(line, rest[1:], {"esn", "af-unspec"})

    def _read_seqs(self, line: Line, words: Sequence[str]) -> None:
        values = pairs(line, words)
        for name in values.keys() - {"bitmap"}:
            if name not in ("seq", "oseq", "seq-hi", "oseq-hi"):
                line.unknown()
            self.seqs[name] = number(line, values[name])


class _Policy:
    """One block of `ip xfrm policy`."""

    def __init__(self, block: list[Line]) -> None:
        self.head = block[0]
        self.place: tuple[PolicyDirection, bool, int] | None = None
        self.of_a_socket = False
        self.template: Template | None = None
        self.ends: Line | None = None
        for line in block[1:]:
            self._read(line)

    def record(self) -> XfrmPolicy | None:
        """The policy, or None for one without relevance to esp-gw.

        A socket policy ends with its program, and an inbound policy that requires no SA concerns
        packets that are not esp-gw's.
        """
        if self.of_a_socket:
            return None
        if self.place is None:
            self.head.fault("the policy has no line 'dir'", "pass the complete output")
        if self.ends is not None:
            self.ends.fault("the template is incomplete", "pass the complete output")
        direction, block, _ = self.place
        if direction is not PolicyDirection.OUT and self.template is None and not block:
            return None
        chosen = selector(self.head, self.head.words)
        return XfrmPolicy(self.head.where, chosen, *self.place, self.template)

    def _read(self, line: Line) -> None:
        words = line.words
        match words[0]:
            case "dir":
                self.place = _place(line)
            case "socket":
                self.of_a_socket = True
            case "tmpl":
                if self.template is not None or self.ends is not None:
                    line.unsupported("a policy with two templates")
                self.ends = line
            case "proto" if self.ends is not None:
                self.template = _template(self.ends, line)
                self.ends = None
            case "level":
                # With level 'use', packets pass in the clear while there is no SA.
                if words[1:2] != ("required",):
                    line.unsupported("a template that is not required (level)")
            case _:
                _common(line)


def _identity(line: Line, words: Sequence[str]) -> tuple[int, int, Mode]:
    """SPI, reqid and mode of `proto esp [spi N] reqid N mode NAME`."""
    values = pairs(line, words)
    if values.keys() - {"proto", "spi", "reqid", "mode"}:
        line.fault("the line is not understood")
    if (proto := values["proto"]) != "esp":
        line.unsupported(f"protocol {show_word(proto)}")
    spi = number(line, values.get("spi", "0"))
    if 0 < spi < MIN_SPI:
        line.unsupported(f"the reserved SPI {spi}")
    return spi, number(line, values.get("reqid", "")), mode(line, values.get("mode", ""))


def _aead(line: Line) -> tuple[Suite, KeyMaterial]:
    """Suite and key of `aead NAME 0xKEY [(N bits)] ICV`."""
    words = line.words
    if "<<Keys" in words:
        line.fault("the keys are hidden", _NO_KEYS)
    if len(words) not in (4, 6) or not _KEY.fullmatch(words[2]):
        line.fault("the line is incomplete", "pass the complete output")
    keymat = bytes.fromhex(words[2][2:])
    icv = number(line, words[-1])
    suite = ALGORITHMS.get((words[1], len(keymat), icv))
    if suite is None:
        line.unsupported(
            f"the algorithm {show_word(words[1])} with {8 * len(keymat)} bits of key "
            f"and an ICV of {icv}"
        )
    if not any(keymat[:-SALT_LEN]):
        line.fault("the key is zero: a kernel in lockdown hides keys")
    return suite, KeyMaterial.from_bytes(keymat)


def _encap(line: Line) -> UdpPorts:
    """The ports of `encap type espinudp sport N dport N addr ADDRESS`."""
    values = pairs(line, line.words[1:])
    if values.keys() != {"type", "sport", "dport", "addr"}:
        line.fault("the line is not understood")
    if values["type"] != "espinudp":
        line.unsupported(f"encapsulation {show_word(values['type'])}")
    ports = UdpPorts(number(line, values["sport"]), number(line, values["dport"]))
    if not (0 < ports.sport < 65536 and 0 < ports.dport < 65536):
        line.fault("a UDP port is missing")
    return ports


def _direction(line: Line) -> Direction:
    directions = {"in": Direction.INBOUND, "out": Direction.OUTBOUND}
    if len(line.words) != 2 or line.words[1] not in directions:
        line.unknown()
    return directions[line.words[1]]


def _place(line: Line) -> tuple[PolicyDirection, bool, int]:
    """`dir NAME [action allow|block] [index N] priority N [ptype main] [share any] [flag NAMES]`"""
    words = line.words
    if "flag" in words:
        _flags(line, words[words.index("flag") + 1 :], {"localok"})
        words = words[: words.index("flag")]
    values = pairs(line, words)
    if values["dir"] not in tuple(PolicyDirection) or "priority" not in values:
        line.unknown()
    expected = {"action": ("allow", "block"), "ptype": ("main",), "share": ("any",)}
    for name in values.keys() - {"dir", "index", "priority"}:
        if values[name] not in expected.get(name, ()):
            line.unsupported(f"{show_word(name)} {show_word(values[name])}")
    block = values.get("action") == "block"
    return PolicyDirection(values["dir"]), block, number(line, values["priority"])


def _template(ends: Line, line: Line) -> Template:
    words = ends.words
    if len(words) != 5 or (words[1], words[3]) != ("src", "dst"):
        ends.unknown()
    spi, reqid, template_mode = _identity(line, line.words)
    return Template(address(ends, words[2]), address(ends, words[4]), spi, reqid, template_mode)


def join(dumps: Sequence[Dump]) -> Dump:
    """Merge several outputs. Raises EspGwError if a state or policy is in two of them."""
    seen: dict[object, str] = {}
    states = [state for dump in dumps for state in dump.states]
    policies = [policy for dump in dumps for policy in dump.policies]
    for state in states:
        _once(seen, (state.dst, state.spi), state.where)
    for policy in policies:
        _once(seen, (policy.direction, policy.selector), policy.where)
    return Dump(tuple(states), tuple(policies))


def _once(seen: dict[object, str], key: object, where: str) -> None:
    if key in seen:
        raise EspGwError(f"is also in {seen[key]}", where=where, hint="pass each output once")
    seen[key] = where
