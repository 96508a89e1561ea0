"""The smallest real run of the benchmark, which leaves nothing behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.demo.netns import NETNS_DIR
from lab.bench.ping import answers
from lab.bench.tunnels import EspGwTunnels

BENCH = (sys.executable, "-m", "lab.bench")
SMALLEST = ("--quick", "--rounds", "1", "--only", "systems")


def namespaces_of(pid: int) -> list[str]:
    return [path.name for path in NETNS_DIR.glob(f"*-{pid}")] if NETNS_DIR.exists() else []


def test_the_smallest_benchmark_measures_a_wire_and_a_gateway(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    chosen = ("--system", "veth", "--system", "python", "--test", "tcp", "--test", "rtt")
    command = [*BENCH, *SMALLEST, *chosen, "--test", "memory", "--json", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, progress = process.communicate(timeout=60)
    assert process.returncode == 0, progress
    document = json.loads(file.read_text())
    assert document["rounds"] == 1
    assert document["failures"] == []
    found = {(each["system"], each["test"], each["metric"]): each for each in document["results"]}
    assert set(found) == {
        ("veth", "tcp", "throughput"),
        ("veth", "rtt", "median"),
        ("veth", "rtt", "p99"),
        ("python", "tcp", "throughput"),
        ("python", "tcp", "gateways"),
        ("python", "rtt", "median"),
        ("python", "rtt", "p99"),
        ("python", "memory", "rss"),
    }
    for each in document["results"]:
        assert 0 < each["min"] <= each["median"] <= each["max"]
    assert found["python", "tcp", "throughput"]["cpu"] > 0
    assert found["veth", "tcp", "throughput"]["cpu"] is None
    assert "### TCP, Gbit/s" in output
    assert "round 1 of 1: systems, python" in progress
    assert namespaces_of(process.pid) == []


def test_the_tests_beside_a_load_measure_a_wire_and_a_gateway(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    tests = ("rtt_loaded_4", "cost_tcp", "cost_udp_8")
    chosen = [word for name in ("veth", "python") for word in ("--system", name)]
    chosen += [word for name in tests for word in ("--test", name)]
    result = subprocess.run(
        [*BENCH, *SMALLEST, *chosen, "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(file.read_text())
    assert document["failures"] == []
    found = {(each["system"], each["test"], each["metric"]): each for each in document["results"]}
    costs = ("cost_tcp", "cost_udp_8")
    of_all = {("rtt_loaded_4", metric) for metric in ("median", "p99")}
    of_all |= {(test, "machine") for test in costs}
    of_the_gateways = {(test, metric) for test in costs for metric in ("gateways", "receiver")}
    assert {key[1:] for key in found if key[0] == "python"} == of_the_gateways | of_all
    assert {key[1:] for key in found if key[0] == "veth"} == of_all
    for each in document["results"]:
        assert each["median"] > 0
    for test in ("cost_tcp", "cost_udp_8"):
        receiver, gateways, machine = (
            found["python", test, metric]["median"]
            for metric in ("receiver", "gateways", "machine")
        )
        # Ticks of /proc/stat are 10 ms.
        assert receiver < gateways < 1.1 * machine


@pytest.mark.parametrize("sas", [1, 2])
def test_every_tunnel_of_several_carries_traffic(tmp_path: Path, sas: int) -> None:
    with EspGwTunnels("python", 2, sas)(tmp_path) as link:
        assert len(link.further) == 1
        for source, target in ((link.source, link.target), *link.further):
            assert answers(replace(link, source=source, target=target))


def test_a_system_that_does_not_start_is_named_and_the_others_continue(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    chosen = ("--system", "wireguard-go", "--system", "veth", "--test", "rtt")
    result = subprocess.run(
        [*BENCH, *SMALLEST, *chosen, "--wireguard-go", "/bin/false", "--json", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    document = json.loads(file.read_text())
    assert {each["system"] for each in document["results"]} == {"veth"}
    (failure,) = document["failures"]
    assert failure["system"] == "wireguard-go"
    assert "ended" in failure["reason"]
    assert "### Not measured" in result.stdout


def test_an_interrupted_benchmark_leaves_no_namespace() -> None:
    # A shell script's background processes, and their children, ignore SIGINT.
    command = ["env", "--default-signal=INT", *BENCH, *SMALLEST, "--system", "python"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stderr is not None
        assert any("round 1 of 1" in line for line in run.stderr)
        while not namespaces_of(run.pid):
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        assert "everything was removed" in run.stderr.read()
        assert run.wait(timeout=30) == 130
    assert namespaces_of(run.pid) == []
