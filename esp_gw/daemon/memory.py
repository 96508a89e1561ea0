"""Keeps keys in memory out of core dumps and, if RLIMIT_MEMLOCK allows it, out of swap."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import resource

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def forbid_core_dumps() -> None:
    """Disable core dumps of this process (RLIMIT_CORE, core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def lock() -> bool:
    """Lock all current and future pages of this process into memory; return True on success.

    Returns False, with nothing locked, if RLIMIT_MEMLOCK applies because CAP_IPC_LOCK is missing:
    the process needs more than any usual limit, and later allocations would fail (mlockall(2)).
    """
    _, limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
    libc = ctypes.CDLL(None)
    # Without ONFAULT every mapped page would become resident, even if never used.
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return False
    if limit == resource.RLIM_INFINITY:
        return True
    with contextlib.suppress(OSError):
        # A mapping above the limit succeeds only if the limit doesn't apply.
        mmap.mmap(-1, limit + mmap.PAGESIZE).close()
        return True
    libc.munlockall()
    return False
