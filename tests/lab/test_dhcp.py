"""DHCP is never closed: a guarded machine gets its address, and renews it at any server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from esp_gw.config.provision import make_pair
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, end, namespaces, wire
from tests.support.guarded import watched
from tests.support.labtools import ping, until

SERVER = """\
start 192.0.2.10
end 192.0.2.20
interface wan
lease_file {folder}/leases
pidfile {folder}/udhcpd.pid
min_lease 10
option lease 10
option subnet 255.255.255.0
option router 192.0.2.2
"""
CLIENT = """\
#!/bin/sh
case $1 in
bound | renew)
    ip address replace "$ip/24" dev wan
    ip route replace default via "$router"
    ;;
esac
"""


@contextlib.contextmanager
def logged(namespace: Namespace, log: Path, *command: str) -> Iterator[None]:
    """Run a program until the block ends, with its output in a file."""
    with log.open("w") as stream:
        process = namespace.start(*command, stderr=stream.fileno())
    try:
        yield
    finally:
        end(process)


@pytest.mark.parametrize("remote", ["10.2.0.0/24", "0.0.0.0/0"])
def test_a_guarded_machine_gets_its_address_and_renews_it_at_a_protected_server(
    tmp_path: Path, remote: str
) -> None:
    with namespaces("a", "b") as (host, router):
        wire(host, router)
        # The server names its first address, to which renewals go: a protected one.
        for address in ("10.2.0.1/24", "192.0.2.2/24"):
            add_address(router, address)
        make_pair(
            tmp_path / "init",
            local=ip_address("192.0.2.10"),
            remote=ip_address("192.0.2.2"),
            local_nets=[ip_network("10.1.0.0/24" if remote == "10.2.0.0/24" else "0.0.0.0/0")],
            remote_nets=[ip_network(remote)],
            names=("a", "b"),
            local_settings={"state_dir": str(tmp_path), "engine": "python"},
        )
        config = tmp_path / "udhcpd.conf"
        config.write_text(SERVER.format(folder=tmp_path))
        (tmp_path / "leases").touch()
        script, log = tmp_path / "configure", tmp_path / "udhcpc.log"
        script.write_text(CLIENT)
        script.chmod(0o755)
        serve = ("busybox", "udhcpd", "-f", str(config))
        ask = ("busybox", "udhcpc", "-f", "-i", "wan", "-s", str(script), "-t", "20", "-T", "1")
        with (
            watched(LabGateway(host, tmp_path / "init/a/gateway.yaml", tmp_path)),
            logged(router, tmp_path / "udhcpd.log", *serve),
            logged(host, log, *ask),
        ):
            until(lambda: log.read_text().count("lease of") >= 3, "two renewals", 60)
            told = log.read_text()
            assert told.count("sending renew to server 10.2.0.1") >= 2, told
            # That would be for a server that doesn't answer.
            assert "broadcasting renew" not in told, told
            assert ping(host, "10.2.0.1", count=1) == 0
            assert ping(host, "192.0.2.2", count=1) == 1
