"""The highest rate under the loss limit, by a bounded search over runs of a sender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_LOSS = 0.01
"""Fraction of the packets that may be lost."""
_CLOSE_ENOUGH = 1.06
_FAR_STEP = 1.6
_NEAR_STEP = 1.15
_BELOW_OVERLOAD = 0.8
_MORE_PROBES = 4
"""Extra runs beyond the requested ones while none was good: some figure is better than none."""
_OWN_LIMIT = 0.93
"""A sender that achieves less than this fraction of the requested rate is at its own limit."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One run: packets per second sent and received, and the fraction lost.

    `cpu` is the percentage of a core that each daemon used.
    """

    sent: float
    received: float
    loss: float
    cpu: tuple[float, ...] = ()

    @property
    def is_good(self) -> bool:
        """True if the loss is under the limit."""
        return self.loss < MAX_LOSS


@dataclass(frozen=True, slots=True)
class Found:
    """The best good run, None if every run lost too much; and if the sender limited it.

    `next_guess` is the best start for another search, in packets per second.
    """

    best: Probe | None
    is_senders_limit: bool
    next_guess: float


def search(probe: Callable[[float], Probe], first: float | None, probes: int) -> Found:
    """Search for the highest rate in packets per second that `probe` carries under the loss limit.

    `probe(rate)` sends at that rate, 0 for full speed. `first` is a guess from an earlier search;
    without it the first run is at full speed. At most `probes` runs, and a few more while none of
    them was good.
    """
    good: Probe | None = None
    best_asked = bad = 0.0
    limited = False
    asked = first or 0.0
    step = _NEAR_STEP if first else _FAR_STEP
    for number in range(probes + _MORE_PROBES):
        if number >= probes and good is not None:
            break
        run = probe(asked)
        at_limit = not asked or run.sent < asked * _OWN_LIMIT
        if run.is_good:
            if good is None or run.received > good.received:
                good = run
                limited = at_limit
            if at_limit:
                break
            best_asked = max(best_asked, asked)
        else:
            rate = run.sent if at_limit else asked
            bad = min(bad, rate) if bad else rate
            if not asked:
                # An overload passes less than the sustainable rate, or more if a queue drained
                # after the sender stopped: take the smaller of two guesses.
                asked = min(run.received, run.sent * _BELOW_OVERLOAD)
                continue
        if best_asked and bad:
            if bad <= best_asked * _CLOSE_ENOUGH:
                break
            asked = (best_asked * bad) ** 0.5
        elif bad:
            asked = bad / step
            step = _FAR_STEP
        else:
            asked = best_asked * step
    next_guess = bad / _FAR_STEP if good is None else good.sent
    return Found(good, limited, next_guess)
