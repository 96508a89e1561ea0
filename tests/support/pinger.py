"""Sends echo requests: pinger.py TARGET COUNT SIZE INTERVAL; prints those answered and those sent.

ping(8) waits only two round trips for the last replies, which is too short on a busy machine. This
program waits until no reply has come for TIMEOUT seconds. At SIGTERM it sends no more.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import time

TIMEOUT = 1.0
ICMP, ICMP6 = socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6


def main(target: str, count: int, size: int, interval: float) -> tuple[int, int]:
    """Return the number of requests that were answered, and of those that were sent."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    ipv4 = ":" not in target
    family, protocol = (socket.AF_INET, ICMP) if ipv4 else (socket.AF_INET6, ICMP6)
    request, reply = (8, 0) if ipv4 else (128, 129)
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    ident = os.getpid() & 0xFFFF
    answered: set[int] = set()
    sent = 0
    moment = last = time.monotonic()
    while len(answered) < count:
        now = time.monotonic()
        if told:
            count = sent
        if sent < count and now >= moment:
            send(sock, target, message(request, ident, sent, size))
            sent += 1
            moment += interval
            last = now
            continue
        wait = moment - now if sent < count else last + TIMEOUT - now
        if wait <= 0:
            break
        if not select.select([sock], [], [], wait)[0]:
            continue
        packet = sock.recv(65536)
        kind, _, _, name, seq = struct.unpack_from("!BBHHH", packet, (packet[0] & 15) * 4 * ipv4)
        if (kind, name) == (reply, ident):
            answered.add(seq)
            last = time.monotonic()
    return len(answered), sent


def send(sock: socket.socket, target: str, data: bytes) -> None:
    try:
        sock.sendto(data, (target, 0))
    except OSError:
        return  # no route, or too big: counts as unanswered


def message(kind: int, ident: int, seq: int, size: int) -> bytes:
    data = struct.pack("!BBHHH", kind, 0, 0, ident, seq & 0xFFFF) + bytes(size)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) & ~1]))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return data[:2] + (~total & 0xFFFF).to_bytes(2) + data[4:]


if __name__ == "__main__":
    print(*main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
