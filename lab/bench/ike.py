"""charon's work for a system: the first packet after --initiate, rekeys under load, children."""

from __future__ import annotations

import contextlib
import json
import re
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from esp_gw.demo.gateways import usage
from esp_gw.demo.netns import Namespace, end
from esp_gw.errors import LabError
from lab.bench.charon import CHILD, CONNECTION, child_name
from lab.bench.hosts import wait_until
from lab.bench.model import Ike, Lengths, Link, Memory, Sample
from lab.bench.probe import Arrivals, count_missing, longest_gap
from lab.bench.streams import background

INITIATIONS = 3
REKEYS = 6
_PAUSE = 0.3
"""Seconds between two rekeys, and before the first one."""
_TIMEOUT = "20"
_LOAD_S = 60
"""Seconds after which the TCP stream would end by itself."""
_ENDS = 10
"""Children at either end of the row whose times are compared."""
_KIB = 1024
_SPI = re.compile(r" child-sas \{.*?state=INSTALLED[^{}]*?spi-in=([0-9a-f]+)")


class Probe:
    """Datagrams that are under way, one each millisecond (probe.py)."""

    def __init__(self, sender: subprocess.Popen[str], receiver: subprocess.Popen[str]) -> None:
        self._sender = sender
        self._receiver = receiver

    def first(self, seconds: float) -> float:
        """Wait for the first arrival; its time. Raises LabError if there is none."""
        assert self._receiver.stdout is not None  # noqa: S101 - for types
        if not select.select([self._receiver.stdout], [], [], seconds)[0]:
            raise LabError("no packet came through the tunnel")
        return float(json.loads(_line(self._receiver)))

    def finish(self) -> Arrivals:
        """End both halves; every arrival."""
        _finish(self._sender)
        _line(self._sender)
        time.sleep(_PAUSE)
        _finish(self._receiver)
        # The line on the first arrival may stand before it.
        lines = list(self._receiver.stdout or ()) or ["[]"]
        return [(int(number), float(at)) for number, at in json.loads(lines[-1])]


@contextlib.contextmanager
def probe(link: Link) -> Iterator[Probe]:
    """Datagrams through a link for the block. Raises LabError."""
    with (
        _half(link.b, "receive", link.target) as receiver,
        _half(link.a, "send", link.source, link.target) as sender,
    ):
        yield Probe(sender, receiver)


def initiate(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Time from `swanctl --initiate` until the first packet is at the other end."""
    ike = _ike(link)
    times = []
    for _ in range(INITIATIONS):
        ike.swanctl[0]("--terminate", "--ike", CONNECTION, "--timeout", _TIMEOUT)
        wait_until(lambda: not any(_spi(ike, side) for side in (0, 1)), "the child did not end")
        with probe(link) as running:
            began = time.time()
            ike.swanctl[0]("--initiate", "--child", CHILD, "--timeout", _TIMEOUT)
            times.append(running.first(float(_TIMEOUT)) - began)
            running.finish()
    return [Sample("first_packet", "ms", 1000 * statistics.median(times))]


def rekey(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Packets that are late or missing beside a TCP stream, with rekeys of the child and without.

    Both ends rekey in turn. What the gateways have lost is of all packets, the stream's included.
    """
    ike = _ike(link)

    def rekeys() -> None:
        for number in range(REKEYS):
            _rekey(ike, number % 2)
            time.sleep(_PAUSE)

    lost_before = _settled(ike)
    began = time.monotonic()
    with_rekeys = _beside_a_stream(link, rekeys)
    elapsed = time.monotonic() - began
    lost = _settled(ike) - lost_before
    without = _beside_a_stream(link, lambda: time.sleep(elapsed))
    samples = [Sample("lost", "packets", float(lost))] if ike.lost else []
    for suffix, arrivals in (("", with_rekeys), ("_without", without)):
        samples += [
            Sample(f"gap{suffix}", "ms", 1000 * longest_gap(arrivals)),
            Sample(f"missing{suffix}", "packets", float(count_missing(arrivals))),
        ]
    return samples


def children(link: Link, lengths: Lengths, memory: Memory) -> list[Sample]:
    """Begin children one by one: the time of each, and the memory that they take."""
    ike = _ike(link)
    before = {pid: usage(pid).rss for pid in (*ike.gateways, *ike.charons)}
    times = []
    for number in range(1, lengths.children + 1):
        began = time.monotonic()
        ike.swanctl[0]("--initiate", "--child", child_name(number), "--timeout", _TIMEOUT)
        times.append(1000 * (time.monotonic() - began))

    def taken(pids: tuple[int, ...]) -> float:
        return max((usage(pid).rss - before[pid]) / lengths.children / _KIB for pid in pids)

    samples = [
        Sample("first", "ms", statistics.median(times[:_ENDS])),
        Sample("last", "ms", statistics.median(times[-_ENDS:])),
        Sample("charon", "KiB", taken(ike.charons)),
    ]
    return [*samples, Sample("gateway", "KiB", taken(ike.gateways))] if ike.gateways else samples


def _beside_a_stream(link: Link, work: Callable[[], object]) -> Arrivals:
    with background(link, _LOAD_S, 1), probe(link) as running:
        time.sleep(_PAUSE)
        work()
        return running.finish()


def _rekey(ike: Ike, side: int) -> None:
    """Rekey the child from a side; return when both ends have another one."""
    former = [_spi(ike, each) for each in (0, 1)]
    ike.swanctl[side]("--rekey", "--child", CHILD)

    def is_done() -> bool:
        return all((spi := _spi(ike, each)) and spi != former[each] for each in (0, 1))

    wait_until(is_done, "the child was not rekeyed")


def _spi(ike: Ike, side: int) -> str:
    """The inbound SPI of a side's installed child, empty without one."""
    found = _SPI.search(ike.swanctl[side]("--list-sas", "--child", CHILD, "--raw"))
    return found[1] if found else ""


def _settled(ike: Ike) -> int:
    """The losses of the gateways, once nothing is on its way any more."""
    if ike.lost is None:
        return 0
    lost = ike.lost()
    for _ in range(50):
        time.sleep(0.02)
        former, lost = lost, ike.lost()
        if lost == former:
            break
    return lost


def _ike(link: Link) -> Ike:
    if link.ike is None:
        raise LabError("this system has no charon")
    return link.ike


@contextlib.contextmanager
def _half(host: Namespace, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    program = (sys.executable, "-m", "lab.bench.probe", *arguments)
    process = host.start(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        _line(process)
        yield process
    finally:
        end(process)


def _line(process: subprocess.Popen[str]) -> str:
    line = process.stdout.readline() if process.stdout else ""
    if not line:
        raise LabError("it ended early", where="lab.bench.probe")
    return line


def _finish(process: subprocess.Popen[str]) -> None:
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
