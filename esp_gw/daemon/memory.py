"""Keeps keys out of core dumps and swap, and the heap within a limited address space."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import resource

_M_ARENA_MAX = -8
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4


def forbid_core_dumps() -> None:
    """Disable core dumps of this process (RLIMIT_CORE, core(5))."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def bound_arenas() -> None:
    """Let all threads share one heap if the address space is limited (RLIMIT_AS, mallopt(3)).

    The heaps that they take by turns otherwise reserve 64 MiB each, so that a start succeeds or
    fails by chance.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


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
