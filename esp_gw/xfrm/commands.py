"""SAs and policies as lines of `ip -batch`, for a peer that uses kernel ESP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from esp_gw.config.keyfile import format_keymat
from esp_gw.errors import EspGwError
from esp_gw.model import (
    Action,
    Direction,
    Encapsulation,
    IPNetwork,
    Mode,
    Policy,
    PortRange,
    Sa,
    Selector,
)
from esp_gw.protocol import UDP_ENCAP_PORT
from esp_gw.xfrm.parser import KERNEL_CIPHERS

MAX_KERNEL_WINDOW = 4096
"""XFRMA_REPLAY_ESN_MAX of linux/xfrm.h."""
MARGIN = 2**20
"""Sequence numbers to skip: the peer may have sent them without our receiving them."""
_FIRST_PRIORITY = 1000


def batch(
    sas: Sequence[Sa],
    policies: Sequence[Policy],
    seqs: Mapping[str, int],
    port: int = UDP_ENCAP_PORT,
) -> str:
    """The lines that set up the peer to match `sas` and the protect policies among `policies`.

    `port` is our UDP port. `seqs` maps the name of an SA to the last number sent, or the highest
    number accepted, 0 if absent. The text holds keys. Raises EspGwError for anything that `ip xfrm`
    can't express.
    """
    for sa in sas:
        if sa.local.is_unspecified or sa.remote.is_unspecified:
            raise EspGwError(
                "the kernel needs the address of each end, and one is auto, any or a name",
                where=f"SA {sa.name}",
                hint="write the addresses",
            )
    groups = _groups(sas)
    lines = [_state(sa, groups[sa.name], seqs.get(sa.name, 0), port) for sa in sas]
    seen: set[str] = set()
    for priority, (name, text) in enumerate(_policies(sas, policies, groups), _FIRST_PRIORITY):
        # The kernel accepts a selector once per direction; of two equal ones the first applies.
        if name not in seen:
            seen.add(name)
            lines.append(f"xfrm policy add {name} priority {priority} {text}")
    return "".join(f"{line}\n" for line in lines)


def _groups(sas: Sequence[Sa]) -> dict[str, int]:
    """The reqid of each SA: the SPI of the first SA of its tunnel, or of its pair."""
    outbound = {sa.name: sa for sa in sas if sa.direction is Direction.OUTBOUND}
    back = {sa.pair: sa.name for sa in outbound.values() if sa.pair is not None}
    first: dict[str, int] = {}
    groups = {}
    for sa in sas:
        partner = sa.pair if sa.pair in outbound else back.get(sa.name)
        owner = sa.name if sa.direction is Direction.OUTBOUND else partner or sa.name
        group = f"tunnel {sa.tunnel}" if sa.tunnel is not None else f"sa {owner}"
        groups[sa.name] = first.setdefault(group, sa.spi)
    return groups


def _state(sa: Sa, reqid: int, seq: int, port: int) -> str:
    outbound = sa.direction is Direction.OUTBOUND
    window = min(sa.replay_window, MAX_KERNEL_WINDOW)
    words = [
        f"xfrm state add {_ends(sa)} proto esp spi {sa.spi:#010x} reqid {reqid} mode {sa.mode}",
        f"aead {KERNEL_CIPHERS[sa.suite.cipher]} 0x{format_keymat(sa.keymat)}",
        f"{8 * sa.suite.icv_len} replay-window {window}",
    ]
    if seq:
        # The peer's window is placed so that every number up to ours lies left of it: none is
        # accepted again.
        last = seq + (window if outbound else MARGIN)
        if last > (2**64 - 1 if sa.esn else 2**32 - 1):
            raise EspGwError(
                "the sequence numbers are nearly used up",
                where=f"SA {sa.name}",
                hint="give both ends new keys",
            )
        end = "replay-seq" if outbound else "replay-oseq"
        words.append(f"{end} {last % 2**32:#x}")
        words += [f"{end}-hi {last >> 32:#x}"] if sa.esn else []
    flags = ["esn"] if sa.esn else []
    if sa.mode is Mode.TUNNEL and any(s.local.version != sa.local.version for s in sa.selectors):
        flags.append("af-unspec")
    if flags:
        words.append(f"flag {' '.join(flags)}")
    if sa.encapsulation is Encapsulation.UDP:
        ports = (port, sa.remote_port) if outbound else (sa.remote_port, port)
        # The last word is the address before a NAT, which the kernel ignores.
        words.append(f"encap espinudp {ports[0]} {ports[1]} {type(sa.local)(0)}")
    return " ".join(words)


def _ends(sa: Sa) -> str:
    if sa.direction is Direction.OUTBOUND:
        return f"src {sa.local} dst {sa.remote}"
    return f"src {sa.remote} dst {sa.local}"


def _policies(
    sas: Sequence[Sa], policies: Sequence[Policy], groups: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """Selector with direction, and template, of each policy of the peer, in order."""
    known = {sa.name: sa for sa in sas}
    inbound = [sa for sa in sas if sa.direction is Direction.INBOUND]
    for policy in policies:
        if policy.action is not Action.PROTECT or policy.sas[0] not in known:
            continue
        sa = known[policy.sas[0]]
        template = _template(sa, groups[sa.name])
        for selector in policy.selectors:
            yield _selector(policy.name, selector, "in"), template
            if sa.mode is Mode.TUNNEL:
                yield _selector(policy.name, selector, "fwd"), template
    for sa in inbound:
        for selector in sa.selectors:
            yield _selector(sa.name, selector, "out"), _template(sa, groups[sa.name])


def _template(sa: Sa, reqid: int) -> str:
    return f"tmpl {_ends(sa)} proto esp reqid {reqid} mode {sa.mode}"


def _selector(name: str, selector: Selector, direction: str) -> str:
    """The peer's selector for traffic that leaves it ("out") or arrives ("in", "fwd")."""
    ours: tuple[IPNetwork, PortRange | None] = (selector.local, selector.local_port)
    theirs: tuple[IPNetwork, PortRange | None] = (selector.remote, selector.remote_port)
    (src, sport), (dst, dport) = (theirs, ours) if direction == "out" else (ours, theirs)
    text = f"src {src} dst {dst}"
    if selector.protocol is not None:
        text += f" proto {selector.protocol}"
    for end, ports in (("sport", sport), ("dport", dport)):
        if ports is None:
            continue
        if selector.protocol is None or ports.first != ports.last or not ports.first:
            raise EspGwError(
                f"ip xfrm can't express the ports {ports}: it takes one port of one protocol",
                where=name,
                hint="leave the ports out, or give each port its own tunnel",
            )
        text += f" {end} {ports.first}"
    return f"{text} dir {direction}"
