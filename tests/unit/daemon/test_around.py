"""A gateway that would cut off its host is refused, and changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw.daemon import guard as guard_module
from esp_gw.daemon.gateway import Gateway
from esp_gw.daemon.guard import hold_before_start
from esp_gw.daemon.protection import last_protection
from esp_gw.errors import NetworkError
from esp_gw.ledger import thread as ledger_thread
from esp_gw.ledger.ledger import Ledger
from esp_gw.ledger.thread import LedgerThread
from esp_gw.network.guard import GuardState
from esp_gw.network.objects import Host, Network
from tests.support.builders import desired, make_sa, protect, selector
from tests.support.fakes import FakeEngine, FakeKernel, captured_logs
from tests.support.ledgers import MACHINE

HERE = Host(
    addresses=frozenset({ip_address("192.168.1.10")}),
    connected=frozenset({ip_network("192.168.1.0/24")}),
    routers=frozenset({ip_address("192.168.1.1")}),
)
NARROW = selector("10.1.0.0/24", "192.168.1.0/28")
SA = make_sa("t/out", spi=0x1001)
CUT = desired((SA,), (protect("t", "t/out", NARROW),))
ONE = desired((SA,), (protect("t", "t/out", *SA.selectors),))
LOST = r"192\.168\.1\.1, the default gateway of this host.*allow_cut_off"


class Rig:
    """A gateway of a state directory, beside a fake engine and a fake kernel."""

    def __init__(self, folder: Path) -> None:
        self.engine, self.kernel = FakeEngine(), FakeKernel()
        ledger, guard = LedgerThread(folder / "ledger.db"), GuardState(folder)
        self.gateway = Gateway(lambda: self.engine, self.kernel, ledger, guard, pytest.fail)


@pytest.fixture
async def make_rig(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[], Rig]]:
    monkeypatch.setattr(ledger_thread, "machine_identity", lambda: MACHINE)
    Ledger.create(tmp_path / "ledger.db", MACHINE)
    rigs: list[Rig] = []

    def make() -> Rig:
        rigs.append(Rig(tmp_path))
        return rigs[-1]

    yield make
    for rig in rigs:
        if rig.engine.is_open:
            await rig.gateway.stop()


async def test_a_start_that_would_cut_off_the_host_closes_nothing(
    make_rig: Callable[[], Rig],
) -> None:
    made = make_rig()
    made.kernel.there = HERE
    untouched = made.kernel.network
    with pytest.raises(NetworkError, match=LOST):
        await made.gateway.start(CUT)
    assert made.kernel.network == untouched
    assert not made.engine.is_open


async def test_a_reload_that_would_cut_off_the_host_changes_nothing(
    make_rig: Callable[[], Rig],
) -> None:
    rig = make_rig()
    await rig.gateway.start(ONE)
    rig.kernel.there = HERE
    before = rig.kernel.network, rig.engine.policies
    with pytest.raises(NetworkError, match=LOST):
        await rig.gateway.apply(CUT)
    assert (rig.kernel.network, rig.engine.policies) == before
    assert rig.gateway.warnings == []
    allowed = replace(CUT, settings=replace(CUT.settings, allow_cut_off=True))
    await rig.gateway.apply(allowed)
    assert "192.168.1.1, the default gateway" in rig.gateway.warnings[0]


async def test_what_ran_before_the_network_changed_goes_on(make_rig: Callable[[], Rig]) -> None:
    """A remote site whose router moved is reached by nothing but the tunnel."""
    first = make_rig()
    await first.gateway.start(CUT)
    first.kernel.there = HERE
    await first.gateway.apply(CUT)
    assert "192.168.1.1, the default gateway" in first.gateway.warnings[0]
    await first.gateway.stop()
    second = make_rig()
    second.kernel.there = HERE
    await second.gateway.start(CUT)
    assert set(second.engine.sas) == {"t/out"}


@pytest.mark.parametrize("known", [False, True])
def test_the_guard_closes_for_a_first_start_only_what_that_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    kernel = FakeKernel()
    kernel.there, kernel.network = HERE, Network(mtu=0)
    monkeypatch.setattr(guard_module, "KernelNetwork", lambda *_: kernel)
    config = tmp_path / "gateway.yaml"
    (tmp_path / "k").write_text("00" * 36)
    (tmp_path / "k").chmod(0o600)
    half = "{spi: %d, key: {file: k}}"
    config.write_text(
        f"gateway: {{state_dir: {tmp_path}}}\n"
        "tunnels:\n  t: {local: 192.168.1.10, remote: 203.0.113.9, local_ts: 10.1.0.0/24,\n"
        f"      remote_ts: 192.168.1.0/28, outbound: {half % 0x1001}, inbound: {half % 0x1002}}}\n"
    )
    guard = GuardState(tmp_path)
    if known:
        guard.remember(CUT)
    assert last_protection(guard, config).known is known
    with captured_logs() as logs:
        hold_before_start(guard, config)
    assert bool(kernel.network.routes) is known
    assert any("default gateway" in str(entry) for entry in logs) is not known
