"""Sends numbered datagrams at a rate that no buffer overflows at, and counts those that arrive.

numbered.py send SOURCE ADDRESS PORT RATE   until stdin closes; prints how many, RATE a second
numbered.py receive ADDRESS PORT            until stdin closes and nothing more comes; prints
                                            {"received": different, "repeated": N, "highest": N}
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

SIZES = (8, 200, 200, 200, 1000, 1000, 1300)
"""Sizes of the datagrams in turn; neighbours of one size go out in one call of the engine."""
BURST = 0.002
"""Seconds between two bursts."""
QUIET = 1.0
"""Seconds without a datagram after which none is on its way any more."""
_SO_RCVBUFFORCE = 33


def send(source: str, address: str, port: int, rate: int) -> int:
    """Return the number of datagrams that were sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((source, 0))
        sock.connect((address, port))
        number, begin = 0, time.monotonic()
        print("ready", flush=True)
        while not select.select([sys.stdin], [], [], BURST)[0]:
            # A sender that was not scheduled doesn't make up for it: its burst would be lost.
            due = min(int((time.monotonic() - begin) * rate), number + 200)
            begin = time.monotonic() - due / rate
            while number < due:
                number += 1
                sock.send(number.to_bytes(8).ljust(SIZES[number % len(SIZES)], b"."))
        return number


def receive(address: str, port: int) -> dict[str, int]:
    """Return how many different datagrams came, how many came again, and the highest number."""
    numbers: set[int] = set()
    total = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 32 << 20)
        sock.bind((address, port))
        print("ready", flush=True)
        inputs = [sock, sys.stdin]
        while inputs:
            ready = select.select(inputs, [], [], None if sys.stdin in inputs else QUIET)[0]
            if sys.stdin in ready:
                inputs.remove(sys.stdin)
            elif not ready:
                break
            if sock in ready:
                numbers.add(int.from_bytes(sock.recv(2048)[:8]))
                total += 1
    highest = max(numbers, default=0)
    return {"received": len(numbers), "repeated": total - len(numbers), "highest": highest}


if __name__ == "__main__":
    if sys.argv[1] == "send":
        print(send(*sys.argv[2:4], *map(int, sys.argv[4:])))
    else:
        print(json.dumps(receive(sys.argv[2], int(sys.argv[3]))))
