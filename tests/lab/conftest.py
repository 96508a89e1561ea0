"""Labs for tests: real daemons in network namespaces. They need root, and say so."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from esp_gw.lab.gateways import LabGateway
from esp_gw.lab.netns import Namespace, end
from esp_gw.lab.pair import GatewayPair, PairPlan, gateway_pair
from esp_gw.lab.tap import Tap

MakePair = Callable[..., GatewayPair]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/lab" in str(item.path):
            item.add_marker(pytest.mark.root)


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("lab tests make network namespaces and need root: run ./scripts/test")


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def make_pair(tmp_path: Path, stack: contextlib.ExitStack) -> MakePair:
    """Build a pair of gateways from PairPlan fields; it is not started."""

    def make(**fields: object) -> GatewayPair:
        return stack.enter_context(gateway_pair(tmp_path, PairPlan(**fields)))  # type: ignore[arg-type]

    return make


@pytest.fixture
def tap(stack: contextlib.ExitStack) -> Callable[[Namespace], Tap]:
    """Tap the wire of a namespace for cleartext."""

    def start(namespace: Namespace, plaintext: bytes = b"") -> Tap:
        return stack.enter_context(contextlib.closing(Tap(namespace, "wan", 4500, plaintext)))

    return start


class Capture:
    """A running tcpdump on a device; `stop` returns the file when all is written."""

    def __init__(self, namespace: Namespace, path: Path, device: str = "wan") -> None:
        self.path = path
        self._process = namespace.start(
            *("tcpdump", "-i", device, "-n", "-s", "0", "-B", "65536"),
            *("--immediate-mode", "-U", "-w", str(path), "-Z", "root"),
            stderr=subprocess.PIPE,
        )
        if not any("listening on" in line for line in self._process.stderr or ()):
            raise AssertionError("tcpdump did not start")

    def stop(self) -> Path:
        end(self._process)
        return self.path


@pytest.fixture
def capture(tmp_path: Path, stack: contextlib.ExitStack) -> Callable[..., Capture]:
    """Capture the wire of a namespace into a file."""
    names = iter(range(100))

    def start(namespace: Namespace, device: str = "wan") -> Capture:
        capture = Capture(namespace, tmp_path / f"capture-{next(names)}.pcap", device)
        stack.callback(capture.stop)
        return capture

    return start


@dataclass(frozen=True)
class EspPacket:
    spi: int
    seq_lo: int
    iv: bytes
    frame: bytes


def esp_packets(path: Path) -> Iterator[EspPacket]:
    """Read the IPv4 ESP packets of a capture of Ethernet frames, in UDP or not."""
    data = path.read_bytes()
    assert data[:4] == b"\xd4\xc3\xb2\xa1", "not a little-endian pcap file"
    at = 24
    while at + 16 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 8)
        frame = data[at + 16 : at + 16 + size]
        at += 16 + size
        if frame[12:14] != b"\x08\x00" or frame[23] not in (17, 50):
            continue
        esp = 14 + (frame[14] & 15) * 4 + (8 if frame[23] == 17 else 0)
        if len(frame) < esp + 16:
            continue
        spi, seq_lo = struct.unpack_from("!II", frame, esp)
        yield EspPacket(spi, seq_lo, frame[esp + 8 : esp + 16], frame)


def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Wait for a condition; fail with `what` where it doesn't come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def send_frames(namespace: Namespace, frames: list[bytes], device: str = "wan") -> None:
    """Put Ethernet frames on a device, as they are."""
    script = (
        "import socket, sys, struct\n"
        "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); s.bind((sys.argv[1], 0))\n"
        "data = sys.stdin.buffer.read(); at = 0\n"
        "while at < len(data):\n"
        "    n, = struct.unpack_from('!I', data, at); s.send(data[at+4:at+4+n]); at += 4 + n\n"
    )
    blob = b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)
    subprocess.run(
        namespace.command(sys.executable, "-c", script, device),
        input=blob,
        check=True,
        timeout=30,
    )


def drops(gateway: LabGateway) -> dict[str, int]:
    return dict(gateway.ask("stats")["drops"])
