"""The boards' processors, emulated: the demo on each, and a pair of them as two Raspberry Pis.

These tests take minutes each, so they have their own marker: './scripts/test -m aarch64'.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.utils import rdpcap

from lab.vm.__main__ import CHECKOUT, make_setup
from lab.vm.machine import Machine
from tests.support.guest import Guest

NATIVE = sorted((CHECKOUT / "dist").glob("esp_gw_core-*aarch64.whl"))
ENGINES = ["python", *(["native"] if NATIVE else [])]
PAIR_LIMIT = 2400


@pytest.fixture(scope="module", params=["cortex-a76", "cortex-a72"])
def board(request: pytest.FixtureRequest) -> Iterator[Guest]:
    setup = make_setup("aarch64", cpu=request.param)
    with Machine(setup) as machine:
        yield Guest(machine, setup)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_demo_passes(board: Guest, engine: str) -> None:
    result = board.run("esp-gw", "demo", "--engine", engine, "--seconds", "2", "--json")
    assert result.status == 0, result.tail
    report = json.loads(result.stdout)
    assert report["engine"] == engine
    assert report["esp_packets_on_wire"] > 0
    # qemu's cortex-a72 has them as well, unlike the one of a Raspberry Pi 4.
    assert report["aes"] == "ARMv8 Crypto Extensions"


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two Raspberry Pis with their configurations from configs/."""
    out = tmp_path_factory.mktemp("pis")
    command = (sys.executable, "-m", "lab.vm", "pair", "--arch", "aarch64")
    options = ("--out", str(out), "--timeout", str(PAIR_LIMIT))
    result = subprocess.run(
        [*command, *options, "--", "sh", "tests/vm/inside/pi.sh"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=PAIR_LIMIT + 200,
        check=False,
    )
    logs = "".join(path.read_text() for path in sorted(out.glob("?.log")))
    assert result.returncode == 0, f"{result.stdout[-3000:]}\n{result.stderr[-6000:]}\n{logs}"
    return out


@pytest.mark.timeout(PAIR_LIMIT + 300)
class TestTwoRaspberryPis:
    def test_run_the_best_available_engine(self, played: Path) -> None:
        for name in "ab":
            status = json.loads((played / f"{name}.status").read_text())
            assert status["engine"] == ENGINES[-1]
            assert status["aes"] == "ARMv8 Crypto Extensions"
            assert list(status["provider"]) == ["aes256gcm16"]

    def test_carry_iperf3_through_the_tunnel_and_only_esp_on_the_wire(self, played: Path) -> None:
        for way in ("forward", "back"):
            end = json.loads((played / f"{way}.json").read_text())["end"]
            assert end["sum_received"]["bytes"] > 0
        stats = json.loads((played / "a.stats").read_text())
        assert min(stats["packets_out"], stats["packets_in"]) > 20
        on_wire = [packet for packet in rdpcap(str(played / "wire.pcap")) if IP in packet]
        esp = [packet for packet in on_wire if UDP in packet and packet[UDP].dport == 4500]
        assert len(esp) > 20
        assert on_wire == esp

    def test_are_measured_over_ssh(self, played: Path) -> None:
        report = json.loads((played / "two-pis.json").read_text())
        assert report["inner"] == ["10.1.0.1", "10.2.0.1"]
        assert report["outer"] == ["192.0.2.1", "198.51.100.1"]
        seen = [(test["protocol"], test["sender"]) for test in report["tests"]]
        hosts = ("root@192.0.2.1", "root@198.51.100.1")
        assert seen == [(protocol, host) for host in hosts for protocol in ("TCP", "UDP")]
        for test in report["tests"]:
            assert test["without"]["mbit_s"] > 0
            assert test["through"]["mbit_s"] > 0
        assert (played / "left").read_text() == ""
