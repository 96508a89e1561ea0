"""Targets of the native engine, as ratios within one run, and their verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab.bench.core import SUPER_LEN
from lab.bench.plan import NULL, PEERS, suite_system
from lab.bench.results import Results

MAX_RSS_MIB = 64.0
MAX_SA_BYTES = 4096.0
MAX_IDLE = 0.1
"""Percent of a core."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound: a minimum, or a maximum if `is_upper`."""

    what: str
    bound: float
    figure: Callable[[Results], float | None]
    is_upper: bool = False

    def verdict(self, value: float | None) -> str:
        """The word "reached", or the margin by which the target was missed."""
        if value is None:
            return "not measured"
        if value <= self.bound if self.is_upper else value >= self.bound:
            return "reached"
        return f"missed by {100 * abs(value - self.bound) / self.bound:.0f} %"


def _to(peer: str, test: str, metric: str) -> Callable[[Results], float | None]:
    return lambda results: results.ratio(("native", test, metric), (peer, test, metric))


def _to_best(test: str, metric: str) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        peer = results.best(PEERS, test, metric)
        return None if peer is None else _to(peer, test, metric)(results)

    return figure


def _median(system: str, test: str, metric: str) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        found = results.get(system, test, metric)
        return None if found is None else found.median

    return figure


def _cipher(mode: str) -> Callable[[Results], float | None]:
    sealed = (suite_system("aes256gcm16", mode), "tcp", "throughput")
    return lambda results: results.ratio(sealed, (suite_system(NULL, mode), "tcp", "throughput"))


def _threads(test: str) -> Callable[[Results], float | None]:
    def figure(results: Results) -> float | None:
        name = f"core_{test}_{SUPER_LEN}"
        found = [
            result.median
            for result in results
            if result.test == name and result.metric == "speedup_2_threads_own"
        ]
        return max(found, default=None)

    return figure


TARGETS = (
    Target(
        "single-stream TCP: native / wireguard-go", 2.3, _to("wireguard-go", "tcp", "throughput")
    ),
    Target("the same: native / strongSwan", 11, _to("strongswan", "tcp", "throughput")),
    Target(
        "the same, wire-size packets: native / wireguard-go",
        1.6,
        _to("wireguard-go", "tcp_wire", "throughput"),
    ),
    Target("UDP 1360 bytes: native / best peer", 1.8, _to_best("udp_1360", "packets")),
    Target("UDP 64 bytes: native / best peer", 1.5, _to_best("udp_64", "packets")),
    Target("idle ping RTT: native / best peer", 0.6, _to_best("rtt", "median"), is_upper=True),
    Target("AES-256-GCM / cipher left out, tunnel mode", 0.6, _cipher("tunnel")),
    Target("AES-256-GCM / cipher left out, transport mode", 0.6, _cipher("transport")),
    Target(
        "10,000 SAs / 2 SAs, one flow",
        0.95,
        lambda results: results.ratio(
            ("native", "scale_10000", "throughput"), ("native", "scale_2", "throughput")
        ),
    ),
    Target("core alone, encap, 2 threads / 1", 1.8, _threads("encap")),
    Target("core alone, decap, 2 threads / 1", 1.8, _threads("decap")),
    Target(
        "resident MiB of a gateway with 4 workers",
        MAX_RSS_MIB,
        _median("native-4-workers", "memory", "rss"),
        is_upper=True,
    ),
    Target(
        "bytes of memory per SA, of 10,000",
        MAX_SA_BYTES,
        _median("native", "scale_10000", "memory_per_sa"),
        is_upper=True,
    ),
    Target("idle gateway, % of a core", MAX_IDLE, _median("native", "idle", "cpu"), is_upper=True),
)
