"""The machines themselves: their failures, their end, and a pair of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.vm.__main__ import CHECKOUT
from lab.vm.machine import Machine, VmError
from tests.support.guest import MakeSetup

VM = (sys.executable, "-m", "lab.vm")


def test_a_hanging_machine_is_killed_and_its_console_is_shown() -> None:
    result = subprocess.run(
        [*VM, "run", "--timeout", "20", "--", "sleep", "1000"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 125
    *console, error = result.stderr.splitlines()
    assert error == "vm: error: the machine did not end in time and was killed"
    assert console
    assert all(line.startswith("console: ") for line in console), console


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_machine_outlives_its_supervisor(number: signal.Signals, tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [*VM, "run", "--", "sleep", "1000"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # a killed supervisor leaves its files behind
    )
    try:
        children = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
        machine = 0
        while not machine:
            assert supervisor.poll() is None
            pids = [int(pid) for pid in children.read_text().split()]
            # Before it execs qemu, the child is setpriv, which sets the parent-death signal.
            machine = next((pid for pid in pids if _program(pid).startswith("qemu")), 0)
        ended = os.pidfd_open(machine)
        supervisor.send_signal(number)
        assert select.select([ended], [], [], 30)[0] == [ended]
    finally:
        supervisor.kill()
        supervisor.wait()
        os.close(ended)


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_a_machine_that_cannot_start_reports_why_on_one_line(make_setup: MakeSetup) -> None:
    with (
        pytest.raises(VmError, match="qemu-system-x86_64: unable to find CPU model 'abacus'"),
        Machine(make_setup(cpu="abacus")) as machine,
    ):
        list(machine.receive())


FETCH = """
import sys; from pathlib import Path
from lab.vm.image import ARCHITECTURES, kernel_image
from lab.vm.root import foreign_root
cache, project = map(Path, sys.argv[1:])
"""


@pytest.mark.parametrize(
    "what",
    [
        'kernel_image(cache, ARCHITECTURES["x86_64"], print)',
        'foreign_root(cache, ARCHITECTURES["aarch64"], project, print)',
    ],
    ids=["kernel", "root"],
)
def test_a_missing_network_for_the_packages_is_reported(tmp_path: Path, what: str) -> None:
    project = CHECKOUT / "pyproject.toml"
    result = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", FETCH + what, tmp_path, project],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    error = result.stderr.splitlines()[-1]
    assert "LabError: apt-get: Failed to fetch" in error
    assert error.endswith("check the network and Debian's sources")


JOINED = """
case $VM in a) other=2 ;; b) other=1 ;; esac
for peer in 192.0.2.$other 2001:db8::$other; do
    until ping -c 1 -W 10 $peer 2>&1; do sleep 1; done
done
touch /out/$VM
until [ -e /out/a ] && [ -e /out/b ]; do sleep 1; done
echo $VM reached $other
"""
# b gives a's line time to reach the host, which stops listening at the first failure.
FAILING = """
[ $VM = a ] && touch /out/printed && sleep 1000
until [ -e /out/printed ]; do sleep 1; done
sleep 5
exit 7
"""


@pytest.mark.vm_full
@pytest.mark.parametrize(
    ("script", "status"),
    [(JOINED, 0), (JOINED + FAILING, 7)],
    ids=["success", "failure"],
)
def test_a_pair_is_joined_by_a_wire_and_ends_at_the_first_failing_command(
    script: str, status: int, tmp_path: Path
) -> None:
    result = subprocess.run(
        [*VM, "pair", "--out", str(tmp_path), "--", "sh", "-ec", script],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert (result.returncode, result.stderr) == (status, "")
    lines = result.stdout.splitlines()
    assert {"a: a reached 2", "b: b reached 1"} <= set(lines), lines
