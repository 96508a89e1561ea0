"""Thousands of SAs: install rate, memory per SA, and the effect on traffic."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_gw.control.client import call
from esp_gw.demo.gateways import LabGateway, usage
from esp_gw.demo.netns import Namespace, end
from esp_gw.errors import EspGwError, LabError
from esp_gw.model import DEFAULT_SUITE
from esp_gw.protocol import MIN_SPI
from lab.bench.measures import tcp
from lab.bench.model import Lengths, Link, Memory, Sample
from lab.bench.packets import PREFIXES, inner
from lab.bench.rounds import FAULTS, reason
from lab.bench.systems import OUTER, two_hosts, wait_for_traffic

TUNNELS = (1, 50, 5000)
"""Numbers of tunnels; each is two SAs in every gateway."""
WAYS = ("ab", "ba")
RELOAD_TIMEOUT = 180.0


@dataclass(frozen=True, slots=True)
class Scaled:
    """Two gateways with `tunnels` tunnels between them, and the samples of their installation."""

    tunnels: int
    link: Link
    installed: tuple[Sample, ...]

    @property
    def test(self) -> str:
        """The test name in the results, by the number of SAs in a gateway."""
        return f"scale_{2 * self.tunnels}"


@contextlib.contextmanager
def scaled(folder: Path, tunnels: int, engine: str) -> Iterator[Scaled]:
    """Start two gateways with one tunnel, then reload with all of them. Raises LabError."""
    with two_hosts(f"{tunnels}a", f"{tunnels}b") as hosts:
        gateways = []
        for side, host in enumerate(hosts):
            home = folder / str(side)
            home.mkdir(mode=0o700)
            gateways.append(LabGateway(host, home / "gateway.yaml", home))
            # A local route makes every address of the prefix ours, without thousands on a device.
            host.ip("route", "add", "local", f"{PREFIXES[side]}.0.0/16", "dev", "lo")
        _write_keys(folder / "keys", tunnels)
        with contextlib.ExitStack() as undo:
            for side, gateway in enumerate(gateways):
                _write_config(gateway, side, 1, engine)
                gateway.create_ledger()
                gateway.launch()
                undo.callback(gateway.stop)
            for gateway in gateways:
                gateway.wait_ready()
            installed = tuple(_install(gateways, tunnels, engine)) if tunnels > 1 else ()
            a, b = gateways
            pids = (a.pid, b.pid)
            link = Link(*hosts, inner(0, 0), inner(1, 0), pids)
            wait_for_traffic(link)
            yield Scaled(tunnels, link, installed)


def _install(gateways: Sequence[LabGateway], tunnels: int, engine: str) -> Iterator[Sample]:
    rates, sizes = [], []
    added = 2 * (tunnels - 1)
    for side, gateway in enumerate(gateways):
        _write_config(gateway, side, tunnels, engine)
        before = usage(gateway.pid).rss
        began = time.monotonic()
        try:
            call(gateway.socket, "Reload", {}, RELOAD_TIMEOUT)
        except EspGwError as error:
            raise LabError(str(error), where=f"{2 * tunnels} SAs") from None
        rates.append(added / (time.monotonic() - began))
        sizes.append((usage(gateway.pid).rss - before) / added)
    yield Sample("installs", "SAs/s", min(rates))
    yield Sample("memory_per_sa", "bytes", max(sizes))


def _write_keys(folder: Path, tunnels: int) -> None:
    folder.mkdir(mode=0o700)
    for tunnel in range(tunnels):
        for way in WAYS:
            path = folder / f"{tunnel}.{way}"
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(DEFAULT_SUITE.keymat_len) + "\n")


def _write_config(gateway: LabGateway, side: int, tunnels: int, engine: str) -> None:
    gateway_fields = {"engine": engine, **gateway.settings}
    lines = ["gateway:", *(f"  {name}: {value}" for name, value in gateway_fields.items())]
    lines.append("tunnels:")
    ways = tuple(enumerate(WAYS))[:: -1 if side else 1]
    for tunnel in range(tunnels):
        out, in_ = (
            f"{{spi: {MIN_SPI + 2 * tunnel + index}, key: {{file: ../keys/{tunnel}.{way}}}}}"
            for index, way in ways
        )
        lines += [
            f"  t{tunnel}:",
            f"    local: {OUTER[side]}",
            f"    remote: {OUTER[1 - side]}",
            f"    local_ts: {inner(side, tunnel)}/32",
            f"    remote_ts: {inner(1 - side, tunnel)}/32",
            "    keepalive: 0",
            f"    outbound: {out}",
            f"    inbound: {in_}",
        ]
    gateway.config.write_text("\n".join(lines) + "\n")


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
