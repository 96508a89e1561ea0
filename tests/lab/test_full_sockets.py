"""A full socket, and a packet that stands for very many, hold up nobody else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from esp_gw.demo.gateways import usage
from esp_gw.demo.netns import Namespace, end
from esp_gw.demo.pair import GatewayPair
from esp_gw.model import Encapsulation
from tests.support.engines import ENGINES
from tests.support.hub import HUB, Hub, hub_lab, inner
from tests.support.labtools import (
    MakePair,
    answers,
    drops,
    edit,
    ping,
    running,
    sas,
    start_pings,
    until,
)

FAST, SLOW = 1, 2
"""The sites of the hub."""
ONE = {4: "198.51.100.1", 6: "2001:db8::129"}
"""The hub's address for both of them, where it has one."""
QUEUE_DROPS = {"queue-full", "queue-timeout"}

# Paced, so that it is the socket that gets full, not the TUN device's queue.
FLOOD = """
import socket, sys, time
target, flows, burst = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(flows)]
print("ready", flush=True)
while True:
    for sock in socks:
        for _ in range(burst):
            try:
                sock.sendto(bytes(1200), (target, 9))
            except OSError:
                pass
    time.sleep(0.001)
"""
# Bound, so that no ICMP error comes back; its own buffer may overflow.
SINK = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[1], 9))
print("ready", flush=True)
time.sleep(600)
"""


def slow_down(host: Namespace, device: str, rate: str) -> None:
    """Limit a device by a queue longer than the buffer of any socket."""
    shaper = ("tbf", "rate", rate, "burst", "64kb", "limit", "64mb")
    host.run("tc", "qdisc", "add", "dev", device, "root", *shaper)


MakeHub = Callable[..., Hub]


@pytest.fixture(params=ENGINES)
def make_hub(
    request: pytest.FixtureRequest, tmp_path: Path, stack: contextlib.ExitStack
) -> MakeHub:
    """Start a hub with a fast and a slow site, for each installed engine."""

    def make(rate: str = "1mbit", **how: object) -> Hub:
        lab = stack.enter_context(hub_lab(tmp_path, **how))  # type: ignore[arg-type]
        for gateway in (lab.hub, *lab.sites.values()):
            settings = {"engine": request.param, "workers": 1}
            edit(gateway, lambda config, new=settings: config["gateway"].update(new))
        lab.start()
        assert lab.reaches(FAST)
        assert lab.reaches(SLOW)
        slow_down(lab.hub.namespace, f"wan{SLOW}", rate)
        return lab

    return make


@contextlib.contextmanager
def flooded(lab: Hub) -> Iterator[None]:
    """Send more into the slow tunnel than its socket takes, while the block runs."""
    with (
        running(lab.sites[SLOW].namespace, SINK, inner(SLOW)),
        running(lab.hub.namespace, FLOOD, inner(SLOW), "1", "10"),
    ):
        until(lambda: QUEUE_DROPS & drops(lab.hub).keys(), "the socket is full", 30)
        yield


KINDS = [(version, encapsulation) for version in (4, 6) for encapsulation in Encapsulation]


def _others_have_all_their_packets(lab: Hub) -> None:
    with flooded(lab):
        assert ping(lab.hub.namespace, inner(FAST), count=100, interval=0.02) == 100
        assert ping(lab.sites[FAST].namespace, HUB, count=100, interval=0.02) == 100
        assert lab.hub.ask("status")["sas"] == 4
    # The socket's buffer holds half a minute of the slow link: it is still full.
    assert ping(lab.hub.namespace, inner(FAST), count=100, interval=0.02) == 100
    ways = sas(lab.hub)
    assert ways[f"site-{FAST}/out"]["drops"] == {}
    slow = ways[f"site-{SLOW}/out"]["drops"]
    assert slow.keys() <= QUEUE_DROPS
    assert drops(lab.sites[SLOW]) == drops(lab.sites[FAST]) == {}
    sent = sas(lab.sites[FAST])["hub/out"]["packets"]
    assert ways[f"site-{FAST}/in"]["packets"] == sent


@pytest.mark.parametrize(("version", "encapsulation"), KINDS)
def test_a_flood_into_a_slow_tunnel_leaves_the_tunnels_of_the_same_address_their_packets(
    make_hub: MakeHub, version: int, encapsulation: Encapsulation
) -> None:
    _others_have_all_their_packets(
        make_hub(version=version, encapsulation=encapsulation, local=ONE[version])
    )


@pytest.mark.either_engine
def test_a_flood_into_a_slow_tunnel_leaves_the_tunnels_of_other_addresses_their_packets(
    make_hub: MakeHub,
) -> None:
    _others_have_all_their_packets(make_hub())


@pytest.mark.either_engine
@pytest.mark.parametrize("encapsulation", Encapsulation)
def test_the_socket_of_a_peer_is_closed_with_its_tunnel(
    make_hub: MakeHub, encapsulation: Encapsulation
) -> None:
    lab = make_hub(encapsulation=encapsulation, local=ONE[4])

    def sockets() -> int:
        return lab.hub.namespace.run("ss", "-Huwan").stdout.count(f"{ONE[4]}:")

    assert sockets() == 1
    with flooded(lab):
        assert ping(lab.hub.namespace, inner(FAST), count=20, interval=0.02) == 20
        assert sockets() >= 2
        edit(lab.hub, lambda config: config["tunnels"].pop(f"site-{SLOW}"))
        assert lab.hub.ask("reload")["changes"]
        assert ping(lab.hub.namespace, inner(FAST), count=20, interval=0.02) == 20
        until(lambda: sockets() <= 2, "the removed peer's socket is closed")
    edit(lab.hub, lambda config: config["tunnels"].clear())
    assert lab.hub.ask("reload")["changes"]
    until(lambda: sockets() == 0, "all are closed")


def test_a_full_socket_costs_no_time_of_a_processor_and_drops_what_waits_too_long(
    make_hub: MakeHub,
) -> None:
    lab = make_hub(rate="1kbit")
    with flooded(lab):
        pass
    until(lambda: not _moves(lab), "what was under way has arrived")
    late = drops(lab.hub)["queue-timeout"]
    before = usage(lab.hub.pid).cpu_s
    # Something waits for the socket all the time.
    trickle = start_pings(lab.hub.namespace, inner(SLOW), count=60, interval=0.05)
    time.sleep(2)  # CPU time is measured over an interval
    spent = usage(lab.hub.pid).cpu_s - before
    assert answers(trickle) == 0
    # A worker that spins takes two seconds.
    assert spent < 0.2
    until(lambda: drops(lab.hub)["queue-timeout"] >= late + 50, "they are counted")


def _moves(lab: Hub) -> bool:
    before = drops(lab.hub)
    time.sleep(0.3)
    return drops(lab.hub) != before


def test_what_waits_for_a_socket_is_counted_when_the_socket_goes(make_hub: MakeHub) -> None:
    lab = make_hub()
    with flooded(lab):
        edit(lab.hub, lambda config: config["tunnels"].pop(f"site-{SLOW}"))
        assert lab.hub.ask("reload")["changes"]
    assert sas(lab.hub).keys() == {f"site-{FAST}/in", f"site-{FAST}/out"}
    assert lab.reaches(FAST)


def test_a_socket_with_room_again_carries_as_before(make_hub: MakeHub) -> None:
    lab = make_hub()
    with flooded(lab):
        pass
    lab.hub.namespace.run("tc", "qdisc", "del", "dev", f"wan{SLOW}", "root")
    until(lambda: ping(lab.hub.namespace, inner(SLOW), count=1), "it answers again")
    assert ping(lab.hub.namespace, inner(SLOW), count=100) == 100


def test_workers_that_share_an_sa_in_overload_lose_nothing_to_the_replay_window_as_forged(
    make_pair: MakePair,
) -> None:
    pair = make_pair(settings={"workers": 2})
    pair.start()
    slow_down(pair.a.namespace, "wan", "20mbit")
    target = pair.plan.inner(1)
    with (
        running(pair.b.namespace, SINK, target),
        running(pair.a.namespace, FLOOD, target, "16", "4"),
    ):
        until(lambda: QUEUE_DROPS & drops(pair.a).keys(), "a socket is full", 30)
        overflows = drops(pair.a).total()
        until(lambda: drops(pair.a).total() > overflows + 20_000, "it goes on for a while", 60)
        carried = pair.b.ask("stats")["packets_in"]
        until(lambda: pair.b.ask("stats")["packets_in"] > carried + 2_000, "packets arrive", 60)
    assert drops(pair.a).keys() <= QUEUE_DROPS
    lost = drops(pair.b)
    assert lost.keys() <= {"replay-old"}
    # Beyond the window are only those of a worker that was kept from running at a bad moment.
    assert lost.total() < carried / 50


TINY = """
import fcntl, os, socket, struct, sys
size, count = int(sys.argv[1]), int(sys.argv[2])
fd = os.open("/dev/net/tun", os.O_RDWR)
# TUNSETIFF: IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, as a virtual machine's device.
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"vm0", 0x0001 | 0x1000 | 0x4000))
os.system("ip link set vm0 up mtu 65535 && ip addr add 10.1.0.49/30 dev vm0")
os.system("for f in all vm0; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done")
os.system("echo 1 > /proc/sys/net/ipv4/ip_forward")

def add(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", bytes(data)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total

ends = socket.inet_aton("10.1.0.50") + socket.inet_aton("10.2.0.1")
ip = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 65535, 1, 0x4000, 64, 6, 0) + ends)
ip[10:12] = struct.pack("!H", ~add(ip) & 0xFFFF)
pseudo = add(ends + struct.pack("!HH", 6, 65535 - 20))
tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 500, pseudo, 0)
# struct virtio_net_hdr: partial checksum, TCP over IPv4.
head = struct.pack("=BBHHHH", 1, 1, 40, size, 20, 16)
print("ready", flush=True)
for _ in range(count):
    os.write(fd, head + ip + tcp + bytes(65535 - 40))
sys.stdin.read()
"""
SANE, TINIEST = 64, 1
"""Segment sizes in bytes: the smallest that a whole super-packet may have, and the smallest."""


@contextlib.contextmanager
def guest(pair: GatewayPair, size: int, count: int) -> Iterator[None]:
    """A virtual machine behind a that has sent super-packets to b."""
    edit(pair.a, lambda config: config["gateway"].update(source_check="off"))
    pair.start()
    process = pair.a.namespace.start(
        *(sys.executable, "-c", TINY, str(size), str(count)), stdin=-1, stdout=-1
    )
    try:
        assert next(iter(process.stdout or ()), "") == "ready\n"
        yield
    finally:
        end(process)


def test_super_packets_of_tiny_segments_are_dropped_and_delay_nobody(make_pair: MakePair) -> None:
    pair = make_pair()
    native = pair.plan.settings["engine"] == "native"
    # The python engine's device takes none: the kernel splits them, and has a queue of 500.
    count = 64 if native else 1
    with guest(pair, TINIEST, count):
        if native:
            until(lambda: drops(pair.a)["too-many-segments"] == count, "all are counted")
            assert sas(pair.a)["pi-b/out"]["packets"] == 0
        until(lambda: ping(pair.b.namespace, pair.plan.inner(0), count=1), "b is answered")
        assert pair.a.ask("status")["sas"] == 2


def test_super_packets_of_the_smallest_sane_segments_are_carried(make_pair: MakePair) -> None:
    pair = make_pair()
    with guest(pair, SANE, 4):
        whole = -(-(65535 - 40) // SANE)
        # For the python engine the kernel splits it, into more packets than the device's queue has.
        carried = whole // 2
        until(lambda: sas(pair.a)["pi-b/out"]["packets"] >= carried, "a super-packet is carried")
        assert drops(pair.a) == {}
        assert ping(pair.b.namespace, pair.plan.inner(0), count=20) == 20


SHORT = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_RAW, 50)
for length in range(8):
    sock.sendto(bytes(range(1, length + 1)), (sys.argv[1], 0))
"""


@pytest.mark.parametrize("outer_version", [4, 6])
def test_payloads_without_an_spi_are_counted_by_one_of_several_workers(
    make_pair: MakePair, outer_version: int
) -> None:
    pair = make_pair(
        encapsulation=Encapsulation.NONE, outer_version=outer_version, settings={"workers": 2}
    )
    pair.start()
    pair.a.namespace.run(sys.executable, "-c", SHORT, str(pair.plan.outer[1]))
    until(lambda: drops(pair.b).total() >= 8, "all are counted")
    assert drops(pair.b) == {"too-short": 8}
    assert ping(pair.a.namespace, pair.plan.inner(1), count=5) == 5
