"""Notifications to the service manager: ready, status, reloading, watchdog (sd_notify(3))."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

START_TIMEOUT = 90.0
"""Seconds that systemd gives a start by default (systemd-system.conf(5))."""


class Notifier:
    """Sends the daemon's state to systemd; does nothing if systemd didn't start the daemon.

    No method raises or blocks: a missing service manager is no reason to stop.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address
        self._status = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Notifier:
        """Take the address from $NOTIFY_SOCKET: a path, or an abstract socket after '@'.

        Addresses of other families, such as vsock, are ignored.
        """
        address = environ.get("NOTIFY_SOCKET", "")
        if address[:1] not in ("/", "@") or len(address) < 2:
            return cls(None)
        return cls("\0" + address[1:] if address[0] == "@" else address)

    def ready(self, status: str) -> None:
        """Report that starting or reloading is complete."""
        self._status = _one_line(status)
        self._send("READY=1", f"STATUS={self._status}")

    def status(self, status: str) -> None:
        """Report what runs and what is wrong, if that has changed."""
        if (line := _one_line(status)) != self._status:
            self._status = line
            self._send(f"STATUS={line}")

    def waiting(self, status: str, seconds: float) -> None:
        """Report that the start goes on waiting, and ask for that much more time."""
        usec = int((seconds + START_TIMEOUT) * 1e6)
        self._send(f"STATUS={_one_line(status)}", f"EXTEND_TIMEOUT_USEC={usec}")

    def reloading(self) -> None:
        """Report that a reload has begun; `ready` ends it."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={usec}")

    def stopping(self) -> None:
        """Report that the daemon is stopping."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """Feed the watchdog; call it every `watchdog_interval` seconds."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        message = "\n".join(assignments).encode(errors="replace")
        # A path with a NUL or too long for a socket address is a ValueError or an OSError.
        with (
            contextlib.suppress(OSError, ValueError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
        ):
            sender.setblocking(False)
            sender.sendto(message, self._address)


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds between watchdog messages, half of the timeout; None without a watchdog.

    Source: sd_watchdog_enabled(3), $WATCHDOG_USEC and $WATCHDOG_PID.
    """
    try:
        usec = int(environ["WATCHDOG_USEC"])
        pid = int(environ.get("WATCHDOG_PID", os.getpid()))
    except (KeyError, ValueError):
        return None
    return usec / 2_000_000 if usec > 0 and pid == os.getpid() else None


def _one_line(text: str) -> str:
    # A further line would be parsed as a further assignment.
    return " ".join(text.splitlines())
