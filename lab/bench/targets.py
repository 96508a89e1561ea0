"""Targets of the native engine, as ratios within one run, and their verdicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lab.bench.core import SUPER_LEN
from lab.bench.plan import BASELINE, NULL, PEERS, TWO_TUNNELS, suite_system
from lab.bench.results import Key, Results

MAX_RSS_MIB = 64.0
MAX_SA_BYTES = 4096.0
MAX_IDLE = 0.1
"""Percent of a core."""


Figure = Callable[[Results], float | None]
"""The figure of a target, from the results; None if it was not measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its bound: a minimum, or a maximum if `is_upper`."""

    what: str
    bound: float
    figure: Figure
    is_upper: bool = False

    def verdict(self, value: float | None) -> str:
        """The word "reached", or the margin by which the target was missed."""
        if value is None:
            return "not measured"
        if value <= self.bound if self.is_upper else value >= self.bound:
            return "reached"
        return f"missed by {100 * abs(value - self.bound) / self.bound:.0f} %"


def _ratio(one: Key, other: Key) -> Figure:
    return lambda results: results.ratio(one, other)


def _to(peer: str, test: str, metric: str) -> Figure:
    return _ratio(("native", test, metric), (peer, test, metric))


def _to_best(test: str, metric: str, system: str = "native") -> Figure:
    def figure(results: Results) -> float | None:
        peer = results.best(PEERS, test, metric)
        return None if peer is None else results.ratio((system, test, metric), (peer, test, metric))

    return figure


def _to_idle(test: str) -> Figure:
    return _ratio(("native", test, "median"), ("native", "rtt", "median"))


def _most_instructions(results: Results) -> float | None:
    """The largest ratio to the baseline's, over all sizes and providers."""
    ratios = [
        results.ratio(
            (result.system, result.test, result.metric),
            (result.system.replace("native", BASELINE, 1), result.test, result.metric),
        )
        for result in results
        if result.metric == "instructions_per_packet" and result.system.startswith("native-")
    ]
    return max((ratio for ratio in ratios if ratio is not None), default=None)


def _median(system: str, test: str, metric: str) -> Figure:
    def figure(results: Results) -> float | None:
        found = results.get(system, test, metric)
        return None if found is None else found.median

    return figure


def _cipher(mode: str) -> Figure:
    sealed = (suite_system("aes256gcm16", mode), "tcp", "throughput")
    return _ratio(sealed, (suite_system(NULL, mode), "tcp", "throughput"))


def _threads(test: str) -> Figure:
    def figure(results: Results) -> float | None:
        name = f"core_{test}_{SUPER_LEN}"
        found = [
            result.median
            for result in results
            if result.test == name and result.metric == "speedup_2_threads_own"
        ]
        return max(found, default=None)

    return figure


_WG = "wireguard-go"
TARGETS = (
    Target(
        "ping beside one TCP stream, median: native / idle native",
        1.0,
        _to_idle("rtt_loaded"),
        is_upper=True,
    ),
    Target("the same with BBR, median", 1.0, _to_idle("rtt_loaded_bbr"), is_upper=True),
    Target(
        "ping beside one TCP stream, p99: native / wireguard-go",
        0.1,
        _to(_WG, "rtt_loaded", "p99"),
        is_upper=True,
    ),
    Target("the same with BBR, p99", 0.1, _to(_WG, "rtt_loaded_bbr", "p99"), is_upper=True),
    Target("single-stream TCP: native / wireguard-go", 3.0, _to(_WG, "tcp", "throughput")),
    Target("the same, wire-size packets", 2.6, _to(_WG, "tcp_wire", "throughput")),
    Target(
        "four TCP streams, two tunnels: native / wireguard-go",
        3.0,
        _ratio(
            (TWO_TUNNELS.format("native"), "tcp_tunnels", "throughput"),
            (TWO_TUNNELS.format(_WG), "tcp_tunnels", "throughput"),
        ),
    ),
    Target(
        "receiver's CPU per packet, 8 UDP flows in turn: native / baseline",
        0.5,
        _to(BASELINE, "cost_udp_8", "receiver"),
        is_upper=True,
    ),
    Target(
        "packets per CPU-second of the gateways, UDP 64 bytes: native / best peer",
        5.0,
        _to_best("udp_64", "per_gateways_cpu"),
    ),
    Target(
        "CPU of the gateways per gigabit of TCP, at 1 Gbit/s: native / best peer",
        0.2,
        _to_best("cost_tcp", "gateways"),
        is_upper=True,
    ),
    Target("the same at full speed", 0.2, _to_best("tcp", "gateways"), is_upper=True),
    Target("idle ping: native / best peer", 0.9, _to_best("rtt", "median"), is_upper=True),
    Target(
        "the same with latency: low",
        0.7,
        _to_best("rtt", "median", "native-low-latency"),
        is_upper=True,
    ),
    Target(
        "instructions per packet, the worst case: native / baseline",
        1.02,
        _most_instructions,
        is_upper=True,
    ),
    Target("single-stream TCP: native / strongSwan", 11, _to("strongswan", "tcp", "throughput")),
    Target("UDP 1360 bytes: native / best peer", 1.8, _to_best("udp_1360", "packets")),
    Target("UDP 64 bytes: native / best peer", 1.5, _to_best("udp_64", "packets")),
    Target("AES-256-GCM / cipher left out, tunnel mode", 0.6, _cipher("tunnel")),
    Target("AES-256-GCM / cipher left out, transport mode", 0.6, _cipher("transport")),
    Target(
        "10,000 SAs / 2 SAs, one flow",
        0.95,
        _ratio(("native", "scale_10000", "throughput"), ("native", "scale_2", "throughput")),
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
