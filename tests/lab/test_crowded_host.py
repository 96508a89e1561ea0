"""A host with 2,000 addresses and 10,000 routes, and addresses that come and go all the time."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from esp_gw.demo.netns import Namespace, namespaces, wire
from tests.support.labtools import MakePair, edit, ping, tunnel

NETWORKS_4, NETWORKS_6 = 1500, 500
ROUTES_4, ROUTES_6 = 8000, 2000

LOOK = """
import asyncio, json, sys
from esp_gw.network import messages
from esp_gw.network.kernel import KernelNetwork

read, dumps = [], []
whole = messages.MessageSocket.dump
def dump(self, kind, body, what):
    found = whole(self, kind, body, what)
    dumps.append(what)
    read.append(len(found))
    return found
messages.MessageSocket.dump = dump

async def main():
    kernel = KernelNetwork(100)
    await kernel.open()
    host = await kernel.host(1)
    await kernel.observe()
    await kernel.close()
    print(json.dumps({
        "dumps": dumps, "read": sum(read), "addresses": sorted(map(str, host.addresses)),
        "connected": sorted(map(str, host.connected)), "routers": sorted(map(str, host.routers)),
    }))

asyncio.run(main())
"""
"""A look at the network of a namespace, with the dumps that it takes and their objects."""


def look(namespace: Namespace) -> dict[str, Any]:
    done = namespace.run(sys.executable, "-c", LOOK)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def crowd(host: Namespace, folder: Path, device: str, router: dict[int, str]) -> None:
    """Give a host 2,000 addresses, each in a network of its own, and 10,000 routes."""
    lines = {
        4: [
            f"address add 100.{64 + n // 4096}.{n // 16 % 256}.{n % 16 * 16 + 1}/28 dev {device}"
            for n in range(NETWORKS_4)
        ],
        6: [
            f"address add 2001:db8:{n + 256:x}::1/64 dev {device} nodad" for n in range(NETWORKS_6)
        ],
    }
    lines[4] += [
        f"route add 172.16.{n // 256}.{n % 256}/32 via {router[4]}" for n in range(ROUTES_4)
    ]
    lines[6] += [f"route add 2001:db9:{n + 1:x}::/48 via {router[6]}" for n in range(ROUTES_6)]
    for version, commands in lines.items():
        batch = folder / f"batch-{version}"
        batch.write_text("\n".join(commands) + "\n")
        host.ip(f"-{version}", "-batch", str(batch))


def test_a_look_reads_each_address_once_and_none_of_the_routes(tmp_path: Path) -> None:
    with namespaces("h", "r") as (host, router):
        wire(host, router)
        host.ip("address", "add", "192.0.2.1/24", "dev", "wan")
        host.ip("address", "add", "2001:db8::1/64", "dev", "wan", "nodad")
        host.ip("route", "add", "default", "via", "192.0.2.2")
        before = look(host)
        crowd(host, tmp_path, "wan", {4: "192.0.2.2", 6: "2001:db8::2"})
        after = look(host)
        listed = json.loads(host.ip("-j", "address"))
    there = {info["local"] for link in listed for info in link["addr_info"]}
    assert set(after["addresses"]) == there
    assert len(after["connected"]) == len(before["connected"]) + NETWORKS_4 + NETWORKS_6
    assert "100.64.0.16/28" in after["connected"]
    assert after["routers"] == ["192.0.2.2"]
    assert after["dumps"] == before["dumps"]
    assert after["read"] == before["read"] + NETWORKS_4 + NETWORKS_6


def test_a_tunnel_of_everything_runs_on_a_crowded_host(make_pair: MakePair, tmp_path: Path) -> None:
    pair = make_pair()
    a = pair.a.namespace
    crowd(a, tmp_path, "wan", {4: "192.0.2.2", 6: "2001:db8::2"})

    def everything(config: dict[str, Any]) -> None:
        tunnel(config)["remote_ts"] = ["0.0.0.0/0"]

    edit(pair.a, everything)
    edit(pair.b, lambda config: tunnel(config).update(local_ts=["0.0.0.0/0"]))
    pair.start()
    assert ping(a, "10.2.0.1") == 5
    # Connected networks stay near, and no log line names them all.
    (first,) = json.loads(a.ip("-j", "route", "get", "100.64.0.18"))
    assert first["dev"] == "wan"
    assert max(len(line) for line in pair.a.log.read_text().splitlines()) < 1000
    status = pair.a.ask("status")
    assert len(status["warnings"]) < 10
    assert pair.a.cli("reload").returncode == 0
    assert ping(a, "10.2.0.1") == 5
