"""Which threads of a real gateway run first, and that commands are answered under overload."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from esp_gw.daemon.priority import CONTROL_NICE
from esp_gw.demo.netns import end
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import until

WORKER = "esp-worker"
FLOOD = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect((sys.argv[1], 9))
    while True:
        try: s.send(bytes(64))
        except OSError: pass
"""
PREFER = """
import os, threading, time
from esp_gw.daemon.priority import prefer_control
other = threading.Thread(target=time.sleep, args=(60,), daemon=True)
other.start()
prefer_control()
later = threading.Thread(target=time.sleep, args=(60,), daemon=True)
later.start()
threads = (threading.main_thread(), other, later)
print([os.getpriority(os.PRIO_PROCESS, thread.native_id) for thread in threads])
"""


def nice_values(pid: int, *, of_workers: bool) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith(WORKER) is of_workers:
            found.add(os.getpriority(os.PRIO_PROCESS, int(task.name)))
    return found


def test_the_control_plane_runs_before_the_workers_and_they_as_other_programs(
    pair: GatewayPair,
) -> None:
    here = os.getpriority(os.PRIO_PROCESS, 0)
    # A reload makes threads that none of the start was.
    pair.a.cli("reload")
    if pair.plan.settings["engine"] == "native":
        assert nice_values(pair.a.pid, of_workers=True) == {here}
        assert nice_values(pair.a.pid, of_workers=False) == {here + CONTROL_NICE}
    else:
        assert nice_values(pair.a.pid, of_workers=False) == {here}


@pytest.mark.parametrize(
    ("privilege", "nice"),
    [(("--inh-caps=+sys_nice", "--ambient-caps=+sys_nice"), CONTROL_NICE), ((), 0)],
    ids=["allowed", "not allowed"],
)
def test_threads_of_python_go_first_where_that_is_allowed_and_start_where_it_is_not(
    privilege: tuple[str, ...], nice: int
) -> None:
    here = os.getpriority(os.PRIO_PROCESS, 0)
    user = ("setpriv", "--reuid=65530", "--regid=65530", "--clear-groups", *privilege)
    run = subprocess.run(
        (*user, sys.executable, "-c", PREFER), capture_output=True, text=True, check=True, cwd="/"
    )
    assert run.stdout.strip() == str([here + nice] * 3)


def test_commands_are_answered_while_more_packets_come_than_can_be_carried(
    pair: GatewayPair,
) -> None:
    flood = (sys.executable, "-I", "-S", "-c", FLOOD, pair.plan.inner(1))
    floods = [pair.a.namespace.start(*flood) for _ in range(4)]
    try:
        until(lambda: pair.b.ask("stats")["packets_in"] > 1000, "the flood has come through")
        for gateway in (pair.a, pair.b):
            assert gateway.ask("status")["sas"] == 2
            gateway.cli("reload")
    finally:
        for process in floods:
            end(process)
