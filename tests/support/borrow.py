"""Sockets of a running daemon, duplicated into the test (pidfd_getfd(2))."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_PIDFD_GETFD = 438


def borrow_sockets(pid: int) -> Iterator[int]:
    """Yield a duplicate descriptor of each socket of a process; the caller closes it."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            if entry.readlink().name.startswith("socket:"):
                fd = libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0)
                assert fd >= 0, os.strerror(ctypes.get_errno())
                yield fd
    finally:
        os.close(pidfd)
