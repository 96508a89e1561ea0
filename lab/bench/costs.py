"""Processor time at a fixed load: a gigabit of TCP, a small packet.

A load below what each system can carry, and the same for all of them: what it costs then is what
the owner of a small machine pays, whose line is slower than the gateway.
"""

from __future__ import annotations

from lab.bench.cpu import Meter, Spent
from lab.bench.model import Lengths, Link, Memory, Run, Sample
from lab.bench.streams import CUBIC, background, congestion_control
from lab.bench.udp import exchange

GBIT_S = 1.0
PACKETS_S = 100_000.0
SMALL = 64
_ENOUGH = 0.95
_TOO_FAST = "carries less than the load"


def cost_tcp(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Processor seconds a gigabit, of one TCP stream that is sent at GBIT_S.

    TCP itself paces the stream (SO_MAX_PACING_RATE, which needs no fq qdisc; tcp(7)). iperf3's own
    `-b` sends a burst of its block size each millisecond.
    """
    pace = ("--fq-rate", f"{GBIT_S:.0f}G")
    with background(link, lengths.tcp + 4, 1, *congestion_control(CUBIC), *pace) as stream:
        # The stream's first second is over; its slow start is.
        meter = Meter(link.pids)
        gigabits = sum(stream.second() for _ in range(lengths.tcp))
        spent = meter.spent()
    note = "" if gigabits >= _ENOUGH * GBIT_S * lengths.tcp else _TOO_FAST
    return costs(spent, gigabits, "s/Gbit", 1.0, note)


def cost_udp(flows: int) -> Run:
    """Processor microseconds a packet, of small ones in `flows` flows in turn, at PACKETS_S."""

    def run(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
        seen = exchange(link, flows, SMALL, PACKETS_S, lengths.udp)
        note = "" if seen.received >= _ENOUGH * PACKETS_S * seen.seconds else _TOO_FAST
        return costs(seen.spent, seen.received, "us/packet", 1e6, note)

    return run


def costs(spent: Spent, amount: float, unit: str, scale: float, note: str) -> list[Sample]:
    """Processor time of the machine, and of gateways if there are any, divided by `amount`."""
    cpu = spent.percent()
    figures = {"machine": spent.machine}
    if spent.daemons:
        figures |= {"gateways": sum(spent.daemons), "receiver": spent.receiver}
    return [
        Sample(metric, unit, scale * seconds / amount, cpu, note)
        for metric, seconds in figures.items()
    ]
