"""The highest rate with little loss, by a bounded search over runs of a sender."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_LOSS = 0.01
"""The part of the packets that may be lost."""
_CLOSE_ENOUGH = 1.06
_FAR_STEP = 1.6
_NEAR_STEP = 1.15
_BELOW_OVERLOAD = 0.8
_MORE_PROBES = 4
"""Runs beyond those wanted, while none was good: some figure is better than none."""
_OWN_LIMIT = 0.93
"""A sender that sends less than this part of what it was asked for is at its own limit."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One run: what was sent and what arrived, in packets a second; the part lost.

    `cpu` is the percentage of a core that each daemon used.
    """

    sent: float
    received: float
    loss: float
    cpu: tuple[float, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the loss is under the limit."""
        return self.loss < MAX_LOSS


@dataclass(frozen=True, slots=True)
class Found:
    """The best good run, None where every one lost too much, and whether the sender limited it.

    `next_guess` is where another search had best begin, in packets a second.
    """

    best: Probe | None
    is_senders_limit: bool
    next_guess: float


def search(probe: Callable[[float], Probe], first: float | None, probes: int) -> Found:
    """Look for the highest rate in packets a second that `probe` carries with little loss.

    `probe(rate)` sends at that rate, 0 for as fast as it can. `first` is a guess from an earlier
    search; without one the first run is at full speed. At most `probes` runs, and a few more while
    none of them was good.
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
                # What came through an overload is less than what comes through without one, or
                # more, where a queue was emptied after its end.
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
