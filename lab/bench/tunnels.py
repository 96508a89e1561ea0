"""Two gateways with any number of tunnels between them."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_gw.control.client import call
from esp_gw.demo.gateways import LabGateway, usage
from esp_gw.errors import EspGwError, LabError
from esp_gw.model import DEFAULT_SUITE
from esp_gw.protocol import MIN_SPI
from lab.bench.hosts import OUTER, two_hosts, wait_for_traffic
from lab.bench.model import Link, Sample
from lab.bench.packets import PREFIXES, inner

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
def scaled(folder: Path, tunnels: int, engine: str, sas: int = 1) -> Iterator[Scaled]:
    """Start two gateways with one tunnel, then reload with all of them. Raises LabError.

    `sas` is the number of SAs of each tunnel in each direction.
    """
    with two_hosts(f"{tunnels}a", f"{tunnels}b") as hosts:
        gateways = []
        for side, host in enumerate(hosts):
            home = folder / str(side)
            home.mkdir(mode=0o700)
            gateways.append(LabGateway(host, home / "gateway.yaml", home))
            # A local route makes every address of the prefix ours, without thousands on a device.
            host.ip("route", "add", "local", f"{PREFIXES[side]}.0.0/16", "dev", "lo")
        _write_keys(folder / "keys", tunnels, sas)
        with contextlib.ExitStack() as undo:
            for side, gateway in enumerate(gateways):
                _write_config(gateway, side, 1, engine, sas)
                gateway.create_ledger()
                gateway.launch()
                undo.callback(gateway.stop)
            for gateway in gateways:
                gateway.wait_ready()
            installed = tuple(_install(gateways, tunnels, engine, sas)) if tunnels > 1 else ()
            a, b = gateways
            pids = (a.pid, b.pid)
            first, *further = ((inner(0, each), inner(1, each)) for each in range(tunnels))
            link = Link(*hosts, *first, pids, tuple(further))
            wait_for_traffic(link)
            yield Scaled(tunnels, link, installed)


def _install(
    gateways: Sequence[LabGateway], tunnels: int, engine: str, sas: int
) -> Iterator[Sample]:
    rates, sizes = [], []
    added = 2 * sas * (tunnels - 1)
    for side, gateway in enumerate(gateways):
        _write_config(gateway, side, tunnels, engine, sas)
        before = usage(gateway.pid).rss
        began = time.monotonic()
        try:
            call(gateway.socket, "Reload", {}, RELOAD_TIMEOUT)
        except EspGwError as error:
            raise LabError(str(error), where=f"{2 * sas * tunnels} SAs") from None
        rates.append(added / (time.monotonic() - began))
        sizes.append((usage(gateway.pid).rss - before) / added)
    yield Sample("installs", "SAs/s", min(rates))
    yield Sample("memory_per_sa", "bytes", max(sizes))


def _write_keys(folder: Path, tunnels: int, sas: int) -> None:
    folder.mkdir(mode=0o700)
    for tunnel in range(tunnels):
        for way in WAYS:
            path = folder / f"{tunnel}.{way}"
            path.touch(mode=0o600)
            keys = (secrets.token_hex(DEFAULT_SUITE.keymat_len) for _ in range(sas))
            path.write_text("\n".join(keys) + "\n")


def _write_config(gateway: LabGateway, side: int, tunnels: int, engine: str, sas: int) -> None:
    gateway_fields = {"engine": engine, **gateway.settings}
    lines = ["gateway:", *(f"  {name}: {value}" for name, value in gateway_fields.items())]
    lines.append("tunnels:")
    ways = tuple(enumerate(WAYS))[:: -1 if side else 1]
    for tunnel in range(tunnels):
        spi = MIN_SPI + 2 * tunnel * sas
        out, in_ = (
            f"{{spi: {spi + index * sas}, key: {{file: ../keys/{tunnel}.{way}}}}}"
            for index, way in ways
        )
        lines += [
            f"  t{tunnel}:",
            f"    local: {OUTER[side]}",
            f"    remote: {OUTER[1 - side]}",
            f"    local_ts: {inner(side, tunnel)}/32",
            f"    remote_ts: {inner(1 - side, tunnel)}/32",
            "    keepalive: 0",
            f"    sas: {sas}",
            f"    outbound: {out}",
            f"    inbound: {in_}",
        ]
    gateway.config.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True, slots=True)
class EspGwTunnels:
    """Two gateways with several tunnels of `sas` SAs in each direction, as a system to measure."""

    engine: str
    tunnels: int
    sas: int

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[Link]:
        """Set up both gateways and yield their link. Raises LabError."""
        with scaled(folder, self.tunnels, self.engine, self.sas) as found:
            yield found.link
