"""Two gateways whose tunnel has IPv4 and IPv6 prefixes, in a kernel without IPv6.

Runs in a machine; prints one JSON document.
"""

from __future__ import annotations

import json
import sys
import tempfile
from ipaddress import ip_address, ip_network
from pathlib import Path

from esp_gw.config.provision import make_pair
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, end, namespaces, wire
from tests.support.engines import ENGINES

NETS = (
    [ip_network("10.1.0.0/24"), ip_network("fd00:1::/64")],
    [ip_network("10.2.0.0/24"), ip_network("fd00:2::/64")],
)


def reaches(namespace: Namespace, *options: str) -> bool:
    ping = namespace.run("ping", "-c", "1", "-W", "2", *options, "10.2.0.1", check=False)
    return ping.returncode == 0


def routes(namespace: Namespace) -> list[str]:
    shown = namespace.ip("route", "show", "table", "4500")
    return [line.split(" proto")[0] for line in shown.splitlines()]


def main() -> None:
    found: dict[str, object] = {"ipv6": Path("/proc/sys/net/ipv6").exists()}
    folder = Path(tempfile.mkdtemp())
    with namespaces("a", "b") as (first, second):
        wire(first, second)
        gateways = []
        for namespace, address, name in ((first, "192.0.2.1", "a"), (second, "192.0.2.2", "b")):
            add_address(namespace, f"{address}/24")
            (folder / name).mkdir(mode=0o700)
            config = folder / "init" / name / "gateway.yaml"
            gateways.append(LabGateway(namespace, config, folder / name))
        first.ip("route", "add", "default", "via", "192.0.2.2")
        a, b = gateways
        make_pair(
            folder / "init",
            local=ip_address("192.0.2.1"),
            remote=ip_address("192.0.2.2"),
            local_nets=NETS[0],
            remote_nets=NETS[1],
            names=("a", "b"),
            local_settings={**a.settings, "engine": ENGINES[0]},
            remote_settings={**b.settings, "engine": ENGINES[-1]},
        )
        for gateway in gateways:
            gateway.create_ledger()
        watcher = LabGateway(first, a.config, a.folder)
        watcher.command, watcher.log = ("guard", "run"), a.folder / "guard.log"
        watcher.start()
        found["guarded"] = routes(first)
        found["leaves"] = reaches(first, "-I", "wan")
        for gateway in gateways:
            gateway.start()
        found["reaches"] = reaches(first)
        found["warnings"] = a.ask("status")["warnings"]
        for gateway in gateways:
            gateway.stop()
        assert watcher.process is not None
        found["ends"] = end(watcher.process)
        found["logs"] = [each.log.read_text() for each in (a, b, watcher)]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
