"""Likely causes of what a tunnel loses: counters, times and observations in, causes out.

A healthy tunnel has none. An observation from outside, such as an ICMP error, can be forged: it
counts only for a tunnel in which nothing authentic comes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from esp_gw.health.tracker import Tracker
from esp_gw.model import DropReason, Encapsulation, IPAddress, TunnelState
from esp_gw.values import is_private

_NAMED = 8


class Kind(enum.StrEnum):
    """Kind of a likely cause."""

    LOCAL_ADDRESS_GONE = "local-address-gone"
    UNREACHABLE = "unreachable"
    SWAPPED_SPIS = "swapped-spis"
    FOREIGN_SPI = "foreign-spi"
    ENCAPSULATION = "encapsulation"
    KEY = "key"
    NEW_KEY = "new-key"
    REPLAY = "replay"
    MODE = "mode"
    ONE_SA = "one-sa"
    NUMBER_OF_SAS = "number-of-sas"
    SELECTORS_IN = "selectors-in"
    SELECTORS_OUT = "selectors-out"
    SOURCE = "source"
    MTU = "mtu"
    SEQUENCE_NUMBERS = "sequence-numbers"
    LANE = "lane"
    SENDING = "sending"
    TUN = "tun"
    BOTH_BEHIND_NAT = "both-behind-nat"
    UNLEARNED = "unlearned"
    SILENT = "silent"
    FORWARDING = "forwarding"
    NO_WAY_BACK = "no-way-back"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Cause:
    """A likely cause of a loss, and a sentence with the evidence and what to do."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Ends:
    """The outer ends of a tunnel, where the peer is now; `outbound` are the SPIs that we send."""

    local: IPAddress
    remote: IPAddress
    remote_port: int
    encapsulation: Encapsulation
    outbound: tuple[int, ...] = ()
    inbound: tuple[int, ...] = ()

    @property
    def peer(self) -> str:
        """The peer in a sentence: its address, as far as it has one."""
        return "its peer" if self.remote.is_unspecified else str(self.remote)


@dataclass(frozen=True, slots=True)
class DeadLane:
    """A lane that carries nothing, while another does: its SA is exhausted, or not installed."""

    number: int
    sa: str
    is_exhausted: bool


@dataclass(frozen=True, slots=True)
class Observations:
    """Observations of one tunnel beside its counters.

    `foreign_spis` came from the peer's address. `refused` has the addresses of the last refused
    inner packet by reason, `unreachable` the words of an ICMP error on our packets. `forward_chain`
    has a sentence on one that drops what no rule accepts. `asked` is the inner host whose answer is
    missing. `parts` are the trackers of the inbound SAs, where there are several. `peer_is_heard`
    is true if another tunnel hears the peer.
    """

    foreign_spis: tuple[int, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unreachable: str | None = None
    local_is_gone: bool = False
    forward_chain: str | None = None
    asked: IPAddress | None = None
    asked_is_here: bool = False
    parts: Mapping[str, Tracker] = field(default_factory=dict)
    peer_is_heard: bool = False
    dead_lanes: tuple[DeadLane, ...] = ()


Finder = Callable[[Tracker, Ends, Observations, float], Iterator[Cause]]


def likely_causes(
    tracker: Tracker, ends: Ends, observed: Observations, now: float
) -> tuple[Cause, ...]:
    """Return the likely causes of what a tunnel loses at `now`, the likeliest first."""
    found: dict[Kind, Cause] = {}
    for finder in _FINDERS:
        for cause in finder(tracker, ends, observed, now):
            found.setdefault(cause.kind, cause)
    return tuple(found.values())


def _no_address(
    tracker: Tracker, ends: Ends, observed: Observations, now: float
) -> Iterator[Cause]:
    if observed.local_is_gone and tracker.state(now) is not TunnelState.UP:
        yield Cause(
            Kind.LOCAL_ADDRESS_GONE,
            f"its local address {ends.local} is on no interface: give it back, or change 'local' "
            "and run 'esp-gw reload'",
        )


def _refused(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    if not tracker.inbound_fails(now):
        return
    streak, peer = tracker.refused_in, ends.peer
    match streak.worst:
        case DropReason.UNKNOWN_SPI:
            yield _spi(ends, observed)
        case DropReason.WRONG_ENCAPSULATION:
            yield _encapsulation(ends, f"ESP of {peer} arrives in the other form")
        case DropReason.REPLAY_OLD | DropReason.REPLAY_DUPLICATE:
            yield Cause(
                Kind.REPLAY,
                f"{peer} sends sequence numbers that were used: it restarted without keeping them, "
                "or someone replays its packets; give both ends new keys",
            )
        case DropReason.AUTH_FAILED if tracker.heard:
            yield Cause(
                Kind.NEW_KEY,
                f"packets of {peer} were authentic and are no longer: it has another key now, or "
                "they are forged; compare the keys of both ends",
            )
        case DropReason.AUTH_FAILED | DropReason.TOO_SHORT:
            yield Cause(
                Kind.KEY,
                f"no packet of {peer} is authentic: the key, the suite (with its ICV) or ESN "
                "differ at the two ends; compare 'esp-gw sa show' of both",
            )
        case reason:
            yield Cause(Kind.OTHER, f"packets of {peer} are dropped as {reason}")


def _parts(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    """Yield the causes in single SAs of a tunnel that works otherwise."""
    if tracker.inbound_fails(now):
        return
    for name, part in observed.parts.items():
        if part.inbound_fails(now) and not part.heard:
            for cause in _refused(part, ends, observed, now):
                yield Cause(Kind.ONE_SA, f"its SA {name} loses every packet: {cause.text}")
    next_spi = max(ends.inbound, default=0) + 1
    is_up_or_idle = tracker.state(now) in (TunnelState.UP, TunnelState.QUIET)
    if next_spi in observed.foreign_spis and is_up_or_idle:
        yield Cause(
            Kind.NUMBER_OF_SAS,
            f"{ends.peer} sends the SPI behind the last one of this tunnel (0x{next_spi:08x}), "
            "too: 'sas' is larger there; make it equal at both ends",
        )


def _spi(ends: Ends, observed: Observations) -> Cause:
    spis = ", ".join(f"0x{spi:08x}" for spi in observed.foreign_spis[:_NAMED])
    if not set(ends.outbound).isdisjoint(observed.foreign_spis):
        return Cause(
            Kind.SWAPPED_SPIS,
            f"{ends.peer} sends {spis}, which is the SPI of our outbound SA: the two SPIs are "
            "swapped at one end",
        )
    what = "the SPIs"
    if max(ends.inbound, default=0) + 1 in observed.foreign_spis:
        what = "the SPIs and 'sas'"
    return Cause(
        Kind.FOREIGN_SPI,
        f"{ends.peer} sends SPIs of no SA here ({spis}): compare {what} of both ends",
    )


def _encapsulation(ends: Ends, seen: str) -> Cause:
    other = "none" if ends.encapsulation is Encapsulation.UDP else "udp"
    return Cause(
        Kind.ENCAPSULATION,
        f"{seen}: 'encapsulation' is {ends.encapsulation} here and probably {other} at the peer; "
        "make them equal",
    )


def _mismatched(
    tracker: Tracker, ends: Ends, observed: Observations, now: float
) -> Iterator[Cause]:
    """Yield a mismatch of selectors, also beside good traffic: one prefix of several is wrong."""
    if tracker.mismatched.lasts(now):
        inner = observed.refused.get(DropReason.SELECTOR_MISMATCH)
        which = f" ({inner})" if inner else ""
        yield Cause(
            Kind.SELECTORS_IN,
            f"{ends.peer} sends what this tunnel may not carry{which}: its local_ts and "
            "remote_ts have to mirror those of this end",
        )


def _rejected(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    if not tracker.inner_fails(now):
        return
    reason = tracker.rejected_in.worst
    match reason:
        case DropReason.SELECTOR_MISMATCH:
            # Left to _mismatched.
            return
        case DropReason.BAD_NEXT_HEADER | DropReason.MALFORMED_INNER | DropReason.BAD_PADDING:
            yield Cause(
                Kind.MODE,
                f"authentic packets of {ends.peer} hold no IP packet: one end uses transport "
                "mode, the other tunnel mode",
            )
        case DropReason.TUN_QUEUE_FULL | DropReason.TUN_ERROR:
            yield Cause(
                Kind.TUN, f"the TUN device takes no packet ({reason}): it is down, or the host busy"
            )
        case _:
            yield Cause(Kind.OTHER, f"packets of {ends.peer} are dropped as {reason}")


def _unsent(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    if not tracker.outbound_fails(now):
        return
    reason = tracker.refused_out.worst
    match reason:
        case DropReason.SEND_ERROR:
            source = "" if ends.local.is_unspecified else f" from {ends.local}"
            yield Cause(
                Kind.SENDING,
                f"nothing can be sent to {ends.remote}: no route to it, or a firewall of this host "
                f"refuses it; see 'ip route get {ends.remote}{source}'",
            )
        case DropReason.TOO_BIG:
            yield Cause(
                Kind.MTU,
                f"packets are too big for the path to {ends.remote} and get no smaller: something "
                "ignores ICMP 'too big'; lower 'mtu' or clamp the MSS",
            )
        case DropReason.LEASE_EXHAUSTED:
            yield Cause(
                Kind.SEQUENCE_NUMBERS,
                "the ledger can't lease sequence numbers: the disk is full, or too slow",
            )
        case DropReason.SEQ_EXHAUSTED:
            yield Cause(
                Kind.SEQUENCE_NUMBERS, "all sequence numbers are used: give both ends new keys"
            )
        case DropReason.SELECTOR_MISMATCH:
            inner = observed.refused.get(reason)
            which = f" ({inner})" if inner else ""
            yield Cause(Kind.SELECTORS_OUT, f"packets don't fit the SA of their policy{which}")
        case _:
            yield Cause(Kind.OTHER, f"packets to {ends.remote} are dropped as {reason}")


def _lanes(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    """Yield the lanes that carry nothing; where none works, `_unsent` has the cause."""
    parts = [
        f"lane {lane.number} carries nothing: its SA {lane.sa} "
        + (
            "has used its last sequence number; give it a new key"
            if lane.is_exhausted
            else "is not installed"
        )
        for lane in observed.dead_lanes[:_NAMED]
    ]
    if parts:
        yield Cause(Kind.LANE, "; ".join(parts))


def _unmatched(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    if tracker.unmatched.lasts(now):
        inner = observed.refused.get(DropReason.NO_POLICY, "no addresses seen")
        yield Cause(
            Kind.SOURCE,
            f"packets for the other side have a source outside of local_ts ({inner}): add their "
            "network to local_ts here and to remote_ts there, or give them another source",
        )


def _unreachable(
    tracker: Tracker, ends: Ends, observed: Observations, now: float
) -> Iterator[Cause]:
    loses = tracker.state(now) is not TunnelState.UP
    if observed.unreachable is not None and loses:
        yield Cause(Kind.UNREACHABLE, observed.unreachable)


def _unlearned(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    """Yield that nothing goes to a peer that is heard: it may be replays, after a crash."""
    if ends.outbound and ends.remote.is_unspecified and tracker.heard:
        yield Cause(
            Kind.UNLEARNED,
            "its peer is heard, and nothing is sent to it yet: after a crash of this gateway the "
            "next packets may be replays, and do not tell where it is; let it send some hundred "
            "packets, or write its address as 'remote' and run 'esp-gw reload'",
        )


def _silent(tracker: Tracker, ends: Ends, observed: Observations, now: float) -> Iterator[Cause]:
    if tracker.state(now) is not TunnelState.DOWN:
        return
    through = "ESP (protocol 50)"
    if ends.encapsulation is Encapsulation.UDP:
        through = f"UDP port {ends.remote_port}"
    if ends.remote.is_unspecified:
        yield Cause(
            Kind.SILENT,
            "its peer may be anywhere, and nothing authentic has come from it yet: the other end "
            f"has to send first, to {ends.local}; with 'remote: any' at both ends none finds the "
            "other",
        )
        return
    if not tracker.heard and is_private(ends.local) and not is_private(ends.remote):
        yield Cause(
            Kind.BOTH_BEHIND_NAT,
            f"nothing ever came from {ends.remote}, and this end is behind a NAT: if the peer is, "
            f"too, let one of the two routers forward {through} to its gateway",
        )
    if observed.peer_is_heard:
        text = (
            f"nothing comes from {ends.remote} by this tunnel, and by another one it does: the "
            "peer lacks this one, or its SPIs differ"
        )
    else:
        text = (
            f"nothing comes from {ends.remote}: the peer is off, has another address or port, or "
            f"something on the way drops {through}"
        )
    if not tracker.heard_dummies:
        text += "; or it has no 'liveness': set it there, too, or leave it out here"
    yield Cause(Kind.SILENT, text)


def _unanswered(
    tracker: Tracker, ends: Ends, observed: Observations, now: float
) -> Iterator[Cause]:
    if not tracker.is_unanswered(now) or observed.asked is None or ends.remote.is_unspecified:
        return
    if observed.forward_chain is not None and not observed.asked_is_here:
        yield Cause(
            Kind.FORWARDING,
            f"packets for {observed.asked} get no answer, and {observed.forward_chain}",
        )
    if observed.asked_is_here:
        hint = "a firewall of this host drops them"
    else:
        hint = "it is off, or has no route back by way of this gateway"
    yield Cause(Kind.NO_WAY_BACK, f"packets for {observed.asked} get no answer: {hint}")


_FINDERS: tuple[Finder, ...] = (
    _no_address,
    _refused,
    _rejected,
    _mismatched,
    _unsent,
    _unreachable,
    _unmatched,
    _parts,
    _lanes,
    _unlearned,
    _silent,
    _unanswered,
)
"""From the most certain cause to the least."""
