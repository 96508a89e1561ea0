"""State of one tunnel, from the counters of its SAs at intervals of a second or more.

The path of a packet has nothing to do for it: counters of authentic packets show that one came, and
drops in a row, without a good packet between, that none gets through.

Source: RFC 4303 2.6 (dummy packets).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from esp_gw.model import DropReason, TunnelState

KEEPALIVE_TIME = 20
"""Interval, in seconds, that is assumed for a peer not known to send keepalives."""
MISSED = 3
"""Intervals without an authentic packet after which a peer that sends keepalives is down."""
MIN_LIVENESS_TIME = 5.0
"""Lower bound on the liveness time, in seconds, however short the interval is."""
MIN_REFUSED = 3
"""Packets in a row that must be refused before a tunnel is failing."""
MIN_FAILING = 2.0
"""Seconds from the first to the last refused packet of a failing tunnel."""
FADE = 10.0
"""Seconds after the last refused packet for which a tunnel counts as failing."""
PATIENCE = 5.0
"""Seconds without a good packet before refused ones say anything about a tunnel."""
UNANSWERED = 10.0
"""Seconds for which inner packets get no answer before a cause is named."""

_BEFORE_AUTHENTICATION = (
    DropReason.UNKNOWN_SPI,
    DropReason.WRONG_ENCAPSULATION,
    DropReason.REPLAY_OLD,
    DropReason.REPLAY_DUPLICATE,
    DropReason.AUTH_FAILED,
    DropReason.TOO_SHORT,
)
_AFTER_AUTHENTICATION = (
    DropReason.BAD_PADDING,
    DropReason.BAD_NEXT_HEADER,
    DropReason.MALFORMED_INNER,
    DropReason.SELECTOR_MISMATCH,
    DropReason.ECN_NOT_ECT,
    DropReason.TUN_QUEUE_FULL,
    DropReason.TUN_ERROR,
)


_NONE: Counter[str] = Counter()
"""One for all streaks of nothing; never changed."""


@dataclass(frozen=True, slots=True)
class Sums:
    """Counters of a tunnel's SAs of each direction, those under replaced keys included.

    `sent` and `delivered` are inner packets; `numbers` are the sequence numbers used, dummies among
    them. `announced` are the dummies by other lanes than the first: they keep nothing alive.
    """

    sent: int = 0
    numbers: int = 0
    drops_out: Mapping[str, int] = field(default_factory=dict)
    delivered: int = 0
    drops_in: Mapping[str, int] = field(default_factory=dict)
    announced: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """Samples of one interval that belong to a tunnel and are in no counter of its SAs.

    `foreign`: packets of its peer with an SPI of no SA. `unmatched`: packets for its networks that
    match no policy. `asked`: an inner packet that asks for an answer was delivered.
    """

    foreign: int = 0
    unmatched: int = 0
    asked: bool = False


class Streak:
    """Refused packets in a row, by reason, since the last good one."""

    __slots__ = ("_first", "_last", "counts")

    def __init__(self) -> None:
        self.counts: Counter[str] = _NONE
        self._first = self._last = 0.0

    def add(self, counts: Mapping[str, int], now: float) -> None:
        """Count packets that were refused in the last interval."""
        if not counts:
            return
        if not self.counts:
            self._first = now
            self.counts = Counter()
        self._last = now
        self.counts.update(counts)

    def clear(self) -> None:
        """End the streak, because a good packet came."""
        self.counts = _NONE

    def fade(self, now: float) -> None:
        """End the streak if nothing was refused for FADE seconds."""
        if now - self._last >= FADE:
            self.counts = _NONE

    def lasts(self, now: float) -> bool:
        """Return True while the streak is long enough to be evidence, and has not faded."""
        return (
            self.counts.total() >= MIN_REFUSED
            and self._last - self._first >= MIN_FAILING
            and now - self._last < FADE
        )

    @property
    def worst(self) -> str:
        """The most frequent reason; packets of no SA count only where there are no others."""
        own = {reason: n for reason, n in self.counts.items() if reason != DropReason.UNKNOWN_SPI}
        counts = own if sum(own.values()) >= MIN_REFUSED else self.counts
        return max(counts, key=counts.__getitem__)


class Tracker:
    """Follows one tunnel; times are in seconds of one clock.

    `liveness` is the interval of keepalives that both ends were told to send, 0 for none.
    """

    # There are thousands.
    __slots__ = (
        *("_asked", "_began", "_gap", "_last_delivered", "_last_dummy", "_last_sent", "_sums"),
        *("heard", "last_in", "last_out", "liveness", "mismatched", "refused_in", "refused_out"),
        *("rejected_in", "unmatched"),
    )

    def __init__(self, liveness: int, now: float) -> None:
        self.liveness = liveness
        self.refused_in, self.rejected_in, self.refused_out = Streak(), Streak(), Streak()
        self.unmatched, self.mismatched = Streak(), Streak()
        self.heard = False
        self.last_in: float | None = None
        self.last_out: float | None = None
        self._sums: Sums | None = None
        self._began = now
        self._last_delivered = self._last_sent = now
        self._last_dummy: float | None = None
        self._gap = 0.0
        self._asked: float | None = None

    def look(self, sums: Sums, seen: Seen, now: float) -> None:
        """Take the counters of this moment, and the samples since the last one."""
        # The first look is the baseline: its counters are those of the time before.
        before, self._sums = self._sums or sums, sums
        drops_in = _grown(before.drops_in, sums.drops_in)
        drops_out = _grown(before.drops_out, sums.drops_out)
        dummies = drops_in.get(DropReason.DUMMY, 0)
        delivered = max(sums.delivered - before.delivered, 0)
        rejected = _of(_AFTER_AUTHENTICATION, drops_in)
        keepalives = dummies - max(sums.announced - before.announced, 0)
        self._arrived(dummies, delivered, rejected, now)
        if keepalives > 0:
            self._kept_alive(now)
        refused = _of(_BEFORE_AUTHENTICATION, drops_in)
        if seen.foreign:
            refused[DropReason.UNKNOWN_SPI] = seen.foreign
        if not (dummies or delivered or rejected):
            self.refused_in.add(refused, now)
        self._left(max(sums.sent - before.sent, 0), drops_out, now)
        if sums.numbers > before.numbers:
            self.last_out = now
        unmatched = Counter[str]({DropReason.NO_POLICY: seen.unmatched} if seen.unmatched else {})
        mismatched = _of((DropReason.SELECTOR_MISMATCH,), drops_in)
        for streak, counts in ((self.unmatched, unmatched), (self.mismatched, mismatched)):
            streak.fade(now)
            streak.add(counts, now)
        self._asks(seen.asked, now)

    def _arrived(self, dummies: int, delivered: int, rejected: Counter[str], now: float) -> None:
        if dummies or delivered or rejected:
            self.last_in, self.heard = now, True
            self.refused_in.clear()
        if delivered:
            self._last_delivered = now
            self.rejected_in.clear()
        else:
            self.rejected_in.add(rejected, now)
        if delivered or rejected:
            self._last_dummy = None

    def _kept_alive(self, now: float) -> None:
        if self._last_dummy is not None:
            self._gap = max(self._gap, now - self._last_dummy)
        self._last_dummy = now

    def _left(self, sent: int, drops: Mapping[str, int], now: float) -> None:
        if sent:
            self._last_sent = now
            self.refused_out.clear()
        else:
            self.refused_out.add(drops, now)

    def _asks(self, asked: bool, now: float) -> None:
        if self._last_sent == now or now - self._last_delivered > PATIENCE:
            self._asked = None
        elif asked and self._asked is None:
            self._asked = now

    @property
    def liveness_time(self) -> float:
        """Seconds for which an authentic packet makes the tunnel `up`."""
        interval = self.liveness or self._gap or KEEPALIVE_TIME
        return max(MISSED * interval, MIN_LIVENESS_TIME)

    @property
    def expects(self) -> bool:
        """True if the peer was told to send keepalives, or was heard to send them."""
        return self.liveness > 0 or self._gap > 0

    @property
    def heard_dummies(self) -> bool:
        """True if the peer is known to send authentic keepalives."""
        return self._gap > 0 or self._last_dummy is not None

    def is_one_way(self, now: float) -> bool:
        """Return True if inner packets come, and none has gone for a while."""
        return now - self._last_delivered < PATIENCE <= now - self._last_sent

    def is_unanswered(self, now: float) -> bool:
        """Return True if inner packets that ask for an answer come, and nothing goes back."""
        return self._asked is not None and now - self._asked >= UNANSWERED

    def inbound_fails(self, now: float) -> bool:
        """Return True if packets come, and none is authentic."""
        silent = now - (self._began if self.last_in is None else self.last_in)
        # A peer that is heard now and then is not to be called failing by anybody's forgeries.
        patience = self.liveness_time if self.expects and self.heard else PATIENCE
        return silent >= patience and self.refused_in.lasts(now)

    def inner_fails(self, now: float) -> bool:
        """Return True if authentic packets come, and none is delivered."""
        return now - self._last_delivered >= PATIENCE and self.rejected_in.lasts(now)

    def outbound_fails(self, now: float) -> bool:
        """Return True if none of our packets can be sent."""
        return now - self._last_sent >= MIN_FAILING and self.refused_out.lasts(now)

    def state(self, now: float) -> TunnelState:
        """Return the state at `now`, which is not before the last look."""
        if self.inbound_fails(now) or self.inner_fails(now) or self.outbound_fails(now):
            return TunnelState.FAILING
        silent = now - (self._began if self.last_in is None else self.last_in)
        if self.expects and silent > self.liveness_time:
            return TunnelState.DOWN
        if self.last_in is not None and silent <= self.liveness_time:
            return TunnelState.UP
        return TunnelState.QUIET


def _grown(before: Mapping[str, int], now: Mapping[str, int]) -> dict[str, int]:
    grown = {reason: count - before.get(reason, 0) for reason, count in now.items()}
    return {reason: count for reason, count in grown.items() if count > 0}


def _of(reasons: tuple[DropReason, ...], counts: Mapping[str, int]) -> Counter[str]:
    return Counter({reason: counts[reason] for reason in reasons if reason in counts})
