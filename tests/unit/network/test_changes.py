"""Changes that nothing carries out are refused, not passed over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from esp_gw.daemon.sas import InstalledSas
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.ledger.thread import LedgerThread
from esp_gw.network.changes import Change, NetworkChange, Step
from esp_gw.network.kernel import KernelNetwork
from tests.support.service_rig import Rig


@dataclass(frozen=True, slots=True)
class UnknownToTheKernel(NetworkChange):
    step = Step.SET_MTU


@dataclass(frozen=True, slots=True)
class UnknownToTheGateway(Change):
    step = Step.REPLACE_POLICIES


async def test_the_kernel_side_refuses_a_change_that_it_does_not_know() -> None:
    with pytest.raises(TypeError, match="UnknownToTheKernel"):
        await KernelNetwork(4500)._apply([UnknownToTheKernel()])


async def test_the_gateway_refuses_a_change_that_it_does_not_know(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    gateway = rig.gateway
    gateway._sas = InstalledSas(rig.engine, LedgerThread(rig.ledger))
    gateway._wanted = Desired(GatewaySettings())
    with pytest.raises(TypeError, match="UnknownToTheGateway"):
        await gateway._carry_out([UnknownToTheGateway()])
