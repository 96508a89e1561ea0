"""The memory of real gateways: locked within the limit, and no larger after a long run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from esp_gw.demo.netns import namespaces
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import ping

SMALL = 4 << 20
"""Bytes: less than any Python interpreter maps."""
LOOKS = r"""
import asyncio, gc, re
from ipaddress import ip_address
from pathlib import Path
from esp_gw.network.kernel import KernelNetwork


def kibibytes():
    gc.collect()
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


async def main():
    network = KernelNetwork(4500)
    await network.open()
    await network.join("esp0")

    async def look(times):
        for _ in range(times):
            await network.tun_queues("esp0")
            await network.observe()
            await network.host(0xE5B)
            for peer in ("127.0.0.1", "::1", "192.0.2.1"):
                await network.path_mtu(ip_address(peer), 4500)

    await look(300)
    before = kibibytes()
    await look(2000)
    print(kibibytes() - before)
    await network.close()


asyncio.run(main())
"""


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


def test_two_thousand_looks_at_the_network_leave_no_memory_behind() -> None:
    with namespaces("looks") as (host,):
        host.ip("tuntap", "add", "esp0", "mode", "tun", "multi_queue")
        grown = int(host.run(sys.executable, "-c", LOOKS).stdout)
    # A single answer kept from each look would take 7 MiB.
    assert grown < 2048
