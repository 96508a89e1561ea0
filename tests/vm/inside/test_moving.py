"""A kernel gateway moved to esp_gw by `sa import`, and a kernel configured by `sa export`.

    a  the kernel, then esp_gw  192.0.2.1 ==== wire ==== 192.0.2.2  the kernel  b

a has 10.1.0.1 and fd00:1::1 on its loopback device, b has 10.2.0.1 and fd00:2::1.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from platform import release
from typing import Any

import pytest
import yaml
from pyroute2 import netns

from esp_gw.config.provision import make_pair
from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import Namespace, add_address, end, namespaces, wire
from esp_gw.model import Encapsulation, Mode
from esp_gw.xfrm.parser import parse
from esp_gw.xfrm.records import XfrmState
from esp_gw.xfrm.takeover import MARGIN
from tests.support.engines import ENGINES
from tests.support.evidence import RecordProperty, record_trial
from tests.support.labtools import Capture, EspPacket, esp_packets, frames, send_frames, until

pytestmark = pytest.mark.vm_full
OUTER = ("192.0.2.1", "192.0.2.2")
INNER = (("10.1.0.1", "10.1.0.0/24"), ("10.2.0.1", "10.2.0.0/24"))
GCM, CHACHA = "rfc4106(gcm(aes))", "rfc7539esp(chacha20,poly1305)"
UDP_ENCAP, UDP_ENCAP_ESPINUDP = 100, 2
PINGS = 5


@dataclass(frozen=True)
class Shape:
    """Parameters of the kernel's SAs; `number` makes their keys and SPIs unique."""

    number: int
    mode: str = "tunnel"
    aead: str = GCM
    key_len: int = 36
    esn: bool = False
    window: int = 32
    udp: bool = False

    def __str__(self) -> str:
        esp = "udp" if self.udp else "esp"
        return f"{self.mode}-{esp}-{self.aead[:7]}-{'esn' if self.esn else 'no-esn'}-{self.window}"

    @property
    def words(self) -> str:
        """The configuration in words, for docs/interop.md."""
        esp = "ESP in UDP" if self.udp else "ESP"
        esn = "ESN" if self.esn else "no ESN"
        return f"{self.mode}, {esp}, {self.aead}, {esn}, window {self.window}"

    @property
    def spis(self) -> tuple[int, int]:
        """The SPIs from a to b, and from b to a."""
        return 0x1000 + 2 * self.number, 0x1001 + 2 * self.number

    def states(self) -> str:
        """The `ip -batch` lines for the states, the same on both sides."""
        lines = []
        for way, spi in enumerate(self.spis):
            src, dst = OUTER[way], OUTER[1 - way]
            line = f"xfrm state add src {src} dst {dst} proto esp spi {spi:#x} reqid 7"
            line += (
                f" mode {self.mode} aead {self.aead} 0x{f'{spi % 256 + 16:02x}' * self.key_len} 128"
            )
            line += f" replay-window {self.window}{' flag esn' if self.esn else ''}"
            lines.append(line + (" encap espinudp 4500 4500 0.0.0.0" if self.udp else ""))
        return "".join(f"{line}\n" for line in lines)

    def policies(self, side: int) -> str:
        """The `ip -batch` lines for the policies of one side."""
        lines = []
        for direction in ("out", "in", "fwd"):
            one, other = (side, 1 - side) if direction == "out" else (1 - side, side)
            src, dst = (
                INNER[side][1] if self.mode == "tunnel" else f"{OUTER[side]}/32"
                for side in (one, other)
            )
            lines.append(
                f"xfrm policy add src {src} dst {dst} dir {direction}"
                f" tmpl src {OUTER[one]} dst {OUTER[other]} proto esp reqid 7 mode {self.mode}"
            )
        return "".join(f"{line}\n" for line in lines)


@contextmanager
def udp_port(namespace: Namespace) -> Iterator[None]:
    """Bind the UDP port with UDP_ENCAP, so that the kernel decapsulates ESP in UDP on it."""
    netns.pushns(namespace.name)
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    finally:
        netns.popns()
    with sock:
        sock.setsockopt(socket.IPPROTO_UDP, UDP_ENCAP, UDP_ENCAP_ESPINUDP)
        sock.bind(("0.0.0.0", 4500))
        yield


@contextmanager
def two_hosts(*names: str) -> Iterator[list[Namespace]]:
    """Hosts a and b with a wire between them, inner addresses and routes."""
    with namespaces(*names) as hosts:
        wire(*hosts)
        for side, host in enumerate(hosts):
            add_address(host, f"{OUTER[side]}/24")
            add_address(host, f"{INNER[side][0]}/32", "lo")
            other = INNER[1 - side]
            host.ip("route", "add", other[1], "via", OUTER[1 - side], "src", INNER[side][0])
        yield hosts


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Namespace]]:
    """The two hosts shared by all moves."""
    with two_hosts("moved", "stays") as hosts:
        yield hosts


def batch(namespace: Namespace, lines: str) -> None:
    command = ("ip", "-n", namespace.name, "-batch", "-")
    done = subprocess.run(command, input=lines, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def ping(namespace: Namespace, source: str, target: str) -> int:
    """Send PINGS pings; return the number of replies."""
    command = ("ping", "-c", str(PINGS), "-i", "0.2", "-W", "10", "-I", source, target)
    result = namespace.run(*command, check=False)
    match = re.search(r"(\d+) received", result.stdout)
    assert match is not None, result.stdout + result.stderr
    return int(match[1])


def states(namespace: Namespace) -> dict[int, XfrmState]:
    return {state.spi: state for state in parse(namespace.ip("xfrm", "state"), "f").states}


def masked(packet: EspPacket) -> int:
    """The IV XOR the sequence number, whose upper half is 0 here."""
    return int.from_bytes(packet.iv) ^ packet.seq_lo


def in_the_clear(path: Path, source: str) -> int:
    """Number of frames in a capture that are cleartext ICMP from `source`."""
    start = bytes(ip_address(source).packed)
    return sum(frame[23] == 1 and frame[26:30] == start for frame in frames(path))


MOVE = """
umask 077
ip -s xfrm policy > $0/policy && ip -s xfrm state > $0/state &&
$1 -m esp_gw.cli.main --socket $2 sa import --check $0/state $0/policy &&
ip -s xfrm state > $0/state && ip xfrm state flush &&
$1 -m esp_gw.cli.main --socket $2 sa import $0/state $0/policy && ip xfrm policy flush
"""
SHAPES = [
    Shape(0),
    Shape(1, aead=CHACHA, esn=True, window=128),
    Shape(2, mode="transport", key_len=20, esn=True, window=2048),
    Shape(3, udp=True, esn=True),
]
# A move exercises the control plane rather than the engine, so the engines alternate.
MOVES = sorted(
    ((ENGINES[shape.number % len(ENGINES)], shape) for shape in SHAPES), key=lambda move: move[0]
)
EXPORTS = [(ENGINES[number % len(ENGINES)], mode) for number, mode in enumerate(Mode)]


@pytest.fixture(scope="module")
def moved(
    request: pytest.FixtureRequest,
    hosts: list[Namespace],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LabGateway]:
    """A running gateway without SAs of its own, into which the kernel's SAs are imported."""
    folder = tmp_path_factory.mktemp("gateway")
    gateway = LabGateway(hosts[0], folder / "gateway.yaml", folder)
    settings = {**gateway.settings, "engine": request.param}
    gateway.config.write_text(yaml.safe_dump({"gateway": settings}))
    gateway.create_ledger()
    gateway.start()
    yield gateway
    gateway.stop()


def refused(now: dict[str, Any], before: dict[str, Any]) -> int:
    """Number of packets dropped as replays, or failing authentication as too old for ESN."""
    reasons = ("replay-old", "replay-duplicate", "auth-failed")
    return sum(now["drops"].get(name, 0) - before["drops"].get(name, 0) for name in reasons)


Record = Callable[[str, str, str], None]


@pytest.fixture
def record(record_property: RecordProperty) -> Record:
    """Record the trial for docs/interop.md."""

    def record(configuration: str, tried: str, engine: str) -> None:
        version = subprocess.run(("ip", "-V"), capture_output=True, text=True, check=True).stdout
        iproute2 = version.split(",")[1].strip().replace("-", " ")
        record_trial(
            record_property,
            peer=f"{iproute2}, `ip xfrm` of Linux {release()}",
            configuration=configuration,
            tried=tried,
            engine=engine,
        )

    return record


# The scope keeps a gateway for all of its engine's moves.
@pytest.mark.parametrize(("moved", "shape"), MOVES, ids=str, indirect=["moved"], scope="module")
def test_a_gateway_of_the_kernel_moves_while_its_peer_stays(
    shape: Shape, hosts: list[Namespace], moved: LabGateway, tmp_path: Path, record: Record
) -> None:
    engine = moved.call("GetStatus")["engine"]
    record(shape.words, "`sa import` of a running gateway of the kernel, its peer stays", engine)
    a, b = hosts
    there, back = shape.spis
    ends = OUTER if shape.mode == "transport" else (INNER[0][0], INNER[1][0])
    with ExitStack() as stays, ExitStack() as goes:
        if shape.udp:
            stays.enter_context(udp_port(b))
            goes.enter_context(udp_port(a))
        for side, host in enumerate(hosts):
            batch(host, shape.states() + shape.policies(side))
        came = Capture(a, tmp_path / "came.pcap")
        assert ping(a, *ends) == PINGS
        before = states(b)
        assert before[there].seq == before[back].oseq == PINGS
        kernels = list(esp_packets(came.stop()))
        recorded = [packet.frame for packet in kernels if packet.spi == back]
        assert len(recorded) == PINGS

        # The holder of the port has to end first.
        goes.close()
        went = Capture(a, tmp_path / "went.pcap")
        pings = a.start("ping", "-i", "0.05", "-I", *ends)
        steps = ("sh", "-c", MOVE, str(tmp_path), sys.executable, str(moved.socket))
        result = a.run(*steps, check=False)
        end(pings)
        assert result.returncode == 0, result.stderr
        assert a.ip("xfrm", "state") == a.ip("xfrm", "policy") == ""
        assert ping(a, *ends) == PINGS
        assert ping(b, *reversed(ends)) == PINGS
        assert in_the_clear(went.stop(), ends[0]) == 0

        # The kernel's IVs are sequence numbers XOR a random value, ours are plain; none repeats.
        sent = [packet for packet in [*kernels, *esp_packets(went.path)] if packet.spi == there]
        (random,) = {masked(packet) for packet in kernels if packet.spi == there}
        assert {masked(packet) for packet in sent} == {random, 0}
        assert len({packet.iv for packet in sent}) == len(sent)

        # The peer keeps its SAs, and their sequence numbers continue.
        after = states(b)
        assert after.keys() == before.keys()
        assert after[there].seq >= before[there].seq + MARGIN + 2 * PINGS
        assert after[back].oseq >= before[back].oseq + 2 * PINGS

        # Packets that the kernel had accepted are refused as replays.
        stats = moved.call("GetStats")
        send_frames(b, recorded)
        until(
            lambda: refused(moved.call("GetStats"), stats) == PINGS, "the replays are dropped", 60
        )
        assert moved.call("GetStats")["packets_in"] == stats["packets_in"]
        moved.call("FlushSas")
        for what in ("state", "policy"):
            b.ip("xfrm", what, "flush")


@pytest.mark.parametrize(("engine", "mode"), EXPORTS)
def test_a_kernel_takes_an_export_and_is_the_other_end(
    engine: str, mode: Mode, tmp_path: Path, record: Record
) -> None:
    record(f"{mode}, as `init` makes it", "`sa export --format iproute2` for the other end", engine)
    with two_hosts(f"{mode}-a", f"{mode}-b") as (a, b):
        gateway = LabGateway(a, Path(), tmp_path)
        tunnel = mode is Mode.TUNNEL
        nets = ("10.{}.0.0/24", "fd00:{}::/64") if tunnel else ()
        pair = make_pair(
            tmp_path / "init",
            local=ip_address(OUTER[0]),
            remote=ip_address(OUTER[1]),
            local_nets=[ip_network(net.format(1)) for net in nets],
            remote_nets=[ip_network(net.format(2)) for net in nets],
            mode=mode,
            encapsulation=Encapsulation.NONE,
            local_settings={**gateway.settings, "engine": engine},
        )
        gateway.config = pair.local
        gateway.create_ledger()
        gateway.start()
        try:
            ends = [OUTER]
            if tunnel:
                add_address(b, "fd00:2::1/128", "lo")
                b.ip("route", "add", "fd00:1::/64", "dev", "wan", "src", "fd00:2::1")
                ends = [("10.1.0.1", "10.2.0.1"), ("fd00:1::1", "fd00:2::1")]
            # The second time the kernel has lost its state, and must not reuse sequence numbers.
            for _ in range(2):
                export = ("sa", "export", "--config", str(gateway.config), "--output", "-")
                batch(b, gateway.cli(*export).stdout)
                for here, there in ends:
                    assert ping(a, here, there) == PINGS
                    assert ping(b, there, here) == PINGS
                b.ip("xfrm", "state", "flush")
                b.ip("xfrm", "policy", "flush")
        finally:
            gateway.stop()
