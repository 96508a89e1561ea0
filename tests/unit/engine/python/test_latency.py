"""The python engine's request for a short wake-up latency, on a file in place of the device."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from pathlib import Path

import pytest

from esp_gw.engine.base import REST_MS
from esp_gw.engine.python import latency as latency_module
from esp_gw.engine.python.latency import LowLatency
from esp_gw.engine.refusals import latency_refused
from tests.support.virtual_time import run_virtually

REST = REST_MS / 1000
HELD = (0).to_bytes(4, sys.byteorder)
RELEASED = (2_000_000_000).to_bytes(4, sys.byteorder)


class Device:
    """A file that has every request written to it, one after another."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def written(self) -> bytes:
        return self.path.read_bytes()

    def is_open(self) -> bool:
        files = Path("/proc/self/fd").iterdir()
        return any(os.path.realpath(file) == str(self.path) for file in files)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device(tmp_path / "cpu_dma_latency")
    monkeypatch.setattr(latency_module, "LATENCY_DEVICE", str(device.path))
    return device


def test_a_request_is_held_while_there_is_work_and_for_a_rest_after_it(device: Device) -> None:
    async def work() -> None:
        latency = LowLatency(asyncio.get_running_loop())
        assert (latency.is_held, device.written()) == (False, b"")
        # Work each 0.7 of the rest, for a long time: one request.
        for _ in range(1000):
            latency.worked()
            await asyncio.sleep(0.7 * REST)
            assert latency.is_held
        assert device.written() == HELD
        await asyncio.sleep(0.4 * REST)
        assert (latency.is_held, device.written()) == (False, HELD + RELEASED)
        await asyncio.sleep(10 * REST)
        latency.worked()
        assert (latency.is_held, device.written()) == (True, HELD + RELEASED + HELD)
        latency.close()

    run_virtually(work())


def test_a_closed_request_leaves_no_file_and_no_timer(device: Device) -> None:
    async def work() -> None:
        latency = LowLatency(asyncio.get_running_loop())
        latency.worked()
        assert device.is_open()
        latency.close()
        assert not device.is_open()
        await asyncio.sleep(2 * REST)
        latency.worked()
        latency.close()
        assert (latency.is_held, device.written()) == (False, HELD)

    run_virtually(work())


def test_without_the_device_there_is_no_request_but_a_reason(device: Device) -> None:
    device.path.unlink()

    async def work() -> None:
        latency = LowLatency(asyncio.get_running_loop())
        latency.worked()
        assert not latency.is_held
        assert latency.why == latency_refused(errno.ENOENT)
        latency.close()

    run_virtually(work())


def test_a_device_that_refuses_a_write_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_module, "LATENCY_DEVICE", "/dev/full")

    async def work() -> None:
        latency = LowLatency(asyncio.get_running_loop())
        latency.worked()
        assert (latency.is_held, latency.why) == (False, latency_refused(errno.ENOSPC))
        latency.worked()
        assert not latency.is_held

    run_virtually(work())


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EACCES, "Permission denied; udev opens it to the group esp-gw"),
        (errno.EPERM, "Operation not permitted; the unit lacks 'DeviceAllow="),
        (errno.ENOENT, "No such file or directory; this kernel or container has none"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_refusal_says_what_mends_it(number: int, text: str) -> None:
    assert latency_refused(number).startswith(f"/dev/cpu_dma_latency: {text}")
