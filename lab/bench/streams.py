"""TCP streams of iperf3: run to their end, or in the background of another measurement."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import end
from esp_gw.demo.traffic import iperf_server
from esp_gw.errors import LabError
from lab.bench.model import Link

_CONGESTION_CONTROLS = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
_INTERVAL = re.compile(r"\[\s*(?P<who>\w+)\].*?(?P<mbit_s>[\d.]+) Mbits/sec")
CUBIC, BBR = "cubic", "bbr"


def congestion_control(name: str) -> tuple[str, ...]:
    """iperf3's options for a congestion control. Raises LabError if the kernel hasn't got it."""
    if name not in _CONGESTION_CONTROLS.read_text().split():
        raise LabError(
            f"the kernel has no TCP congestion control '{name}'",
            hint=f"load it with 'modprobe tcp_{name}'",
        )
    return ("-C", name)


def received_gbit_s(summary: dict[str, Any]) -> float:
    """Gbit/s received by both ends of an iperf3 run, summed."""
    ways = [
        summary[key] for key in ("sum_received", "sum_received_bidir_reverse") if key in summary
    ]
    return math.fsum(way["bits_per_second"] for way in ways) / 1e9


class Background:
    """A running iperf3 client, read a second at a time."""

    def __init__(self, process: subprocess.Popen[str], streams: int) -> None:
        self._process = process
        self._who = "SUM" if streams > 1 else ""

    def second(self) -> float:
        """Wait for the end of the client's present second; the gigabits that it sent in it.

        Raises LabError if the client ends instead.
        """
        for line in self._process.stdout or ():
            found = parse_interval(line)
            if found is not None and (not self._who or found[0] == self._who):
                return found[1] / 1000
        raise LabError("the TCP stream did not go on")


def parse_interval(line: str) -> tuple[str, float] | None:
    """The stream's number (or SUM) and the Mbit/s of one interval line of `iperf3 -f m`."""
    found = _INTERVAL.search(line)
    return (found["who"], float(found["mbit_s"])) if found else None


@contextlib.contextmanager
def background(link: Link, seconds: int, streams: int, *options: str) -> Iterator[Background]:
    """`streams` TCP streams through a link for at most `seconds`, under way for a second.

    Raises LabError.
    """
    with iperf_server(link.b, link.target):
        process = link.a.start(
            *("iperf3", "-c", link.target, "-B", link.source, "-t", str(seconds), "-f", "m"),
            *("-P", str(streams), *options),
            *("--connect-timeout", "3000", "--forceflush"),
            stdout=subprocess.PIPE,
        )
        try:
            running = Background(process, streams)
            running.second()
            yield running
        finally:
            end(process)
