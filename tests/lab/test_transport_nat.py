"""Transport mode through a NAT: the checksums of what arrives fit the addresses (RFC 3948 3.1.2).

    a 10.77.0.2 --- wan [router, NAT: 203.0.113.1] wan2 --- 203.0.113.2 b

With `both`, b is behind a port forward, too: 10.88.0.2, which a knows as 203.0.113.2.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from esp_gw.demo.netns import Namespace, add_address, namespaces, wire
from esp_gw.demo.traffic import iperf_server
from tests.support.engines import ENGINES
from tests.support.labtools import (
    StartCapture,
    drops,
    edit,
    forwarding,
    frames,
    ping,
    running,
    send_tcp,
    tunnel,
    until,
    write_key,
)
from tests.support.two_sites import new_gateway

PORT = 7000
MAPPED_PORT = 61000
ECHO = """
import socket, sys, threading
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
u = socket.socket(family, socket.SOCK_DGRAM); u.bind((sys.argv[1], int(sys.argv[2])))
t = socket.socket(family, socket.SOCK_STREAM)
t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
t.bind((sys.argv[1], int(sys.argv[2]))); t.listen()
def datagrams():
    while True: u.sendto(*u.recvfrom(65535))
threading.Thread(target=datagrams, daemon=True).start()
print("ready", flush=True)
while True:
    c, _ = t.accept()
    while data := c.recv(65535): c.sendall(data)
"""
ASK = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
to = (sys.argv[1], int(sys.argv[2])); patience = float(sys.argv[3]); answered = []
u = socket.socket(family, socket.SOCK_DGRAM); u.settimeout(patience); u.connect(to)
without = socket.socket(family, socket.SOCK_DGRAM); without.settimeout(patience)
if family == socket.AF_INET: without.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK
without.connect(to)
for s in (u, without):
    for size in (1, 2, 501, 1200):
        try:
            s.send(bytes(range(1, 251)) * 5 if size == 1200 else b"x" * size)
            answered.append(len(s.recv(65535)))
        except TimeoutError: answered.append(0)
try:
    t = socket.create_connection(to, timeout=patience)
    for size in (1, 700, 1001):
        t.sendall(b"y" * size); got = 0
        while got < size: got += len(t.recv(65535))
        answered.append(got)
except TimeoutError: answered.append(0)
print(answered)
"""
ANSWERED = [1, 2, 501, 1250] * 2 + [1, 700, 1001]


@dataclass(frozen=True)
class Places:
    """Addresses of one IP version: a's own and its router's, those of b's lan, and the NAT's."""

    a: str
    a_router: str
    b_inside: str
    b_router: str
    nat: str
    b: str
    length: int

    def of_b(self, both: bool) -> str:
        """Return b's own address."""
        return self.b_inside if both else self.b


PLACES = {
    4: Places(
        *("10.77.0.2", "10.77.0.1", "10.88.0.2", "10.88.0.1", "203.0.113.1", "203.0.113.2", 24)
    ),
    6: Places(
        *("fd00:77::2", "fd00:77::1", "fd00:88::2", "fd00:88::1"),
        *("2001:db8:113::1", "2001:db8:113::2", 64),
    ),
}


class NatRig:
    """Two gateways and the NAT between them, not configured."""

    def __init__(self, folder: Path, engine: str, hosts: list[Namespace], both: bool) -> None:
        self._folder, self._engine, self._both = folder, engine, both
        host_a, self.router, host_b = hosts
        self.a, self.b = (new_gateway(folder / "a", host_a), new_gateway(folder / "b", host_b))

    def configure(self, version: int, **settings: Any) -> None:
        """Write the configurations, with the original addresses that a NAT has changed."""
        places, both = PLACES[version], self._both
        own_b = places.of_b(both)
        keys = [str(write_key(self._folder / name)) for name in ("one.key", "two.key")]
        originals_a = {"local_original": places.nat}
        originals_b = {"remote_original": places.a}
        if both:
            originals_a["remote_original"] = own_b
            originals_b["local_original"] = places.b
        for gateway, local, remote, originals, side in (
            (self.a, places.a, places.b, originals_a, 0),
            (self.b, own_b, places.nat, originals_b, 1),
        ):
            fields = {
                "mode": "transport",
                "local": local,
                "remote": remote,
                **originals,
                "keepalive": 1,
                "outbound": {"spi": 0x1001 + side, "key": {"file": keys[side]}},
                "inbound": {"spi": 0x1002 - side, "key": {"file": keys[1 - side]}},
            }
            document = {
                "gateway": {**gateway.settings, "engine": self._engine, **settings},
                "tunnels": {"t": fields},
            }
            gateway.config.write_text(yaml.safe_dump(document))

    def start(self, version: int) -> None:
        """Start both, and wait until b has learned the way to a."""
        for gateway in (self.a, self.b):
            gateway.launch()
        for gateway in (self.a, self.b):
            gateway.wait_ready()
        # Answered or not.
        self.a.namespace.run("ping", "-c", "1", "-W", "1", PLACES[version].b, check=False)
        until(lambda: self.port_of_a() == MAPPED_PORT, "b learns the port of the NAT")

    def own_address_of_b(self) -> str:
        """Return b's own address."""
        return str(tunnel(yaml.safe_load(self.b.config.read_text()))["local"])

    def port_of_a(self) -> int:
        """Return the port at which b finds a."""
        return int(self.b.call("ListTunnels")["tunnels"][0]["remote_port"])


def translate(router: Namespace, version: int, both: bool) -> None:
    """Let the router translate a's address, and with `both` forward to b."""
    places, family = PLACES[version], "ip" if version == 4 else "ip6"
    target = f"{places.nat}:{MAPPED_PORT}" if version == 4 else f"[{places.nat}]:{MAPPED_PORT}"
    forward = f"{family} daddr {places.b} dnat to {places.b_inside}" if both else ""
    router.run(
        "nft",
        f"""
        table {family} lab {{
            chain pre {{
                type nat hook prerouting priority dstnat
                {forward}
            }}
            chain post {{
                type nat hook postrouting priority srcnat
                {family} saddr {places.a} udp sport 4500 snat to {target}
            }}
        }}
        """,
    )


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[False, True], ids=["source", "both"])
def rig(request: pytest.FixtureRequest, tmp_path: Path, engine: str) -> Iterator[NatRig]:
    both = request.param
    with namespaces("a", "nat", "b") as hosts, contextlib.ExitStack() as stack:
        host_a, router, host_b = hosts
        wire(host_a, router)
        wire(router, host_b, name="wan2")
        forwarding(router)
        for version, places in PLACES.items():
            length = places.length
            for namespace, address, device in (
                (host_a, places.a, "wan"),
                (router, places.a_router, "wan"),
                (host_b, places.of_b(both), "wan2"),
                (router, places.b_router if both else places.nat, "wan2"),
            ):
                add_address(namespace, f"{address}/{length}", device)
            family = f"-{version}"
            host_a.ip(family, "route", "add", "default", "via", places.a_router)
            if both:
                host_b.ip(family, "route", "add", "default", "via", places.b_router)
                add_address(router, f"{places.nat}/{32 if version == 4 else 128}", "lo")
            translate(router, version, both)
        rig = NatRig(tmp_path, engine, hosts, both)
        for gateway in (rig.a, rig.b):
            stack.callback(lambda each=gateway: each.is_running and each.stop())
        yield rig


def ask(rig: NatRig, target: str, patience: float = 5.0) -> list[int]:
    """Return the bytes of each answer of b's echo within `patience` seconds, by UDP and TCP."""
    arguments = (target, str(PORT), str(patience))
    said = rig.a.namespace.run(sys.executable, "-c", ASK, *arguments).stdout
    return [int(number) for number in said.strip("[]\n").split(",")]


def wrong_checksums(namespace: Namespace) -> int:
    """Return the packets that the kernel has dropped for a wrong checksum."""
    found = namespace.run("cat", "/proc/net/snmp", "/proc/net/snmp6").stdout
    total = sum(int(n) for n in re.findall(r"^\w*InCsumErrors\s+(\d+)", found, re.M))
    lines = found.splitlines()
    for names, values in itertools.pairwise(lines):
        head = names.split()
        if "InCsumErrors" in head and values.startswith(head[0]):
            total += int(values.split()[head.index("InCsumErrors")])
    return total


def checked(octets: bytes) -> tuple[bytes, bytes]:
    """Return the upper layer of a packet, and as scapy makes it."""
    packet: Packet = IPv6(octets) if octets[0] >> 4 == 6 else IP(octets)
    before = bytes(packet.payload)
    again = packet.copy()
    for layer in (TCP, UDP, ICMP):
        if layer in again:
            again[layer].chksum = None
    if hasattr(again.payload, "cksum"):
        again.payload.cksum = None
    whole = bytes(again)
    return before, whole[len(whole) - len(before) :]


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_udp_and_icmp_pass_a_nat_with_checksums_that_are_right(
    rig: NatRig, version: int, capture: StartCapture
) -> None:
    rig.configure(version)
    rig.start(version)
    a, b, target = rig.a.namespace, rig.b.namespace, PLACES[version].b
    own_b = rig.own_address_of_b()
    for host, device in ((a, "wan"), (b, "wan2")):
        assert "tx-checksumming: on" in host.run("ethtool", "-k", device).stdout
    # With offloads: super-packets on both sides.
    for direction in ((), ("-R",)):
        with iperf_server(b, own_b):
            send_tcp(a, target, *direction)
    with running(b, ECHO, own_b, str(PORT)):
        captures = [capture(host, "esp0") for host in (a, b)]
        assert ask(rig, target) == ANSWERED
        assert ping(a, target, count=3, size=1001) == 3
    for capturing in captures:
        seen = {6: 0, 17: 0, 1: 0, 58: 0}
        for frame in frames(capturing.stop()):
            there, right = checked(frame)
            protocol = frame[9] if frame[0] >> 4 == 4 else frame[6]
            seen[protocol] = seen.get(protocol, 0) + 1
            if protocol == 17 and there[6:8] == b"\0\0":
                continue
            assert there == right, (protocol, frame.hex())
        assert seen[6] >= 8
        assert seen[17] == 16
        assert seen[1 if version == 4 else 58] >= 6
    assert [wrong_checksums(host) for host in (a, b)] == [0, 0]
    assert not drops(rig.a).keys() | drops(rig.b).keys()
    # All is said, so nothing is asked for.
    for gateway in (rig.a, rig.b):
        assert "original" not in " ".join(gateway.ask("status")["warnings"])
        assert gateway.ask("reload")["warnings"] == []


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.either_engine
def test_what_breaks_without_the_original_addresses_is_asked_for(rig: NatRig, version: int) -> None:
    rig.configure(version)
    complete = [gateway.config.read_text() for gateway in (rig.a, rig.b)]
    for gateway in (rig.a, rig.b):
        edit(gateway, _forget)
    rig.start(version)
    own_b = rig.own_address_of_b()
    before = wrong_checksums(rig.b.namespace)
    with running(rig.b.namespace, ECHO, own_b, str(PORT)):
        assert ask(rig, PLACES[version].b, 0.3)[:4] == [0] * 4
    assert wrong_checksums(rig.b.namespace) > before
    # b has seen the NAT; a knows it from its addresses alone.
    (line,) = [each for each in rig.b.ask("status")["warnings"] if "remote_original" in each]
    assert f"port {MAPPED_PORT}" in line
    assert line in rig.b.ask("reload")["warnings"]
    assert "remote_original" in rig.b.cli("reload").stderr
    checks = rig.a.cli("config", "check", str(rig.a.config)).stdout
    assert "'local_original'" in checks
    assert any("local_original" in each for each in rig.a.ask("reload")["warnings"])
    # Mended by a reload, without a restart.
    for gateway, text in zip((rig.a, rig.b), complete, strict=True):
        gateway.config.write_text(text)
        gateway.cli("reload")
    with running(rig.b.namespace, ECHO, own_b, str(PORT)):
        assert ask(rig, PLACES[version].b) == ANSWERED


def _forget(config: dict[str, Any]) -> None:
    for name in ("local_original", "remote_original"):
        tunnel(config).pop(name, None)
