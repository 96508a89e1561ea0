"""Thousands of SAs: install rate, memory per SA, and the effect on traffic."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from esp_gw.demo.netns import Namespace, end
from esp_gw.errors import LabError
from lab.bench.model import Lengths, Link, Memory, Sample
from lab.bench.rounds import FAULTS, reason
from lab.bench.tcp import tcp
from lab.bench.tunnels import Scaled, scaled

TUNNELS = (1, 50, 5000)
"""Numbers of tunnels; each is two SAs in every gateway."""


def traffic(scaled: Scaled, lengths: Lengths) -> Iterator[Sample]:
    """One TCP stream through the first tunnel; UDP through the first, then through all in turn."""
    for sample in tcp()(scaled.link, lengths, Memory()):
        yield Sample("throughput", sample.unit, sample.value, sample.cpu)
    yield Sample("packets_one", "packets/s", blast(scaled.link, 1, lengths.udp))
    yield Sample("packets_all", "packets/s", blast(scaled.link, scaled.tunnels, lengths.udp))


def blast(link: Link, tunnels: int, seconds: int) -> float:
    """Flood small UDP packets to each tunnel in turn; packets received per second."""
    sink = _python(link.b, "sink", seconds)
    try:
        if not (sink.stdout and sink.stdout.readline()):
            raise LabError("the UDP receiver did not start")
        source = _python(link.a, "source", tunnels, seconds + 1)
        try:
            text, _ = sink.communicate(timeout=seconds + 10)
        except subprocess.TimeoutExpired:
            raise LabError("no packet came through the tunnels") from None
        finally:
            end(source)
    finally:
        end(sink)
    if not text.strip():
        raise LabError("the UDP receiver ended early")
    return float(json.loads(text)["packets_s"])


def _python(host: Namespace, *arguments: object) -> subprocess.Popen[str]:
    program = (sys.executable, "-m", "lab.bench.packets", *map(str, arguments))
    return host.start(*program, stdout=subprocess.PIPE)


def measure(
    folder: Path,
    lengths: Lengths,
    rounds: int,
    engine: str,
    observe: Callable[[int, str, Sample], None],
    fail: Callable[[str, str], None],
) -> None:
    """Set up all sizes side by side and measure them in turn, `rounds` times.

    `observe` is called with the round, the test's name and each sample. On an error `fail` is
    called with the test's name and the reason, and the other sizes continue.
    """
    with contextlib.ExitStack() as undo:
        sizes = []
        for tunnels in TUNNELS:
            home = folder / str(tunnels)
            home.mkdir()
            try:
                scaled_up = undo.enter_context(scaled(home, tunnels, engine))
            except FAULTS as error:
                fail(f"scale_{2 * tunnels}", reason(error))
                continue
            sizes.append(scaled_up)
            for sample in scaled_up.installed:
                observe(0, scaled_up.test, sample)
        for number in range(rounds):
            for scaled_up in sizes:
                try:
                    for sample in traffic(scaled_up, lengths):
                        observe(number, scaled_up.test, sample)
                except FAULTS as error:
                    fail(scaled_up.test, reason(error))
