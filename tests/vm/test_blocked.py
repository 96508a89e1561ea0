"""A kernel with ESP and AF_ALG blocked, as on many machines since the CVEs of 2026."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab.vm.machine import Machine
from tests.support.engines import ENGINES
from tests.support.guest import Guest, MakeSetup

pytestmark = pytest.mark.vm_full
BLOCKED = ("esp4", "esp6", "algif_aead")


@pytest.fixture(scope="module")
def blocked(make_setup: MakeSetup) -> Iterator[Guest]:
    setup = make_setup(blacklist=BLOCKED)
    with Machine(setup) as machine:
        yield Guest(machine, setup)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_demo_passes_without_the_kernels_esp_and_af_alg(blocked: Guest, engine: str) -> None:
    for module in BLOCKED:
        assert blocked.run("modprobe", module).status != 0
    result = blocked.run("esp-gw", "demo", "--engine", engine, "--seconds", "1", "--json")
    assert result.status == 0, result.tail
    loaded = blocked.run("cat", "/proc/modules").stdout.split()
    assert not set(BLOCKED) & set(loaded)
    report = json.loads(result.stdout)
    assert report["engine"] == engine
    assert report["esp_packets_on_wire"] > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_a_gateway_that_requires_af_alg_reports_why_it_cannot_start(
    blocked: Guest, engine: str
) -> None:
    config = (
        f"gateway: {{engine: {engine}, state_dir: /run/gw, control_socket: /run/gw/control.sock}}\n"
        "crypto: {offload: on}\n"
    )
    script = 'mkdir -p /run/gw && echo "$0" > /run/gw.yaml && esp-gw run --config /run/gw.yaml'
    result = blocked.run("sh", "-c", script, config)
    assert result.status == 1, result.tail
    last = result.stderr.splitlines()[-1]
    assert last.startswith("esp-gw: error: crypto.offload is on, but AF_ALG is unavailable: "), last
    assert "no gcm(aes)" in last
    assert "ENOENT" in last
