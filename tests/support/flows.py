"""Sends numbered datagrams of many flows to an echo, and tells which came back out of turn.

flows.py echo ADDRESS PORT                answers whoever asks, until it is ended
flows.py send ADDRESS PORT FLOWS COUNT    prints {"answered": N, "out_of_order": N}

A flow has up to WINDOW datagrams on the way, so that none is lost for want of room anywhere. All
its datagrams have one size, which other flows have, too. The flows are the same in every run.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

WINDOW = 8
FIRST_PORT = 20000
PATIENCE = 5.0
SIZES = (40, 700, 1300)


def echo(address: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind((address, port))
        print("ready", flush=True)
        while True:
            data, source = sock.recvfrom(2048)
            sock.sendto(data, source)


class Flow:
    """One flow: numbers that went out, numbers that came back."""

    def __init__(self, number: int, address: str, port: int, count: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("", FIRST_PORT + number))
        self.sock.connect((address, port))
        self.sock.setblocking(False)
        self.count = count
        self._data = bytes(SIZES[number % len(SIZES)])
        self.sent = self.answered = self.out_of_order = 0
        self._last = -1

    def fill(self) -> None:
        # The first answer tells the kernel by which queue of the TUN device the flow goes from then
        # on; what waits in another until then may be overtaken.
        window = WINDOW if self.answered else 1
        while self.sent < min(self.count, self.answered + window):
            self.sock.send(self.sent.to_bytes(4, "big") + self._data)
            self.sent += 1

    def take(self) -> None:
        while True:
            try:
                number = int.from_bytes(self.sock.recv(2048)[:4], "big")
            except BlockingIOError:
                return
            self.answered += 1
            self.out_of_order += number != self._last + 1
            self._last = number


def send(address: str, port: int, flows: int, count: int) -> dict[str, int]:
    """Return how many datagrams came back, and how many not in their turn."""
    all_flows = [Flow(number, address, port, count) for number in range(flows)]
    by_sock = {flow.sock: flow for flow in all_flows}
    open_flows = list(all_flows)
    deadline = time.monotonic() + PATIENCE
    while open_flows and time.monotonic() < deadline:
        for flow in open_flows:
            flow.fill()
        ready, _, _ = select.select([flow.sock for flow in open_flows], [], [], 0.1)
        for sock in ready:
            by_sock[sock].take()
            deadline = time.monotonic() + PATIENCE
        open_flows = [flow for flow in open_flows if flow.answered < count]
    return {
        "answered": sum(flow.answered for flow in all_flows),
        "out_of_order": sum(flow.out_of_order for flow in all_flows),
    }


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(sys.argv[2], int(sys.argv[3]))
    else:
        print(json.dumps(send(sys.argv[2], *map(int, sys.argv[3:]))))
