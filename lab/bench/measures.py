"""The tests: the load put on a link, and the figures taken from it."""

from __future__ import annotations

import contextlib
import math
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_gw.demo.gateways import usage
from esp_gw.demo.netns import Namespace, end
from esp_gw.demo.traffic import iperf_server, iperf_summary
from esp_gw.errors import LabError
from lab.bench.loss import Probe, search
from lab.bench.model import Lengths, Link, Memory, Sample

PING_INTERVAL = 0.01
_FEATURE = re.compile(r"^\s*([\w-]+): (on|off)", re.MULTILINE)
_TIME = re.compile(r"time=([\d.]+) ms")
_WIRE_SIZE = {
    "tx-udp-segmentation": "off",
    "tcp-segmentation-offload": "off",
    "generic-receive-offload": "on",
}
_QUEUED_S = 0.05
_SENDERS_LIMIT = "the sender's own limit"
_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_MIB = 2**20
_LARGE_BUFFER = 4 * _MIB

Run = Callable[[Link, Lengths, Memory], list[Sample]]


@dataclass(frozen=True, slots=True)
class Test:
    """One test: its label for people, the function that runs it, its approximate seconds."""

    name: str
    what: str
    run: Run
    seconds: Callable[[Lengths], float]


def tcp(*options: str) -> Run:
    """An iperf3 TCP test with `options`: Gbit/s received, both directions summed."""

    def run(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
        with iperf_server(link.b, link.target), _cpu(link) as cpu:
            summary = iperf_summary(
                *(link.a, link.target, lengths.tcp), "-B", link.source, *_cubic(), *options
            )
        return [Sample("throughput", "Gbit/s", received_gbit_s(summary), cpu.percent(summary))]

    return run


def received_gbit_s(summary: dict[str, Any]) -> float:
    """Gbit/s received by both ends of an iperf3 run, summed."""
    ways = [
        summary[key] for key in ("sum_received", "sum_received_bidir_reverse") if key in summary
    ]
    return math.fsum(way["bits_per_second"] for way in ways) / 1e9


def tcp_wire(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """TCP over a wire that carries no packet above its MTU, like a NIC without offloads."""
    with contextlib.ExitStack() as undo:
        for host in (link.a, link.b):
            before = parse_features(host.run("ethtool", "-k", "wan").stdout)
            undo.callback(_set_features, host, {name: before[name] for name in _WIRE_SIZE})
            _set_features(host, _WIRE_SIZE)
        return tcp()(link, lengths, memory)


def parse_features(output: str) -> dict[str, str]:
    """Each feature that `ethtool -k` lists, with its state: on or off."""
    return dict(_FEATURE.findall(output))


def _set_features(host: Namespace, states: Mapping[str, str]) -> None:
    host.run("ethtool", "-K", "wan", *(word for pair in states.items() for word in pair))


def udp(size: int) -> Run:
    """The highest rate of UDP datagrams with `size` payload bytes under 1 % loss."""

    def run(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
        def probe(packets_s: float) -> Probe:
            bits = f"{packets_s * size * 8:.0f}"
            options = ("-u", "-b", bits, "-l", str(size), "-w", _socket_buffer())
            with iperf_server(link.b, link.target), _cpu(link) as cpu:
                summary = iperf_summary(
                    *(link.a, link.target, lengths.udp), "-B", link.source, *options
                )
            return udp_probe(summary, size, cpu.percent(summary))

        key = f"udp_{size}"
        found = search(probe, memory.rates.get(key), lengths.probes)
        memory.rates[key] = found.next_guess
        best = found.best
        if best is None:
            raise LabError("every rate tried lost more than 1 %")
        note = _SENDERS_LIMIT if found.is_senders_limit else ""
        gbit_s = best.received * size * 8 / 1e9
        return [
            Sample("throughput", "Gbit/s", gbit_s, best.cpu, note),
            Sample("packets", "packets/s", best.received, best.cpu, note),
        ]

    return run


def udp_probe(summary: dict[str, Any], size: int, cpu: tuple[float, ...]) -> Probe:
    """The probe that an iperf3 UDP run with `size` bytes per packet amounts to.

    The loss is the larger of two fractions: the packets that the receiver found missing in the
    sequence; and the packets sent but not received, less those that may have been in flight when
    the sender ended. The second one sees packets lost after the last one received.

    Raises LabError if no packet came through.
    """
    sent, received = summary["sum_sent"], summary["sum_received"]
    packets = sent["packets"]
    if packets <= 0 or received["packets"] <= 0:
        raise LabError("no UDP packet came through")
    arrived = received["bytes"] / size
    on_the_way = packets / sent["seconds"] * _QUEUED_S
    return Probe(
        sent=packets / sent["seconds"],
        received=arrived / received["seconds"],
        loss=max(
            received["lost_packets"] / received["packets"],
            (packets - arrived - on_the_way) / packets,
        ),
        cpu=cpu,
    )


def rtt(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Ping round trip on an otherwise idle link."""
    with _cpu(link) as cpu:
        times = ping_times(link, lengths.pings)
    return _latency(times, cpu.percent())


def rtt_loaded(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Ping round trip beside a single TCP stream."""
    seconds = math.ceil(lengths.pings * PING_INTERVAL) + 3
    with iperf_server(link.b, link.target):
        stream = link.a.start(
            *("iperf3", "-c", link.target, "-B", link.source, "-t", str(seconds)),
            *_cubic(),
            *("--connect-timeout", "3000", "--forceflush"),
            stdout=subprocess.PIPE,
        )
        try:
            # The first interval line: the stream has run for a second.
            if not any("bits/sec" in line for line in stream.stdout or ()):
                raise LabError("the TCP stream did not start")
            with _cpu(link) as cpu:
                times = ping_times(link, lengths.pings)
        finally:
            end(stream)
    return _latency(times, cpu.percent())


def idle(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Processor time of each daemon without traffic, by the scheduler's own clock."""
    before = [scheduled_s(pid) for pid in link.pids]
    time.sleep(lengths.idle)
    cpu = tuple(
        100 * (scheduled_s(pid) - start) / lengths.idle
        for pid, start in zip(link.pids, before, strict=True)
    )
    return [Sample("cpu", "% of a core", max(cpu), cpu)] if cpu else []


def memory_use(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Resident memory of the larger daemon, after the preceding tests."""
    sizes = [usage(pid).rss / _MIB for pid in link.pids]
    return [Sample("rss", "MiB", max(sizes))] if sizes else []


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
        *("ping", "-n", "-I", link.source, "-c", str(count), "-i", str(PING_INTERVAL)),
        *("-W", "1", link.target),
        timeout=count * PING_INTERVAL + 30,
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


def scheduled_s(pid: int) -> float:
    """Seconds of run time of all threads of a process, to the nanosecond (proc(5), schedstat)."""
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _cubic() -> tuple[str, ...]:
    # The default congestion control of most machines, whatever the default here.
    return ("-C", "cubic") if "cubic" in _CONGESTION_CONTROLS.read_text().split() else ()


def _socket_buffer() -> str:
    # As large as the machine allows: the bottleneck should be the tunnel, not iperf3's socket.
    limits = (Path(f"/proc/sys/net/core/{way}mem_max").read_text() for way in "rw")
    return str(min(_LARGE_BUFFER, *map(int, limits)))


def _latency(times: Sequence[float], cpu: tuple[float, ...]) -> list[Sample]:
    return [
        Sample("median", "us", statistics.median(times), cpu),
        Sample("p99", "us", percentile(times, 99), cpu),
    ]


class _Cpu:
    def __init__(self, link: Link) -> None:
        self._pids = link.pids
        self._before = [usage(pid).cpu_s for pid in self._pids]
        self._began = time.monotonic()

    def finish(self) -> None:
        self._elapsed = time.monotonic() - self._began
        self._used = [
            usage(pid).cpu_s - before for pid, before in zip(self._pids, self._before, strict=True)
        ]

    def percent(self, summary: dict[str, Any] | None = None) -> tuple[float, ...]:
        """Percent of a core for each daemon, over iperf3's own duration if `summary` has one."""
        seconds = self._elapsed
        if summary is not None:
            seconds = summary.get("sum_sent", summary.get("sum", {})).get("seconds") or seconds
        return tuple(100 * used / seconds for used in self._used)


@contextlib.contextmanager
def _cpu(link: Link) -> Iterator[_Cpu]:
    cpu = _Cpu(link)
    yield cpu
    cpu.finish()


def _tcp_seconds(lengths: Lengths) -> float:
    return lengths.tcp + 0.3


def _udp_seconds(lengths: Lengths) -> float:
    return lengths.probes * (lengths.udp + 0.3) * 0.9


def _ping_seconds(lengths: Lengths) -> float:
    return lengths.pings * PING_INTERVAL + 0.2


TESTS = {
    test.name: test
    for test in (
        Test("tcp", "one TCP stream", tcp(), _tcp_seconds),
        Test("tcp_wire", "one TCP stream, wire-size packets", tcp_wire, _tcp_seconds),
        Test("tcp_reverse", "one TCP stream, reverse", tcp("-R"), _tcp_seconds),
        Test("tcp_bidir", "TCP both ways at once", tcp("--bidir"), _tcp_seconds),
        Test("tcp_4", "four TCP streams", tcp("-P", "4"), _tcp_seconds),
        *(
            Test(f"udp_{size}", f"UDP, {size} bytes, under 1 % loss", udp(size), _udp_seconds)
            for size in (64, 512, 1360)
        ),
        Test("rtt", "ping, idle", rtt, _ping_seconds),
        Test(
            "rtt_loaded", "ping beside one TCP stream", rtt_loaded, lambda n: _ping_seconds(n) + 2
        ),
        Test("memory", "resident memory", memory_use, lambda n: 0.0),
        Test("idle", "processor time without traffic", idle, lambda n: float(n.idle)),
    )
}
