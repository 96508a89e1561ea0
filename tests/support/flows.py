"""Sends numbered datagrams of many flows to an echo server, and counts reordered replies.

flows.py echo ADDRESS PORT                echoes datagrams until it is terminated
flows.py send ADDRESS PORT FLOWS COUNT    prints {"answered": N, "out_of_order": N, "bursts": N};
                                          "bursts" is how often a flow was reordered, at most
flows.py each ADDRESS PORT FLOWS COUNT FIRST
                                          the same for the flows from FIRST on, one after the other
                                          with the largest size: as fast as it goes, so that each
                                          is bulk for a while

A flow has up to WINDOW datagrams in flight, so that no buffer on the path overflows. All its
datagrams have one size, which some other flows share. The flows are the same in every run.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

WINDOW = 8
FIRST_PORT = 20000
TIMEOUT = 5.0
"""Seconds without any reply after which `send` gives up."""
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
    """One flow: counters of sent, answered and reordered datagrams."""

    def __init__(self, number: int, size: int, address: str, port: int, count: int) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("", FIRST_PORT + number))
        self.sock.connect((address, port))
        self.sock.setblocking(False)
        self.count = count
        self._data = bytes(size)
        self.sent = self.answered = self.out_of_order = self.bursts = 0
        self._last = -1
        self._burst_end = 0

    def fill(self) -> None:
        # The first reply makes the kernel assign the flow to a queue of the TUN device; datagrams
        # still in another queue at that time may be overtaken.
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
            if number != self._last + 1:
                self.out_of_order += 1
                self.bursts += self.answered > self._burst_end
                # All that may have been on the way at that time.
                self._burst_end = self.answered + 2 * WINDOW
            self._last = number


def send(address: str, port: int, flows: int, count: int) -> dict[str, int]:
    """Return the number of datagrams that came back, and of those out of order."""
    sizes = [SIZES[number % len(SIZES)] for number in range(flows)]
    return carry([Flow(n, size, address, port, count) for n, size in enumerate(sizes)], count)


def each(address: str, port: int, number: int, count: int, first: int) -> dict[str, int]:
    """Return what `send` does, for flows that are sent one after the other."""
    numbers = range(first, first + number)
    flows = [Flow(n, max(SIZES), address, port, count) for n in numbers]
    for flow in flows:
        carry([flow], count)
    return summary(flows)


def carry(all_flows: list[Flow], count: int) -> dict[str, int]:
    """Send `count` datagrams of each flow, at the same time."""
    by_sock = {flow.sock: flow for flow in all_flows}
    open_flows = list(all_flows)
    deadline = time.monotonic() + TIMEOUT
    while open_flows and time.monotonic() < deadline:
        for flow in open_flows:
            flow.fill()
        ready, _, _ = select.select([flow.sock for flow in open_flows], [], [], 0.1)
        for sock in ready:
            by_sock[sock].take()
            deadline = time.monotonic() + TIMEOUT
        open_flows = [flow for flow in open_flows if flow.answered < count]
    return summary(all_flows)


def summary(flows: list[Flow]) -> dict[str, int]:
    """Return the counts of flows, and the most bursts of reordering that one of them met."""
    return {
        "answered": sum(flow.answered for flow in flows),
        "out_of_order": sum(flow.out_of_order for flow in flows),
        "bursts": max(flow.bursts for flow in flows),
    }


if __name__ == "__main__":
    if sys.argv[1] == "echo":
        echo(sys.argv[2], int(sys.argv[3]))
    else:
        numbers = list(map(int, sys.argv[3:]))
        print(json.dumps((each if sys.argv[1] == "each" else send)(sys.argv[2], *numbers)))
