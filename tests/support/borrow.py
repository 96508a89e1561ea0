"""Sockets of a running daemon, duplicated into the test (pidfd_getfd(2))."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

_PIDFD_GETFD = 438


def borrow_sockets(pid: int) -> Iterator[int]:
    """Yield a duplicate descriptor of each socket of a process; the caller closes it.

    Descriptors that the process closes meanwhile, of a control connection for example, are left
    out.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = entry.readlink().name
            except FileNotFoundError:
                continue
            if not name.startswith("socket:"):
                continue
            fd = libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0)
            if fd >= 0:
                yield fd
            else:
                assert ctypes.get_errno() == errno.EBADF, os.strerror(ctypes.get_errno())
    finally:
        os.close(pidfd)
