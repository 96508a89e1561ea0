"""esp_gw as a system to measure: two gateways in any setting."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.pair import PairPlan, gateway_pair
from esp_gw.model import DEFAULT_SUITE, Encapsulation, Mode, Suite
from lab.bench.model import Link
from lab.bench.systems import wait_for_traffic


@dataclass(frozen=True, slots=True)
class EspGw:
    """Two gateways; the default is tunnel mode, ESP in UDP, AES-256-GCM.

    `settings` are fields of the configuration section `gateway`, `crypto` of the section `crypto`.
    `gso_max_size`, in bytes, is set on the TUN unless None. `extension` is a folder with another
    build of the native engine.
    """

    engine: str
    mode: Mode = Mode.TUNNEL
    encapsulation: Encapsulation = Encapsulation.UDP
    suite: Suite = DEFAULT_SUITE
    settings: Mapping[str, object] = field(default_factory=dict)
    crypto: Mapping[str, object] = field(default_factory=dict)
    gso_max_size: int | None = None
    extension: Path | None = None

    @contextlib.contextmanager
    def __call__(self, folder: Path) -> Iterator[Link]:
        """Set up both gateways and yield their link. Raises LabError."""
        plan = PairPlan(
            mode=self.mode,
            encapsulation=self.encapsulation,
            suite=self.suite,
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
        if self.extension is not None:
            gateway.env["PYTHONPATH"] = str(self.extension)
            # A build without a cipher protects nothing, so it refuses to start without this.
            gateway.env["ESP_GW_NULL_CIPHER"] = "1"
