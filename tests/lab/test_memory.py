"""The memory of real gateways is locked, so that keys are never swapped out, within the limit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import ping

SMALL = 4 << 20
"""Bytes: less than any Python interpreter maps."""


def mappings(pid: int) -> dict[str, set[str]]:
    """Flags of each private writable mapping of plain memory of a process."""
    found = {}
    for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text()):
        flags = set(re.findall(r"^VmFlags: (.*)$", block, re.MULTILINE)[0].split())
        if "wr" in flags and not flags & {"sh", "io", "pf", "ht"}:
            found[block.partition("\n")[0]] = flags
    return found


def test_no_memory_of_a_running_gateway_may_be_swapped_out(pair: GatewayPair) -> None:
    assert ping(pair.a.namespace, pair.plan.inner(1), count=2) == 2
    found = mappings(pair.a.pid)
    assert any("[heap]" in name for name in found)
    assert [name for name, flags in found.items() if "lo" not in flags] == []
    assert "swapped" not in pair.a.log.read_text()


def test_under_a_small_limit_nothing_is_locked_and_allocation_still_works() -> None:
    script = "from esp_gw.daemon import memory\nprint(memory.lock(), len(bytearray(64 << 20)))"
    limited = ("setpriv", "--bounding-set=-ipc_lock,-sys_resource", "prlimit", f"--memlock={SMALL}")
    run = subprocess.run(
        [*limited, sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["False", str(64 << 20)]
