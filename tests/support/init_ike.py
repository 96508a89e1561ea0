"""Two gateways and two charons from the files that `esp-gw init --ike` has written, unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from esp_gw.cli.main import main
from esp_gw.config.provision import DEFAULT_NAMES
from esp_gw.demo.charon import Charon
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.ike import make_charon
from esp_gw.demo.pair import GatewayPair, PairPlan, Provision, gateway_pair
from esp_gw.model import Mode
from tests.support.charon import Installation
from tests.support.labtools import ping


@dataclass
class End:
    """One end of the pair."""

    gateway: LabGateway
    charon: Charon

    @property
    def swanctl(self) -> Path:
        """The folder that stands for /etc/swanctl."""
        return self.charon.swanctl_dir

    def children(self) -> list[dict[str, Any]]:
        """Return IKE's children that are there, as the status of the gateway has them."""
        found: list[dict[str, Any]] = self.gateway.call("GetStatus")["children"]
        return [child for child in found if child["state"] != "waiting"]

    def reaches(self, target: str) -> bool:
        return bool(ping(self.gateway.namespace, target, count=1))


def by_command(*options: str) -> Provision:
    """Return what runs `esp-gw init --ike` with these options for the ends of a plan.

    The YAML gets what keeps the daemons of a lab apart.
    """

    def provision(output: Path, plan: PairPlan, settings: Sequence[Mapping[str, object]]) -> None:
        words = ["init", "--ike", "--out", str(output), *options]
        for side, way in enumerate(("local", "remote")):
            words += [f"--{way}", str(plan.outer[side])]
            for net in plan.nets(side):
                words += [f"--{way}-net", str(net)]
        words += ["--mode", plan.mode, "--encapsulation", plan.encapsulation]
        assert main([*words, "--suite", plan.suite.name]) == 0
        add_settings(output, settings)

    return provision


def add_settings(output: Path, settings: Sequence[Mapping[str, object]]) -> None:
    for name, added in zip(DEFAULT_NAMES, settings, strict=True):
        path = output / name / "gateway.yaml"
        document = yaml.safe_load(path.read_text())
        document["gateway"] |= added
        path.write_text(yaml.safe_dump(document, sort_keys=False))


def make_ends(
    folder: Path,
    installed: Installation,
    stack: contextlib.ExitStack,
    provision: Provision,
    **fields: Any,
) -> tuple[GatewayPair, list[End]]:
    """Write the files of both ends; nothing is started."""
    plan = PairPlan(**fields)
    pair = stack.enter_context(gateway_pair(folder, plan, provision))
    ends = []
    for gateway, name in zip((pair.a, pair.b), DEFAULT_NAMES, strict=True):
        charon = make_charon(gateway, folder / f"charon-{name}", installed.plugins)
        stack.callback(charon.close)
        ends.append(End(gateway, charon))
    return pair, ends


def start(pair: GatewayPair, ends: list[End]) -> None:
    pair.start()
    for end in ends:
        end.charon.start()


def target(pair: GatewayPair, side: int = 1) -> str:
    """Return an address of a side that the tunnel leads to."""
    plan = pair.plan
    return str(plan.outer[side]) if plan.mode is Mode.TRANSPORT else plan.inner(side)
