"""esp_gw as a system to measure: two gateways in any setting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.pair import PairPlan, gateway_pair
from esp_gw.errors import LabError
from esp_gw.model import DEFAULT_SUITE, Encapsulation, Mode, Suite
from lab.bench.hosts import wait_for_traffic
from lab.bench.model import Link


def default_sas() -> int:
    """The number of SAs that `esp-gw init` writes on a machine like this one."""
    return max(2, min(4, len(os.sched_getaffinity(0))))


@dataclass(frozen=True, slots=True)
class EspGw:
    """Two gateways; the default is tunnel mode, ESP in UDP, AES-256-GCM.

    `settings` are fields of the configuration section `gateway`, `crypto` of the section `crypto`.
    `gso_max_size`, in bytes, is set on the TUN unless None. `env` extends the daemons' environment.
    """

    engine: str
    mode: Mode = Mode.TUNNEL
    encapsulation: Encapsulation = Encapsulation.UDP
    suite: Suite = DEFAULT_SUITE
    sas: int = field(default_factory=default_sas)
    settings: Mapping[str, object] = field(default_factory=dict)
    crypto: Mapping[str, object] = field(default_factory=dict)
    gso_max_size: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[Link]:
        """Set up both gateways and yield their link. Raises LabError."""
        plan = PairPlan(
            mode=self.mode,
            encapsulation=self.encapsulation,
            suite=self.suite,
            sas=self.sas,
            settings={"engine": self.engine, **self.settings},
        )
        with gateway_pair(folder, plan) as pair:
            for gateway in (pair.a, pair.b):
                self._adapt(gateway)
            pair.start()
            for gateway in (pair.a, pair.b):
                if self.gso_max_size is not None:
                    size = str(self.gso_max_size)
                    gateway.namespace.ip("link", "set", "esp0", "gso_max_size", size)
            link = Link(
                pair.a.namespace,
                pair.b.namespace,
                plan.inner(0),
                plan.inner(1),
                (pair.a.pid, pair.b.pid),
            )
            wait_for_traffic(link)
            yield link

    def _adapt(self, gateway: LabGateway) -> None:
        if self.crypto:
            # A folder also serves as a configuration: every .yaml file in it is read.
            gateway.config = gateway.config.parent
            lines = [f"  {name}: {value}" for name, value in self.crypto.items()]
            (gateway.config / "crypto.yaml").write_text("\n".join(["crypto:", *lines]) + "\n")
        gateway.env.update(self.env)


def null_cipher(extension: Path) -> dict[str, str]:
    """The environment in which a gateway runs with a folder's build without a cipher."""
    # It protects nothing, so it refuses to start without this.
    return {"PYTHONPATH": str(extension), "ESP_GW_NULL_CIPHER": "1"}


def earlier_version(checkout: Path) -> dict[str, str]:
    """The environment in which a gateway of another checkout runs, with its native engine.

    Raises LabError if it has none.
    """
    built = next(checkout.glob(".venv/lib/python3*/site-packages/esp_gw_core"), None)
    if built is None or not (checkout / "esp_gw").is_dir():
        raise LabError(
            "no checkout with a native engine",
            where=str(checkout),
            hint="build it there: ./scripts/bench --quick --system veth --test rtt",
        )
    # Without PYTHONSAFEPATH the working directory would come first, which may be this checkout.
    return {"PYTHONPATH": f"{checkout}:{built.parent}", "PYTHONSAFEPATH": "1"}
