"""The native engine's start when others are faster: each of its devices is opened before a look."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

import pytest

from esp_gw.daemon.ownership import TRIES, open_alone
from esp_gw.demo.netns import Namespace, namespaces
from esp_gw.desired import EngineSettings
from esp_gw.engine.base import Event
from esp_gw.engine.native import NativeEngine
from esp_gw.errors import EngineError
from esp_gw.network.kernel import KernelNetwork
from esp_gw.network.tun_queues import TunQueues
from tests.support import tun_intruder
from tests.support.fakes import captured_logs
from tests.support.kernel_peer import inside
from tests.support.labtools import links

SETTINGS = EngineSettings("esp0", 4500, 0, workers=3)
Deed = Callable[[int], bool]
"""Does something with a queue; returns True if it stays open."""


def stays(queue: int) -> bool:
    return True


def detaches(queue: int) -> bool:
    tun_intruder.switch(queue, tun_intruder.IFF_DETACH)
    return True


def becomes_owner_and_leaves(queue: int) -> bool:
    fcntl.ioctl(queue, tun_intruder.TUNSETOWNER, 65534)
    return False


def makes_persistent_and_leaves(queue: int) -> bool:
    fcntl.ioctl(queue, tun_intruder.TUNSETPERSIST, 1)
    return False


class Raced(KernelNetwork):
    """Opens a queue before each of the first looks, as a faster program does."""

    def __init__(self, deed: Deed, devices: int) -> None:
        super().__init__(4500)
        self._deed = deed
        self._left = devices
        self._intruder = tun_intruder.Intruder()
        self._kept: list[int] = []

    async def tun_queues(self, interface: str) -> TunQueues:
        if self._left:
            self._left -= 1
            queue = self._intruder.open(tun_intruder.KINDS[0])
            if self._deed(queue):
                self._kept.append(queue)
            else:
                os.close(queue)
        return await super().tun_queues(interface)

    def end(self) -> None:
        for queue in self._kept:
            os.close(queue)


@pytest.fixture
def host() -> Iterator[Namespace]:
    with namespaces("host") as (host,), inside(host):
        yield host


@pytest.fixture
def raced() -> Iterator[Callable[[Deed, int], Raced]]:
    with contextlib.ExitStack() as stack:

        def make(deed: Deed, devices: int) -> Raced:
            kernel = Raced(deed, devices)
            stack.callback(kernel.end)
            return kernel

        yield make


def told(event: Event) -> None:
    raise AssertionError(event)


DEEDS = [stays, detaches, becomes_owner_and_leaves, makes_persistent_and_leaves]


@pytest.mark.parametrize("deed", DEEDS)
async def test_what_others_had_is_deleted_and_the_gateway_runs_on_a_device_of_its_own(
    host: Namespace, raced: Callable[[Deed, int], Raced], deed: Deed
) -> None:
    engine, kernel = NativeEngine(), raced(deed, TRIES - 1)
    await kernel.open()
    with captured_logs() as logs:
        await open_alone(engine, kernel, SETTINGS, told)
    with contextlib.closing(engine):
        found = await kernel.tun_queues("esp0")
        assert (found.count, engine.queues, found.owner, found.persistent) == (3, 3, 0, False)
    await kernel.close()
    assert len(logs) == TRIES - 1
    assert "esp0" not in links(host)


@pytest.mark.parametrize("deed", DEEDS)
async def test_a_start_that_is_always_raced_is_refused_and_leaves_no_device(
    host: Namespace, raced: Callable[[Deed, int], Raced], deed: Deed
) -> None:
    engine, kernel = NativeEngine(), raced(deed, TRIES)
    await kernel.open()
    with pytest.raises(EngineError, match=f"each of the {TRIES} times that it was made"):
        await open_alone(engine, kernel, SETTINGS, told)
    await kernel.close()
    assert "esp0" not in links(host)
