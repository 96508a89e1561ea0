"""Memory locking under limits that refuse it at once, later, or never."""

from __future__ import annotations

import ctypes
import mmap
import resource

import pytest

from esp_gw.daemon import memory

LIMIT = 64 << 20


class Kernel:
    """Fake of the calls that `lock` makes, with a limit and the bytes mapped so far."""

    def __init__(self, limit: int, *, mapped: int, bounded: bool) -> None:
        self.limits: list[tuple[int, int]] = []
        self.locked = False
        self._limit, self._mapped, self._bounded = limit, mapped, bounded

    def getrlimit(self, what: int) -> tuple[int, int]:
        assert what == resource.RLIMIT_MEMLOCK
        return 1 << 16, self._limit

    def setrlimit(self, what: int, limits: tuple[int, int]) -> None:
        assert what == resource.RLIMIT_MEMLOCK
        self.limits.append(limits)

    def _refuses(self, size: int) -> bool:
        return self._bounded and self._limit != resource.RLIM_INFINITY and size > self._limit

    def mlockall(self, flags: int) -> int:
        assert flags == 1 | 2 | 4
        if self._refuses(self._mapped):
            return -1
        self.locked = True
        return 0

    def munlockall(self) -> int:
        self.locked = False
        return 0

    def mmap(self, _: int, size: int) -> Kernel:
        if self.locked and self._refuses(self._mapped + size):
            raise OSError
        return self

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("limit", "mapped", "bounded", "locked"),
    [
        (resource.RLIM_INFINITY, 2 * LIMIT, True, True),
        (LIMIT, 2 * LIMIT, False, True),  # CAP_IPC_LOCK
        (LIMIT, 2 * LIMIT, True, False),
        (LIMIT, LIMIT // 2, True, False),  # enough now, but not for later pages
    ],
)
def test_memory_is_locked_only_if_later_pages_may_be_locked_too(
    monkeypatch: pytest.MonkeyPatch, limit: int, mapped: int, bounded: bool, locked: bool
) -> None:
    kernel = Kernel(limit, mapped=mapped, bounded=bounded)
    monkeypatch.setattr(resource, "getrlimit", kernel.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", kernel.setrlimit)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: kernel)
    monkeypatch.setattr(mmap, "mmap", kernel.mmap)
    assert memory.lock() is locked
    assert kernel.locked is locked
    assert kernel.limits == [(limit, limit)]
