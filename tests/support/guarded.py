"""Gateways whose protected prefixes are tried in every way that cleartext could take."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, end
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import StartTap, edit, until


def with_default_route(pair: GatewayPair) -> GatewayPair:
    """Give side a of a pair the way out that cleartext would take."""
    host = pair.a.namespace
    host.ip("route", "add", "default", "via", "192.0.2.2")
    host.ip("-6", "route", "add", "default", "via", "2001:db8::2")
    # The addresses of a LAN, which the TUN doesn't take with it.
    add_address(host, "10.1.0.1/24", "lo")
    add_address(host, "fd00:1::1/64", "lo")
    # The kernel adds the routes of an IPv6 address some moments after it.
    until(lambda: "fd00:1::1" in host.ip("-6", "route", "show", "table", "local"), "its route")
    return pair


def try_all_ways(host: Namespace) -> None:
    """Send to the protected prefixes by route, and by sockets bound to the outer device."""
    # At once: each ping waits a second for an answer that must not come.
    tries = [
        host.start("ping", "-c1", "-W1", "-I", way, target)
        for target, source in PROTECTED
        for way in (source, "wan")
    ]
    tries += [host.start(sys.executable, "-ISc", BOUND, target) for target, _ in PROTECTED]
    for process in tries:
        process.wait(30)


PROTECTED = (("10.2.0.1", "10.1.0.1"), ("fd00:2::1", "fd00:1::1"))

BOUND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan")
try: s.sendto(b"cleartext", (sys.argv[1], 9999))
except OSError: pass
"""


def assert_closed(pair: GatewayPair, tap: StartTap) -> None:
    """Check that nothing protected leaves side a in the clear."""
    wire = tap(pair.a.namespace, ip_address("10.2.0.1").packed)
    try_all_ways(pair.a.namespace)
    report = wire.finish()
    assert (report.cleartext, report.leaked) == (0, 0), report.examples


def misspell(gateway: LabGateway) -> None:
    """Add an unknown setting to a configuration."""
    edit(gateway, lambda config: config.update(bogus=1))


def fail_to_start(gateway: LabGateway) -> None:
    """Start a gateway that must fail."""
    gateway.launch()
    process = gateway.process
    assert process is not None
    assert process.wait(30) != 0


@contextlib.contextmanager
def watched(gateway: LabGateway) -> Iterator[subprocess.Popen[str]]:
    """Run `esp-gw guard run` until the block ends; it is ready at the start of the block."""
    watcher = LabGateway(gateway.namespace, gateway.config, gateway.folder)
    watcher.command = ("guard", "run")
    watcher.log = gateway.folder / "guard.log"
    watcher.start()
    process = watcher.process
    assert process is not None
    try:
        yield process
    finally:
        assert end(process) == 0, watcher.log.read_text()


def own_folder(gateway: LabGateway, folder: Path) -> None:
    """Move a gateway's state to a folder of its own, apart from the rig's files."""
    folder.mkdir(mode=0o700)
    (gateway.folder / "ledger.db").rename(folder / "ledger.db")
    edit(gateway, lambda config: config["gateway"].update(state_dir=str(folder)))


def release_kernel(gateway: LabGateway) -> None:
    """Remove from the kernel what the guard put there, without a record of it."""
    host = gateway.namespace
    host.run("nft", "flush", "ruleset")
    for family in ("-4", "-6"):
        host.ip(family, "route", "flush", "table", "4500")
        for priority in ("4498", "4499"):
            host.run("ip", family, "rule", "del", "pref", priority, check=False)
