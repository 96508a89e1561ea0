"""Small datagrams through a link: the highest rate under the loss limit, from the lab's generator.

datagrams.py is the generator and the counting receiver, each a process in its namespace.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from esp_gw.demo.netns import Namespace, end
from esp_gw.errors import LabError
from lab.bench.cpu import Meter, Spent
from lab.bench.loss import Probe, search
from lab.bench.model import Lengths, Link, Memory, Run, Sample

_QUEUED_S = 0.05
"""Seconds after the last packet was sent in which those on the way may still arrive."""
_SENDERS_LIMIT = "the sender found no time for more: the limit of the machine that all share"
_FIRST_PROBES = 4
"""Runs added to the first search of a system, which starts without a guess."""

Marks = Sequence[tuple[float, int]]
"""Times of CLOCK_MONOTONIC, each with the number of packets received by then, ascending."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One run of generator and receiver: datagrams sent and received, and the processor time.

    `seconds` is the time of sending.
    """

    sent: int
    received: float
    seconds: float
    spent: Spent

    @property
    def probe(self) -> Probe:
        """This run as a step of a search."""
        return Probe(
            sent=self.sent / self.seconds,
            received=self.received / self.seconds,
            loss=max(0.0, (self.sent - self.received) / self.sent),
            cpu=self.spent.percent(self.seconds),
        )


def exchange(link: Link, flows: int, size: int, rate: float, seconds: float) -> Exchange:
    """Send datagrams of `size` bytes in `flows` flows in turn, at `rate` packets a second.

    A rate of 0 is full speed. What comes later than _QUEUED_S after the last one is lost: a system
    that is slower than the sender doesn't profit from its queues. Raises LabError.
    """
    with _program(link.b, "receive", link.target) as receiver:
        arguments = (*_way(link), link.source, link.target, flows, size, rate, seconds)
        with _program(link.a, "send", *arguments) as sender:
            meter = Meter(link.pids)
            _tell(sender, "go")
            report = json.loads(_line(sender))
            time.sleep(_QUEUED_S)
            spent = meter.spent()
        _tell(receiver, "stop")
        marks = json.loads(_line(receiver))
    received = count_at(marks, report["ended"] + _QUEUED_S)
    if received <= 0:
        raise LabError("no UDP packet came through")
    return Exchange(report["sent"], received, report["ended"] - report["began"], spent)


def count_at(marks: Marks, at: float) -> float:
    """The count at a time: in proportion between two marks, that of the last one after it."""
    earlier, count = at, 0.0
    for mark, reached in marks:
        if mark > at:
            return count + (reached - count) * (at - earlier) / (mark - earlier)
        earlier, count = mark, float(reached)
    return count


def udp(size: int, flows: int = 1) -> Run:
    """The highest rate of datagrams with `size` payload bytes under 1 % loss, by `flows` flows."""

    def run(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
        runs: dict[Probe, Exchange] = {}

        def probe(rate: float) -> Probe:
            seen = exchange(link, flows, size, rate, lengths.udp)
            runs[seen.probe] = seen
            return seen.probe

        key = f"udp_{size}_{flows}"
        guess = memory.rates.get(key)
        found = search(probe, guess, lengths.probes + (0 if guess else _FIRST_PROBES))
        memory.rates[key] = found.next_guess
        if found.best is None:
            raise LabError("every rate tried lost more than 1 %")
        note = _SENDERS_LIMIT if found.is_senders_limit else ""
        return list(samples(runs[found.best], size, note))

    return run


def samples(best: Exchange, size: int, note: str) -> Iterator[Sample]:
    """Figures of the best run of a search; `note` is the limit of its rate, if known."""
    cpu = best.probe.cpu
    rate = best.received / best.seconds
    yield Sample("throughput", "Gbit/s", rate * size * 8 / 1e9, cpu, note)
    yield Sample("packets", "packets/s", rate, cpu, note)
    # Efficiency at a rate that the sender limits is still efficiency: no note.
    if best.spent.daemons:
        each = best.received / sum(best.spent.daemons)
        yield Sample("per_gateways_cpu", "packets/CPU-s", each, cpu)
    yield Sample("per_machine_cpu", "packets/CPU-s", best.received / best.spent.machine, cpu)


def _way(link: Link) -> tuple[str, str]:
    """The device towards the link's target, and the neighbour's MAC address, empty on a TUN."""
    route = json.loads(link.a.ip("-j", "route", "get", link.target, "from", link.source))[0]
    device = str(route["dev"])
    known = json.loads(link.a.ip("-j", "neigh", "show", "to", link.target, "dev", device) or "[]")
    return device, next((str(each["lladdr"]) for each in known if "lladdr" in each), "")


@contextlib.contextmanager
def _program(host: Namespace, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = host.start(
        *(sys.executable, "-m", "lab.bench.datagrams", *map(str, arguments)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        if _line(process).strip() != "ready":
            raise LabError("the program for small packets did not start")
        yield process
    finally:
        end(process)


def _line(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        said = process.stderr.read() if process.stderr else ""
        lines = said.strip().splitlines() or ["it ended early"]
        raise LabError(lines[-1], where="lab.bench.datagrams")
    return line


def _tell(process: subprocess.Popen[str], word: str) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            print(word, file=process.stdin, flush=True)
