"""The first inner packet that exceeds the path MTU: its sender hears of it, by one packet alone."""

from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from esp_gw.demo.netns import Namespace, namespaces
from esp_gw.demo.pair import GatewayPair
from esp_gw.model import DropReason, Encapsulation, Mode
from tests.support.builders import OUTER
from tests.support.engine_pair import INNER, Side, engine_pair, install, outbound, until
from tests.support.engines import ENGINES
from tests.support.kernel_peer import inside
from tests.support.labtools import MakePair, carry_tcp, drops, forwarding, ping, site_host
from tests.support.labtools import until as until_lab

PATH = 1400
# ping's data of an inner packet of 1400 bytes.
DATA = {4: str(1400 - 28), 6: str(1400 - 48)}
SHAPES = [
    (mode, encapsulation, version)
    for mode in Mode
    for encapsulation in Encapsulation
    for version in (4, 6)
]


def narrow(pair: GatewayPair) -> None:
    """Make the path to b smaller, as after an ICMP error of a router."""
    remote = OUTER[pair.plan.outer_version][1]
    whole = 32 if pair.plan.outer_version == 4 else 128
    route = (f"{remote}/{whole}", "dev", "wan", "mtu", str(PATH))
    pair.a.namespace.ip(f"-{pair.plan.outer_version}", "route", "add", *route)


def widen(pair: GatewayPair) -> None:
    """Take back what `narrow` did, and wait until the gateway has seen it."""
    remote = OUTER[pair.plan.outer_version][1]
    before = pair.a.call("GetStatus")["mtu"]
    pair.a.namespace.ip(f"-{pair.plan.outer_version}", "route", "del", remote)
    until_lab(lambda: pair.a.call("GetStatus")["mtu"] > before, "the routes grow again")


def said_of_one(host: Namespace, target: str) -> str:
    """Return what ping says of one packet of 1400 bytes that may not be fragmented."""
    size = DATA[6 if ":" in target else 4]
    said = host.run(
        *("ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", size, target), check=False
    )
    return (said.stdout + said.stderr).replace("mtu=", "mtu = ")


@pytest.mark.parametrize(("mode", "encapsulation", "version"), SHAPES)
def test_one_packet_is_enough_to_learn_the_mtu_of_the_tunnel(
    make_pair: MakePair, mode: Mode, encapsulation: Encapsulation, version: int
) -> None:
    inner = (version,) if mode is Mode.TRANSPORT else (4, 6)
    pair = make_pair(
        mode=mode, encapsulation=encapsulation, outer_version=version, inner_versions=inner
    )
    pair.start()
    a = pair.a.namespace
    targets = [pair.plan.inner(1, each) for each in inner]
    assert [ping(a, target, count=1) for target in targets] == [1] * len(inner)
    for _ in range(5):
        narrow(pair)
        first = said_of_one(a, targets[0])
        until_lab(lambda: pair.a.call("GetStatus")["mtu"] < PATH, "the routes follow")
        if "local error" not in first:
            break
        # The gateway has seen the route before it saw a packet.
        widen(pair)
    mtu = pair.a.call("GetStatus")["mtu"]
    # That of the routes, which the kernel enforces from now on.
    assert f"mtu = {mtu}" in first, first
    assert f"From {targets[0]} " in first, first
    assert drops(pair.a) == {DropReason.TOO_BIG: 1}
    for target in targets:
        carry_tcp(a, pair.b.namespace, target)


def test_a_host_behind_the_gateway_learns_it_by_its_first_packet(make_pair: MakePair) -> None:
    pair = make_pair(inner_versions=(4, 6))
    with namespaces("h", "p") as (host, peer_host):
        site_host(host, pair.a.namespace, 1)
        site_host(peer_host, pair.b.namespace, 2)
        forwarding(pair.a.namespace, pair.b.namespace)
        # Strict: the answer has to come by the way of its source.
        for device in ("all", "default"):
            path = f"/proc/sys/net/ipv4/conf/{device}/rp_filter"
            pair.a.namespace.run("sh", "-c", f"echo 1 > {path}")
        pair.start()
        assert ping(host, "10.2.0.10", count=1) == 1
        narrow(pair)
        assert "mtu = 1338" in said_of_one(host, "10.2.0.10")
        assert "mtu = 1338" in said_of_one(host, "fd00:2::10")
        for target in ("10.2.0.10", "fd00:2::10"):
            carry_tcp(host, peer_host, target)


@pytest_asyncio.fixture(params=ENGINES)
async def sides(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Side, Side]]:
    async with engine_pair(request.param) as pair:
        yield pair


def told(side: Side) -> int:
    """Return the ICMP errors that the kernel of a side has received."""
    lines = side.namespace.run("cat", "/proc/net/snmp").stdout.splitlines()
    names, values = (line.split() for line in lines if line.startswith("Icmp:"))
    return int(values[names.index("InDestUnreachs")])


def without_path_mtu(side: Side) -> socket.socket:
    """Return a socket whose datagrams have DF and whatever size they have."""
    with inside(side.namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, 10, 3)  # IP_MTU_DISCOVER, IP_PMTUDISC_PROBE
    return sock


@pytest.mark.asyncio
async def test_a_flood_of_large_packets_is_answered_by_few_errors(
    sides: tuple[Side, Side],
) -> None:
    a, _ = sides
    sa = outbound()
    a.namespace.ip("route", "add", f"{OUTER[4][1]}/32", "dev", "wan", "mtu", "1300")
    install(sides, sa)
    began = time.monotonic()
    with without_path_mtu(a) as sock:
        for _ in range(400):
            sock.sendto(bytes(1350), (INNER[1], 7200))
    # The python engine, of this process, asks for the path MTU where its thread is.
    with inside(a.namespace):
        await until(
            lambda: a.engine.counters().sas[sa.name].drops.get(DropReason.TOO_BIG) == 400,
            "too big",
        )
    spans = 1 + (time.monotonic() - began) // 0.2
    assert 1 <= told(a) <= 8 * spans * a.engine.status().workers


@pytest.mark.asyncio
async def test_packets_that_may_be_fragmented_arrive_from_the_first_one_on(
    sides: tuple[Side, Side],
) -> None:
    a, b = sides
    sa = outbound()
    a.namespace.ip("route", "add", f"{OUTER[4][1]}/32", "dev", "wan", "mtu", "1300")
    install(sides, sa)
    with inside(b.namespace):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind((INNER[1], 7200))
        receiver.settimeout(10)
    with inside(a.namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT
    with receiver, sender:
        for size in (1350, 1201, 1370):
            sender.sendto(bytes(size), (INNER[1], 7200))
        await until(lambda: b.carried("b/in") == 3, "all")
        assert [len(receiver.recv(2000)) for _ in range(3)] == [1350, 1201, 1370]
    assert told(a) == 0
    assert a.engine.counters().sas[sa.name].drops == {}
