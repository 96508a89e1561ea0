"""scripts/iperf3-two-pis between two namespaces, with everything real but ssh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.demo.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.model import Mode
from tests.support.labtools import until

TWO_PIS = (sys.executable, "-m", "lab.two_pis")
SSH = """\
#!/bin/sh
for word; do host=$before before=$word; done
case $host in *@*) echo "ssh: Could not resolve hostname $host" >&2; exit 255;; esac
exec ip netns exec "$host" env PATH="{path}" sh -c "$word"
"""
ESP_GW = '#!/bin/sh\nexec {python} -m esp_gw.cli.main --socket {socket} "$@"\n'
VCGENCMD = "#!/bin/sh\n[ $1 = get_throttled ] && echo throttled=0x50004\n"


class Pis:
    """Two namespaces with gateways, and a folder of stand-in programs for us and the hosts."""

    def __init__(self, pair: GatewayPair, programs: Path) -> None:
        self.pair = pair
        self.names = (pair.a.namespace.name, pair.b.namespace.name)
        self.programs = programs
        self.program("ssh", SSH.format(path=f"{programs}/$host:$PATH"))
        for gateway in (pair.a, pair.b):
            host = gateway.namespace.name
            asked = ESP_GW.format(python=sys.executable, socket=gateway.socket)
            self.program(f"{host}/esp-gw", asked)
            self.program(f"{host}/vcgencmd", VCGENCMD)

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*TWO_PIS, "--seconds", "1", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}"},
        )

    def run(self, *arguments: str) -> tuple[int, str, list[str]]:
        with self.start(*arguments) as process:
            output, errors = process.communicate(timeout=110)
        return process.returncode, output, errors.splitlines()

    def error(self, *arguments: str) -> str:
        """Run the program, which must fail; return its error, the last and only unindented line."""
        status, output, errors = self.run(*arguments)
        assert (status, output) == (1, ""), errors
        assert [line for line in errors if not line.startswith("  ")] == errors[-1:]
        return errors[-1]

    def processes(self) -> set[int]:
        pids = (gateway.namespace for gateway in (self.pair.a, self.pair.b))
        return {
            int(pid)
            for namespace in pids
            for pid in subprocess.run(
                ["ip", "netns", "pids", namespace.name], capture_output=True, text=True, check=True
            ).stdout.split()
        }


@pytest.fixture
def pis(tmp_path: Path) -> Iterator[Pis]:
    with gateway_pair(tmp_path, PairPlan()) as pair:
        pair.start()
        yield Pis(pair, tmp_path / "bin")


def test_both_directions_and_protocols_are_measured_with_and_without_the_tunnel(pis: Pis) -> None:
    before = pis.processes()
    status, output, errors = pis.run("--json", *pis.names)
    assert status == 0, errors
    report = json.loads(output)
    assert report["inner"] == ["10.1.0.1", "10.2.0.1"]
    assert report["outer"] == ["192.0.2.1", "192.0.2.2"]
    a, b = pis.names
    seen = [(test["protocol"], test["sender"], test["receiver"]) for test in report["tests"]]
    assert seen == [("TCP", a, b), ("UDP", a, b), ("TCP", b, a), ("UDP", b, a)]
    for test in report["tests"]:
        for way in ("without", "through"):
            assert test[way]["mbit_s"] > 0
            assert (test[way]["lost_percent"] is None) == (test["protocol"] == "TCP")
    for board in report["boards"]:
        for when in ("before", "after"):
            assert board[when]["throttled"] == ["throttled"]
            assert board[when]["throttled_since_start"] == ["under-voltage", "throttled"]
    stats = pis.pair.a.ask("stats")
    assert min(stats["packets_out"], stats["packets_in"]) > 100
    assert pis.processes() == before


def test_the_table_has_a_line_for_each(pis: Pis) -> None:
    status, output, _ = pis.run(*pis.names)
    assert status == 0
    a, b = pis.names
    starts = [f"TCP {a} -> {b}", f"UDP {a} -> {b}", f"TCP {b} -> {a}", f"UDP {b} -> {a}"]
    lines = output.splitlines()
    for start, line in zip(starts, lines[1:], strict=False):
        assert line.startswith(start)
        assert line.count("Mbit/s") == 2
    assert "throttled" in lines[-1]


class TestErrors:
    def test_ssh_that_fails(self, pis: Pis) -> None:
        assert pis.error(pis.names[0], "pi@nowhere") == (
            "error: pi@nowhere: no connection: ssh: Could not resolve hostname pi@nowhere;"
            " see what 'ssh pi@nowhere true' says"
        )

    def test_one_machine_named_twice(self, pis: Pis) -> None:
        assert "are the same machine" in pis.error(pis.names[0], pis.names[0])

    def test_no_iperf3(self, pis: Pis) -> None:
        few = pis.programs / "few"
        few.mkdir()
        for name in ("sh", "cat", "readlink", "ip"):
            (few / name).symlink_to(shutil.which(name) or name)
        pis.program("ssh", SSH.format(path=few))
        error = pis.error(*pis.names)
        assert error.startswith(f"error: {pis.names[0]}: iperf3 is not installed; install it there")

    def test_a_tunnel_that_is_down(self, pis: Pis) -> None:
        pis.pair.b.namespace.ip("link", "set", "wan", "down")
        assert pis.error(*pis.names) == (
            f"error: {pis.names[0]}: the tunnel is down: 10.2.0.1 does not answer 10.1.0.1;"
            " see 'esp-gw status' and 'esp-gw stats' on both"
        )

    def test_a_gateway_that_does_not_run(self, pis: Pis) -> None:
        pis.pair.b.stop()
        error = pis.error(*pis.names)
        assert error.startswith(f"error: {pis.names[1]}: esp-gw can't list its tunnels: ")
        assert error.endswith("; or give the addresses with --inner and --outer")

    def test_addresses_of_the_wrong_hosts(self, pis: Pis) -> None:
        swapped = ("--inner", "10.2.0.1", "10.1.0.1", "--outer", "192.0.2.1", "192.0.2.2")
        error = pis.error(*swapped, *pis.names)
        assert error == f"error: {pis.names[0]}: no interface has the address 10.2.0.1"

    def test_a_port_in_use(self, pis: Pis) -> None:
        with pis.pair.b.namespace.start(
            "iperf3", "-s", "--forceflush", stdout=subprocess.PIPE
        ) as s:
            assert s.stdout is not None
            assert any("listening" in line for line in s.stdout)
            error = pis.error(*pis.names)
            s.kill()
        assert error.startswith(f"error: {pis.names[1]}: iperf3 can't listen: ")
        assert "ddress already in use" in error

    def test_traffic_that_does_not_take_the_tunnel(self, pis: Pis) -> None:
        outer = ("192.0.2.1", "192.0.2.2")
        error = pis.error("--inner", *outer, *pis.names)
        assert "the tunnel pi-b carried none of the traffic" in error


def test_a_killed_run_leaves_nothing_running(pis: Pis) -> None:
    before = pis.processes()

    def measuring() -> bool:
        return any(_is_iperf(pid) for pid in pis.processes() - before)

    with pis.start("--seconds", "60", *pis.names) as process:
        until(lambda: process.poll() is not None or measuring(), "iperf3 runs", 60)
        assert process.poll() is None
        process.kill()
    until(lambda: not measuring(), "iperf3 has ended", 60)


def _is_iperf(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == "iperf3"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_transport_mode_has_no_path_outside_the_tunnel(tmp_path: Path) -> None:
    with gateway_pair(tmp_path, PairPlan(mode=Mode.TRANSPORT)) as pair:
        pair.start()
        pis = Pis(pair, tmp_path / "bin")
        status, output, errors = pis.run("--json", *pis.names)
    assert status == 0, errors
    report = json.loads(output)
    assert report["outer"] is None
    assert [test["without"] for test in report["tests"]] == [None] * 4
