"""The tests: their names, and the load and figures of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from esp_gw.demo.gateways import usage
from lab.bench.costs import cost_tcp, cost_udp
from lab.bench.cpu import scheduled_s
from lab.bench.ike import children, initiate, rekey
from lab.bench.model import Lengths, Link, Memory, Run, Sample
from lab.bench.ping import INTERVAL, rtt, rtt_loaded
from lab.bench.streams import BBR, CUBIC
from lab.bench.tcp import tcp, tcp_tunnels, tcp_wire
from lab.bench.udp import udp

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Test:
    """One test: its label for people, the function that runs it, its approximate seconds."""

    name: str
    what: str
    run: Run
    seconds: Callable[[Lengths], float]


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


def _tcp_seconds(lengths: Lengths) -> float:
    return lengths.tcp + 0.3


def _udp_seconds(lengths: Lengths) -> float:
    return lengths.probes * (lengths.udp + 0.6)


def _ping_seconds(lengths: Lengths) -> float:
    return lengths.pings * INTERVAL + 0.2


def _loaded_seconds(lengths: Lengths) -> float:
    return _ping_seconds(lengths) + 1.5


_LOADED = (
    Test(
        f"rtt_loaded{suffix}{'' if control == CUBIC else f'_{control}'}",
        f"ping beside {beside}{'' if control == CUBIC else f' ({control.upper()})'}",
        rtt_loaded(streams, control),
        _loaded_seconds,
    )
    for suffix, streams, beside in (("", 1, "one TCP stream"), ("_4", 4, "four TCP streams"))
    for control in (CUBIC, BBR)
)

IKE_TESTS = ("initiate", "rekey", "children")
"""Tests of what charon does, for systems that have one."""

TESTS = {
    test.name: test
    for test in (
        Test("tcp", "one TCP stream", tcp(), _tcp_seconds),
        Test("tcp_wire", "one TCP stream, wire-size packets", tcp_wire, _tcp_seconds),
        Test("tcp_reverse", "one TCP stream, reverse", tcp("-R"), _tcp_seconds),
        Test("tcp_bidir", "TCP both ways at once", tcp("--bidir"), _tcp_seconds),
        Test("tcp_4", "four TCP streams", tcp("-P", "4"), _tcp_seconds),
        Test("tcp_tunnels", "four TCP streams, two tunnels", tcp_tunnels, _tcp_seconds),
        *(
            Test(f"udp_{size}", f"UDP, {size} bytes, under 1 % loss", udp(size), _udp_seconds)
            for size in (64, 512, 1360)
        ),
        *(
            Test(
                f"udp_64_{flows}",
                f"UDP, 64 bytes, {flows} flows in turn, under 1 % loss",
                udp(64, flows),
                _udp_seconds,
            )
            for flows in (8, 64)
        ),
        Test("rtt", "ping, idle", rtt, _ping_seconds),
        *_LOADED,
        Test("cost_tcp", "processor time at 1 Gbit/s of TCP", cost_tcp, lambda n: n.tcp + 1.5),
        *(
            Test(
                f"cost_udp_{flows}",
                f"processor time at 100,000 packets/s, 64 bytes, {many}",
                cost_udp(flows),
                lambda n: n.udp + 0.6,
            )
            for flows, many in ((1, "one flow"), (8, "8 flows in turn"))
        ),
        Test("initiate", "--initiate to the first packet", initiate, lambda n: 2.0),
        Test("rekey", "rekeys under one TCP stream", rekey, lambda n: 9.0),
        Test("children", "many children", children, lambda n: 0.1 * n.children),
        Test("memory", "resident memory", memory_use, lambda n: 0.0),
        Test("idle", "processor time without traffic", idle, lambda n: float(n.idle)),
    )
}
