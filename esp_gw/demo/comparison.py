"""Traffic through two gateways on this machine, with and without something, in turn."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.demo.run import PROGRAMS, check_machine
from esp_gw.demo.signals import ended_by_signals
from esp_gw.demo.traffic import iperf, iperf_server, ping

ROUNDS = 3
SECONDS = 3
_PINGS = 50


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: Gbit/s of one TCP stream, and the mean round trip in microseconds before it."""

    gbit_s: float
    rtt_us: float


def compare(
    without: Callable[[], object], with_it: Callable[[], object]
) -> list[tuple[Sample, Sample]]:
    """Run traffic after each of two actions, a few rounds, each in the other order than the last.

    Raises LabError if it can't run here; everything that it created is removed.
    """
    check_machine(PROGRAMS)
    rounds: list[tuple[Sample, Sample]] = []
    with (
        ended_by_signals(),
        tempfile.TemporaryDirectory(prefix="esp-gw-tune-") as folder,
        gateway_pair(Path(folder), PairPlan()) as pair,
    ):
        pair.start()
        _run(pair)  # The first run meets cold caches.
        for number in range(ROUNDS):
            print(f"  round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
            found: dict[bool, Sample] = {}
            for has_it in (False, True) if number % 2 == 0 else (True, False):
                (with_it if has_it else without)()
                found[has_it] = _run(pair)
            rounds.append((found[False], found[True]))
    return rounds


def _run(pair: GatewayPair) -> Sample:
    near, far = pair.a.namespace, pair.b.namespace
    target = pair.plan.inner(1)
    rtt = ping(near, target, count=_PINGS)
    with contextlib.ExitStack() as stack:
        stack.enter_context(iperf_server(far, target))
        rate = iperf(near, target, SECONDS, "-B", pair.plan.inner(0))
    return Sample(rate.gbit_s, rtt.rtt_us)
