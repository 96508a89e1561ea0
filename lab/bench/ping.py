"""Round trips of ping: on an idle link, and beside TCP streams."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence

from esp_gw.errors import LabError
from lab.bench.cpu import metered
from lab.bench.model import Lengths, Link, Memory, Run, Sample
from lab.bench.streams import background, congestion_control

INTERVAL = 0.01
_TIME = re.compile(r"time=([\d.]+) ms")


def rtt(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Ping round trip on an otherwise idle link."""
    with metered(link.pids) as spent:
        times = ping_times(link, lengths.pings)
    return latency(times, spent[0].percent())


def rtt_loaded(streams: int, control: str) -> Run:
    """Ping round trip beside TCP streams with a congestion control."""

    def run(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
        seconds = math.ceil(lengths.pings * INTERVAL) + 3
        with background(link, seconds, streams, *congestion_control(control)):
            with metered(link.pids) as spent:
                times = ping_times(link, lengths.pings)
            return latency(times, spent[0].percent())

    return run


def answers(link: Link) -> bool:
    """True if a ping through the link is answered within a second."""
    return bool(_ping(link, 1))


def ping_times(link: Link, count: int) -> list[float]:
    """Round trips in microseconds. Raises LabError if no reply came."""
    times = _ping(link, count)
    if not times:
        raise LabError("no reply to any ping")
    return times


def _ping(link: Link, count: int) -> list[float]:
    result = link.a.run(
        *("ping", "-n", "-I", link.source, "-c", str(count), "-i", str(INTERVAL)),
        *("-W", "1", link.target),
        timeout=count * INTERVAL + 30,
        check=False,
    )
    return parse_ping(result.stdout)


def parse_ping(output: str) -> list[float]:
    """Every round trip in ping's output, in microseconds."""
    return [float(text) * 1000 for text in _TIME.findall(output)]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def latency(times: Sequence[float], cpu: tuple[float, ...]) -> list[Sample]:
    """Median and 99th percentile of round trips in microseconds."""
    return [
        Sample("median", "us", statistics.median(times), cpu),
        Sample("p99", "us", percentile(times, 99), cpu),
    ]
