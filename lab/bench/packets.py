"""A source and a sink of small UDP packets, run inside a namespace.

`sink SECONDS` counts from the first packet on and prints the packets per second as JSON.
`source TUNNELS SECONDS` sends to the inner address of each tunnel in turn, at full speed.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from itertools import cycle

PREFIXES = ("10.64", "10.128")
"""First two octets of the inner addresses behind each side."""
PORT = 7007
SIZE = 64
_BUFFER = 4 * 2**20
# The socket module lacks it (ip(7)).
_IP_PKTINFO = 8
_BATCH = 256


def inner(side: int, tunnel: int) -> str:
    """The inner address of a tunnel behind a side; tunnels count from 0."""
    return f"{PREFIXES[side]}.{tunnel // 250}.{tunnel % 250 + 1}"


def sink(seconds: float) -> None:
    """Receive on every address of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        sock.bind(("0.0.0.0", PORT))  # noqa: S104 - nothing is on this network but the lab
        print("ready", flush=True)
        buf = bytearray(2048)
        receive = sock.recv_into
        receive(buf)
        began = now = time.monotonic()
        packets = 0
        sock.settimeout(seconds)
        while now < began + seconds:
            try:
                for _ in range(_BATCH):
                    receive(buf)
                    packets += 1
            except TimeoutError:
                break
            finally:
                now = time.monotonic()
        print(json.dumps({"packets_s": packets / (now - began)}), flush=True)


def source(tunnels: int, seconds: float) -> None:
    """Send from the near inner address of each tunnel to the far one."""
    ways = []
    for tunnel in range(tunnels):
        # struct in_pktinfo: no interface; the source address; the header's address, ignored.
        info = bytes(4) + socket.inet_aton(inner(0, tunnel)) + bytes(4)
        control = [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
        ways.append((control, (inner(1, tunnel), PORT)))
    data = [bytes(SIZE)]
    ends = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for sent, (control, address) in enumerate(cycle(ways)):
            sock.sendmsg(data, control, 0, address)
            if sent % _BATCH == 0 and time.monotonic() > ends:
                return


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["sink", seconds]:
            sink(float(seconds))
        case ["source", tunnels, seconds]:
            source(int(tunnels), float(seconds))
