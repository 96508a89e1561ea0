"""The program of `gateway.hook` with real daemons, and without what the gateway may do."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import subprocess
from pathlib import Path

import pytest

from esp_gw.daemon.hooks import Hooks
from esp_gw.demo.pair import GatewayPair
from esp_gw.health.news import Event
from esp_gw.model import TunnelState
from tests.support.labtools import edit, ping, tunnel, until

pytestmark = pytest.mark.either_engine

NOBODY = 65534
NET_ADMIN = 12
SCRIPT = """#!/bin/sh
echo "$ESP_GW_TUNNEL $ESP_GW_BEFORE $ESP_GW_STATE $1" >> {file}
"""


def test_a_program_is_told_of_each_change_and_changes_by_a_reload(
    pair: GatewayPair, tmp_path: Path
) -> None:
    told, program = tmp_path / "told", tmp_path / "program"
    program.write_text(SCRIPT.format(file=told))
    program.chmod(0o755)
    for gateway in (pair.a, pair.b):
        edit(gateway, lambda config: tunnel(config).update(liveness=1))
        edit(gateway, lambda config: config["gateway"].update(hook=[str(program), "one arg"]))
        gateway.cli("reload", "--config", str(gateway.config))
    edit(pair.b, lambda config: config["gateway"].pop("hook"))
    pair.b.cli("reload", "--config", str(pair.b.config))

    def lines(of: str) -> list[str]:
        every = told.read_text().splitlines() if told.exists() else []
        return [line for line in every if line.startswith(f"{of} ")]

    until(lambda: any(line.endswith("up one arg") for line in lines("pi-b")), "it is up", 30)
    # Changes told to the other end's program before the reload took it away.
    before = lines("pi-a")
    pair.b.kill()
    until(lambda: "pi-b up down one arg" in lines("pi-b"), "it is down", 30)
    pair.b.start()
    until(lambda: "pi-b down up one arg" in lines("pi-b"), "it is up again", 30)
    assert ping(pair.a.namespace, pair.plan.inner(1), count=1) == 1
    assert lines("pi-a") == before


def test_a_program_that_hangs_holds_up_neither_traffic_nor_a_stop(
    pair: GatewayPair, tmp_path: Path
) -> None:
    told, program = tmp_path / "told", tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho $$ >> {told}\nexec sleep 1000\n")
    program.chmod(0o755)
    edit(pair.a, lambda config: config["gateway"].update(hook=str(program)))
    pair.a.cli("reload", "--config", str(pair.a.config))
    assert ping(pair.a.namespace, pair.plan.inner(1), count=2) == 2
    until(told.exists, "it runs", 30)
    assert ping(pair.a.namespace, pair.plan.inner(1), count=5) == 5
    assert pair.a.stop() == 0
    pid = int(told.read_text())
    until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended")


def _keep_net_admin() -> None:
    """Become an ordinary user that has CAP_NET_ADMIN as the service has it: ambient."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(8, 1, 0, 0, 0) == 0  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    mask = 1 << NET_ADMIN
    header = struct.pack("=Ii", 0x20080522, 0)
    data = struct.pack("=6I", mask, mask, mask, 0, 0, 0)
    assert libc.capset(header, data) == 0
    assert libc.prctl(47, 2, NET_ADMIN, 0, 0) == 0  # PR_CAP_AMBIENT_RAISE


def test_a_program_has_no_capability_and_no_priority_of_the_gateway(tmp_path: Path) -> None:
    for each in (tmp_path, *tmp_path.parents):
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)
    own = tmp_path / "own"
    own.mkdir()
    own.chmod(0o777)
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.nice(-5)
            _keep_net_admin()
            # A child of another thread has what the gateway has: the test can fail.
            subprocess.run(["/bin/cp", "/proc/self/status", own / "plain"], check=True)
            hooks = Hooks(lambda: ["/bin/cp", "/proc/self/status", "/proc/self/stat", str(own)])
            hooks.tell(Event(1, 0.0, "t", TunnelState.UP, TunnelState.QUIET, None, ""))
            asyncio.run(hooks.step())
            hooks.stop()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert capabilities(own / "plain")["CapEff"] == 1 << NET_ADMIN
    found = capabilities(own / "status")
    assert (found["CapEff"], found["CapPrm"], found["CapAmb"]) == (0, 0, 0)
    assert "NoNewPrivs:\t1" in (own / "status").read_text()
    nice = (own / "stat").read_text().rpartition(")")[2].split()[16]
    # From a lower priority than the usual one there is no way back without a capability.
    assert int(nice) == max(0, os.getpriority(os.PRIO_PROCESS, 0) - 5)


def capabilities(path: Path) -> dict[str, int]:
    lines = [line.split() for line in path.read_text().splitlines() if line.startswith("Cap")]
    return {name.rstrip(":"): int(value, 16) for name, value in lines}
