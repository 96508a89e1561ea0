"""A tap on the lab's wire: counts ESP frames and captures every other frame.

It runs as a separate process inside a namespace (`python -m esp_gw.demo.tap DEVICE PORT PLAINTEXT`,
the last one in hex), prints `ready`, and prints one JSON object when its standard input closes. The
kernel classifies the frames by classic BPF (Documentation/networking/filter.rst), so that the tap
sees every frame at full rate.
"""

from __future__ import annotations

import ctypes
import json
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass

from esp_gw.demo.netns import Namespace, end
from esp_gw.errors import LabError
from esp_gw.protocol import IPPROTO_ICMP, IPPROTO_ICMPV6

_SO_ATTACH_FILTER = 26
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_ETH_P_ALL = 3
_SNAPLEN = 256
_SAMPLE_BUFFER = 256 << 10
_OTHER_BUFFER = 8 << 20
_SO_RCVBUFFORCE = 33

_ETH_HEADER = 14
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
# Router and neighbour discovery (RFC 4861), multicast listener discovery (RFC 2710, RFC 3810).
_NEIGHBOUR_TYPES = frozenset((130, 131, 132, 133, 134, 135, 136, 143))

_IKE_PORT, _IKE_VERSION = 500, 0x20

# ICMP messages as (protocol, type).
_REFUSALS = frozenset(((IPPROTO_ICMP, 3), (IPPROTO_ICMPV6, 1), (IPPROTO_ICMPV6, 4)))

_LD_H, _LD_B, _LD_W = 0x28, 0x30, 0x20
_LDX_IHL, _LD_H_X, _LD_W_X = 0xB1, 0x48, 0x40
_JEQ, _JSET, _RET = 0x15, 0x45, 0x06


@dataclass(frozen=True, slots=True)
class WireReport:
    """The frames on the wire; `cleartext` counts those that are neither ESP nor address resolution.

    `leaked` counts ESP frames of a sample in which the given plaintext was found, `ike` messages
    of IKE, which are not among the others.
    """

    esp: int
    cleartext: int
    examples: tuple[str, ...]
    leaked: int
    ike: int


class Tap:
    """A running tap."""

    def __init__(self, namespace: Namespace, device: str, port: int, plaintext: bytes) -> None:
        self._process = namespace.start(
            sys.executable,
            "-m",
            "esp_gw.demo.tap",
            device,
            str(port),
            plaintext.hex(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        if next(iter(self._process.stdout or ()), "") != "ready\n":
            self.close()
            raise LabError("the tap did not start", where=f"{namespace.name} {device}")

    def finish(self) -> WireReport:
        """End the tap and return its report."""
        output, _ = self._process.communicate(timeout=30)
        values = json.loads(output)
        return WireReport(
            values["esp"],
            values["cleartext"],
            tuple(values["examples"]),
            values["leaked"],
            values["ike"],
        )

    def close(self) -> None:
        """End the tap without a report."""
        end(self._process)


def esp_filter(port: int, if_esp: int, otherwise: int) -> list[tuple[int, int, int, int]]:
    """Return a BPF program that keeps `if_esp` bytes of ESP frames and `otherwise` of all others.

    ESP is protocol 50, or UDP from or to `port` with more than a keepalive and a non-zero SPI.
    """
    esp, other = 31, 32
    program = [
        (_LD_H, 0, 0, 12),
        (_JEQ, 0, 14, _IPV4),
        (_LD_B, 0, 0, 23),
        (_JEQ, esp - 4, 0, 50),
        (_JEQ, 0, other - 5, 17),
        (_LD_H, 0, 0, 20),
        (_JSET, other - 7, 0, 0x1FFF),  # a later fragment has no ports
        (_LDX_IHL, 0, 0, _ETH_HEADER),
        (_LD_H_X, 0, 0, 14),
        (_JEQ, 2, 0, port),
        (_LD_H_X, 0, 0, 16),
        (_JEQ, 0, other - 12, port),
        (_LD_H_X, 0, 0, 18),
        (_JEQ, other - 14, 0, 9),
        (_LD_W_X, 0, 0, 22),
        (_JEQ, other - 16, esp - 16, 0),
        (_JEQ, 0, other - 17, _IPV6),
        (_LD_B, 0, 0, 20),
        (_JEQ, esp - 19, 0, 50),
        (_JEQ, 0, other - 20, 17),
        (_LD_H, 0, 0, 54),
        (_JEQ, 2, 0, port),
        (_LD_H, 0, 0, 56),
        (_JEQ, 0, other - 24, port),
        (_LD_H, 0, 0, 58),
        (_JEQ, other - 26, 0, 9),
        (_LD_W, 0, 0, 62),
        (_JEQ, other - 28, esp - 28, 0),
    ]
    while len(program) < esp:
        program.append((_RET, 0, 0, otherwise))
    return [*program, (_RET, 0, 0, if_esp), (_RET, 0, 0, otherwise)]


def is_address_resolution(frame: bytes) -> bool:
    """Return True if a frame is ARP or IPv6 neighbour discovery, which no policy protects."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    if kind == _ARP:
        return True
    if kind != _IPV6 or len(frame) < _ETH_HEADER + 41:
        return False
    protocol, at = frame[_ETH_HEADER + 6], _ETH_HEADER + 40
    if protocol == 0 and len(frame) > at + 8:  # a hop-by-hop option precedes listener reports
        protocol, at = frame[at], at + 8
    return protocol == IPPROTO_ICMPV6 and frame[at] in _NEIGHBOUR_TYPES


def is_keepalive(frame: bytes, port: int) -> bool:
    """Return True if a frame is a NAT keepalive (RFC 3948 2.3): one byte 0xff in UDP."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    at = _ETH_HEADER + ((frame[_ETH_HEADER] & 15) << 2 if kind == _IPV4 else 40)
    protocol = frame[_ETH_HEADER + (9 if kind == _IPV4 else 6)]
    if kind not in (_IPV4, _IPV6) or protocol != 17 or len(frame) < at + 9:
        return False
    source, destination, length = struct.unpack_from("!HHH", frame, at)
    return port in (source, destination) and length == 9 and frame[at + 8] == 0xFF


def is_refusal(frame: bytes, port: int) -> bool:
    """Return True if a frame is an ICMP error that quotes ESP, because no gateway accepts it yet.

    It is destination unreachable of ICMP (RFC 792) or ICMPv6, or an ICMPv6 parameter problem such
    as an unknown next header (RFC 4443).
    """
    try:
        protocol, at = _upper(frame, _ETH_HEADER)
        if (protocol, frame[at]) not in _REFUSALS:
            return False
        quoted, at = _upper(frame, at + 8)
        return quoted == 50 or (quoted == 17 and port in struct.unpack_from("!HH", frame, at))
    except (IndexError, struct.error):
        return False


def is_ike(frame: bytes, port: int) -> bool:
    """Return True if a frame is a message of IKEv2 (RFC 7296 3.1).

    It has UDP port 500, or follows the Non-ESP Marker (RFC 3948 2.2) at `port`.
    """
    try:
        protocol, at = _upper(frame, _ETH_HEADER)
        ports = struct.unpack_from("!HH", frame, at)
        (length,) = struct.unpack_from("!H", frame, at + 4)
        message, end = at + 8, at + length
        if port in ports:
            if any(frame[message : message + 4]):
                return False
            message += 4
        elif _IKE_PORT not in ports:
            return False
        (told,) = struct.unpack_from("!I", frame, message + 24)
        return protocol == 17 and frame[message + 17] == _IKE_VERSION and told == end - message
    except (IndexError, struct.error):
        return False


def _upper(frame: bytes, at: int) -> tuple[int, int]:
    """Return protocol and offset of the upper-layer header of the IP packet at `at`."""
    if frame[at] >> 4 == 4:
        return frame[at + 9], at + ((frame[at] & 15) << 2)
    return frame[at + 6], at + 40


def _open(device: str, program: list[tuple[int, int, int, int]], buffer: int) -> socket.socket:
    # Not bound before the filter is attached, so that no unfiltered frame is queued.
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    memory = ctypes.create_string_buffer(code)
    fprog = struct.pack("HL", len(program), ctypes.addressof(memory))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
    sock.bind((device, _ETH_P_ALL))
    sock.setblocking(False)
    return sock


def _statistics(sock: socket.socket) -> tuple[int, int]:
    packets, drops = struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
    return packets, drops


def _frames(sock: socket.socket) -> list[bytes]:
    frames = []
    while True:
        try:
            frames.append(sock.recv(65536))
        except BlockingIOError:
            return frames


def main(device: str, port: int, plaintext: bytes) -> None:
    """Tap `device` until standard input closes, then print the report."""
    esp = _open(device, esp_filter(port, _SNAPLEN, 0), _SAMPLE_BUFFER)
    other = _open(device, esp_filter(port, 0, _SNAPLEN), _OTHER_BUFFER)
    print("ready", flush=True)
    sys.stdin.read()
    # The kernel's statistics also count frames that didn't fit into the buffer.
    esp_packets, _ = _statistics(esp)
    _, lost = _statistics(other)
    others = _frames(other)
    ike = sum(1 for frame in others if is_ike(frame, port))
    strange = [
        frame
        for frame in others
        if not is_address_resolution(frame)
        and not is_keepalive(frame, port)
        and not is_refusal(frame, port)
        and not is_ike(frame, port)
    ]
    leaked = sum(1 for frame in _frames(esp) if plaintext and plaintext in frame)
    report = {
        "esp": esp_packets,
        "cleartext": len(strange) + lost,
        "examples": [frame[_ETH_HEADER:].hex() for frame in strange[:3]],
        "leaked": leaked,
        "ike": ike,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]))
