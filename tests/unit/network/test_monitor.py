"""Notifications of the kernel that are lost: the state is read afresh, nothing else is."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from esp_gw.errors import NetworkError
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.messages import MessageSocket
from esp_gw.network.monitor import drain, route_monitor

LOST = OSError(errno.ENOBUFS, "No buffer space available")


class Notifications:
    """A monitor with these notifications; an error is raised."""

    def __init__(self, *events: bytes | OSError) -> None:
        self._events: Iterator[bytes | OSError] = iter(events)

    def recv(self, size: int) -> bytes:
        event = next(self._events, BlockingIOError())
        if isinstance(event, OSError):
            raise event
        return event


@pytest.mark.parametrize(
    ("events", "changed"),
    [((), False), ((b"x",), True), ((LOST,), True), ((b"x", LOST, b"x"), True)],
)
def test_a_lost_notification_is_one(events: tuple[bytes | OSError, ...], changed: bool) -> None:
    monitor: Any = Notifications(*events)
    assert drain(monitor) == changed
    assert not drain(monitor)


def test_any_other_error_of_the_monitor_is_not_hidden() -> None:
    monitor: Any = Notifications(OSError(errno.EBADF, "Bad file descriptor"))
    with pytest.raises(OSError, match="Bad file"):
        drain(monitor)


def test_the_monitor_waits_for_nobody() -> None:
    with route_monitor() as monitor:
        assert monitor.family == socket.AF_NETLINK
        assert not drain(monitor)


async def test_replies_that_are_always_lost_are_a_fault_of_the_look_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(*_: object) -> list[bytes]:
        raise LOST

    kernel = KernelNetwork(100)
    await kernel.open()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(MessageSocket, "dump", lost)
            for look in (kernel.observe(), kernel.host(1)):
                with pytest.raises(NetworkError, match="ENOBUFS"):
                    await look
        assert (await kernel.host(1)).addresses
    finally:
        await kernel.close()
