"""The process's memory: no key in it reaches a core dump or, where the limit allows it, swap."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import resource

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def forbid_core_dumps() -> None:
    """Let the kernel write no core dump of this process (RLIMIT_CORE, core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def lock() -> bool:
    """Keep every page that this process uses, now and later, out of swap; true where that is so.

    False, with nothing locked, where RLIMIT_MEMLOCK bounds it and CAP_IPC_LOCK is missing: the
    process needs more than any usual limit, and would be refused memory later (mlockall(2)).
    """
    _, limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    libc = ctypes.CDLL(None)
    # Pages that are never used stay unused: without ONFAULT all that is mapped would be resident.
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return False
    if limit == resource.RLIM_INFINITY:
        return True
    with contextlib.suppress(OSError):
        # More than the limit, never touched: only where it doesn't bind is there a mapping.
        mmap.mmap(-1, limit + mmap.PAGESIZE).close()
        return True
    libc.munlockall()
    return False
