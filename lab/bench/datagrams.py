"""A generator of small datagrams in many flows, and a receiver that counts them.

Both run inside a namespace and speak JSON lines.

`send DEVICE MAC SOURCE TARGET FLOWS SIZE RATE SECONDS` prints "ready", waits for a line, and sends
UDP datagrams of SIZE bytes, one of each flow in turn. It prints `{"began", "ended", "sent"}`: times
of CLOCK_MONOTONIC, and the packets offered. It sends by a packet socket (packet(7)), 64 packets a
system call: half the cost of a UDP socket, so that what is measured is the system behind DEVICE.
MAC is the neighbour's, empty for a device without a link layer.

`receive ADDRESS` prints "ready", counts until it is given a line, and prints a list of
`[time, packets received by then]`. It looks every millisecond and takes all that has come: a
wake-up for each packet would be the larger part of the work.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator

from lab.bench.pacer import MAX_BURST, Pacer, common_length

PORT = 7007
FIRST_SOURCE_PORT = 20000
_BUFFER = 32 * 2**20
_BATCH = 256
_MARK_S = 0.005
_POLL_S = 0.001
_SEND_TIMEOUT_S = 2
_ETH_P_IP = 0x0800
_ARPHRD_ETHER = 1
# Not in the modules of Python 3.11.
_SO_RCVBUFFORCE, _SO_SNDBUFFORCE = 33, 32
_PR_SET_TIMERSLACK = 29
_IPPROTO_UDP = 17

_libc = ctypes.CDLL(None, use_errno=True)


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Msghdr(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Mmsghdr(ctypes.Structure):
    _fields_ = (("hdr", _Msghdr), ("len", ctypes.c_uint))


class Messages:
    """Buffers as sendmmsg and recvmmsg take them, each for one packet."""

    def __init__(self, buffers: list[ctypes.Array[ctypes.c_char]], name: bytes = b"") -> None:
        self.count = len(buffers)
        self._buffers = buffers
        self._name = ctypes.create_string_buffer(name, len(name) or 1)
        self._vectors = (_Iovec * self.count)()
        self._array = (_Mmsghdr * self.count)()
        for vector, message, buffer in zip(self._vectors, self._array, buffers, strict=True):
            vector.base, vector.len = ctypes.addressof(buffer), len(buffer)
            message.hdr.iov, message.hdr.iovlen = ctypes.pointer(vector), 1
            if name:
                message.hdr.name = ctypes.addressof(self._name)
                message.hdr.namelen = len(name)

    def send(self, fd: int, first: int, count: int) -> int:
        """Send `count` messages from the place `first` on; the number that the kernel dealt with.

        One that a full queue refuses is dealt with: it is lost. Raises OSError.
        """
        place = ctypes.byref(self._array, first * ctypes.sizeof(_Mmsghdr))
        done = int(_libc.sendmmsg(fd, place, count, 0))
        if done < 0:
            number = ctypes.get_errno()
            if number != errno.ENOBUFS:
                raise OSError(number, os.strerror(number))
            done = 0
        # The one at which sendmmsg stopped early is the one that was refused.
        return min(done + 1, count)

    def receive(self, fd: int) -> int:
        """Receive what is there, up to all the messages; their number."""
        return max(0, int(_libc.recvmmsg(fd, self._array, self.count, socket.MSG_DONTWAIT, None)))


def packet(source: str, target: str, source_port: int, size: int) -> bytes:
    """An IPv4 packet with a UDP datagram of `size` bytes for PORT, with both checksums."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    length = 8 + size
    ports = struct.pack("!HHH", source_port, PORT, length)
    payload = bytes(size)
    pseudo = addresses + struct.pack("!HH", _IPPROTO_UDP, length)
    udp_sum = checksum(pseudo + ports + bytes(2) + payload) or 0xFFFF
    fields = (0x45, 0, 20 + length, 0, 0x4000, 64, _IPPROTO_UDP)
    header_sum = checksum(struct.pack("!BBHHHBBH", *fields, 0) + addresses)
    header = struct.pack("!BBHHHBBH", *fields, header_sum) + addresses
    return header + ports + struct.pack("!H", udp_sum) + payload


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def send(
    device: str,
    neighbour: str,
    source: str,
    target: str,
    flows: int,
    size: int,
    rate: float,
    seconds: float,
) -> None:
    """Send for `seconds`, and report on stdout. Raises OSError."""
    packets = [packet(source, target, FIRST_SOURCE_PORT + flow, size) for flow in range(flows)]
    buffers = [ctypes.create_string_buffer(each, len(each)) for each in packets]
    length = common_length(flows, 2 * MAX_BURST)
    name = _link_address(device, bytes.fromhex(neighbour.replace(":", "")))
    messages = Messages([buffers[place % flows] for place in range(length)], name)
    # Sleeps end when they should, and not 50 microseconds later (prctl(2)).
    _libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        timeout = struct.pack("ll", _SEND_TIMEOUT_S, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.monotonic()
        sent = sum(_bursts(sock.fileno(), messages, Pacer(rate, began), began + seconds))
        report = {"began": began, "ended": time.monotonic(), "sent": sent}
    print(json.dumps(report), flush=True)


def _bursts(fd: int, messages: Messages, pacer: Pacer, ends: float) -> Iterator[int]:
    place = 0
    while (now := time.monotonic()) < ends:
        left = pacer.take(now)
        if not left:
            time.sleep(pacer.wait(now))
        while left:
            done = messages.send(fd, place, min(left, messages.count - place))
            place = (place + done) % messages.count
            left -= done
            yield done


def _link_address(device: str, neighbour: bytes) -> bytes:
    """struct sockaddr_ll of a neighbour on a device (packet(7))."""
    index = socket.if_nametoindex(device)
    protocol = socket.htons(_ETH_P_IP)
    kind = _ARPHRD_ETHER if neighbour else 0
    fields = (socket.AF_PACKET, protocol, index, kind, 0, len(neighbour), neighbour)
    return struct.pack("=HHiHBB8s", *fields)


def receive(address: str) -> None:
    """Count the datagrams for an address until stdin has a line, and report on stdout."""
    buffers = [ctypes.create_string_buffer(2048) for _ in range(_BATCH)]
    messages = Messages(buffers)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # The receiver's socket is not what is measured.
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((address, PORT))
        print("ready", flush=True)
        total, marks = 0, [(time.monotonic(), 0)]
        while True:
            got = messages.receive(sock.fileno())
            total += got
            now = time.monotonic()
            if now >= marks[-1][0] + _MARK_S:
                marks.append((now, total))
            if got < _BATCH and select.select([sys.stdin], [], [], _POLL_S)[0]:
                break
        marks.append((time.monotonic(), total))
    print(json.dumps(marks), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["receive", address]:
            receive(address)
        case ["send", device, mac, source, target, flows, size, rate, seconds]:
            send(device, mac, source, target, int(flows), int(size), float(rate), float(seconds))
