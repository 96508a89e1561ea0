"""A datagram each millisecond through a link, and when each arrived.

Both halves run inside a namespace and speak JSON lines. `send SOURCE TARGET` prints "ready", sends
numbered datagrams, and prints the number of them when its standard input ends. `receive ADDRESS`
prints "ready", then the time of the first arrival, and when its standard input ends a list of
`[number, time]`. Times are seconds of CLOCK_REALTIME by the kernel: what the receiving program
waits for a processor is not in them.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence
from itertools import pairwise

PORT = 7008
INTERVAL = 0.001
MAX_SECONDS = 120
_NUMBER = struct.Struct("!Q")
_TIME = struct.Struct("@qq")
# Not in the module of Python 3.11: SO_TIMESTAMPNS of asm-generic/socket.h.
_SO_TIMESTAMPNS = 35

Arrivals = Sequence[tuple[int, float]]


def longest_gap(arrivals: Arrivals) -> float:
    """The longest time between two arrivals that follow each other, in seconds."""
    times = sorted(at for _, at in arrivals)
    return max((later - earlier for earlier, later in pairwise(times)), default=0.0)


def count_missing(arrivals: Arrivals) -> int:
    """The datagrams between the first and the last one that did not arrive."""
    numbers = {number for number, _ in arrivals}
    return max(numbers) - min(numbers) + 1 - len(numbers) if numbers else 0


def _send(source: str, target: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.setblocking(False)
        _say("ready")
        began, number = time.monotonic(), 0
        while number < MAX_SECONDS / INTERVAL:
            # Without a tunnel there may be no way to the target.
            with contextlib.suppress(OSError):
                sock.sendto(_NUMBER.pack(number), (target, PORT))
            number += 1
            pause = max(0.0, began + number * INTERVAL - time.monotonic())
            if select.select([sys.stdin], [], [], pause)[0]:
                break
        _say(number)


def _receive(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        sock.bind((address, PORT))
        _say("ready")
        arrivals: list[tuple[int, float]] = []
        while sys.stdin not in (readable := select.select([sock, sys.stdin], [], [])[0]):
            if sock in readable:
                arrivals.append(_take(sock))
                if len(arrivals) == 1:
                    _say(arrivals[0][1])
        _say(arrivals)


def _take(sock: socket.socket) -> tuple[int, float]:
    data, controls, _, _ = sock.recvmsg(_NUMBER.size, socket.CMSG_SPACE(_TIME.size))
    seconds, nanoseconds = _TIME.unpack(controls[0][2])
    return _NUMBER.unpack(data)[0], seconds + nanoseconds / 1e9


def _say(value: object) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "send":
        _send(*sys.argv[2:])
    else:
        _receive(*sys.argv[2:])
