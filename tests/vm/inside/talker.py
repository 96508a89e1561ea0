"""Sends datagrams to protected and to other addresses without end, as any local user can.

Runs in a Debian machine from the first moment of its userland. The destination says how a datagram
was sent. /run/talker/rounds counts the rounds.
"""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

PORT = 9
INTERVAL = 0.2
OPEN = ("203.0.113.9", "2001:db8:f::9")
"""Addresses that nothing protects: they show that the way is open."""
ROUTED = ("10.2.0.1", "fd00:2::1")
"""Protected addresses."""
BOUND = ("10.2.0.7", "fd00:2::7")
"""Protected addresses, from sockets bound to the network card."""


def card() -> bytes | None:
    """The name of the network card, once there is one."""
    found = Path("/sys/class/net").glob("*/device")
    return next((path.parent.name.encode() for path in found), None)


def send(address: str, device: bytes | None = None) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        if device is not None:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        sender.sendto(b"in the clear", (address, PORT))


def main() -> None:
    rounds = 0
    while True:
        for address in (*OPEN, *ROUTED):
            send(address)
        device = card()
        if device is not None:
            for address in BOUND:
                send(address, device)
        rounds += 1
        Path("/run/talker/rounds").write_text(str(rounds))
        time.sleep(INTERVAL)


if __name__ == "__main__":
    main()
