"""`gateway.latency: low`, as an independent reader of the kernel's effective value sees it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.demo.gateways import LabGateway
from esp_gw.demo.netns import end
from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import MakePair, edit, ping, start_pings, until
from tests.support.manager import managed

DEVICE = "/dev/cpu_dma_latency"
# As for a user who may not open it; root is refused by nothing else. Only the command sees it.
REFUSED = f"""
mount --bind {DEVICE} {DEVICE}
mount -o remount,bind,nodev {DEVICE}
exec "$@"
"""
FREE = 2_000_000_000
"""The kernel's value while nobody asks for anything (PM_QOS_CPU_LATENCY_DEFAULT_VALUE)."""


def effective() -> int:
    """The smallest of all requests on this machine, in microseconds (kernel/power/qos.c)."""
    with Path(DEVICE).open("rb", buffering=0) as device:
        return int.from_bytes(device.read(4), sys.byteorder, signed=True)


def is_held(gateway: LabGateway) -> bool:
    return bool(gateway.ask("status")["latency"]["held"])


@contextlib.contextmanager
def pings_to(pair: GatewayPair) -> Iterator[None]:
    """Send pings from one gateway to the other, a hundred a second."""
    pings = start_pings(pair.a.namespace, pair.plan.inner(1), 100_000, interval=0.01)
    try:
        yield
    finally:
        end(pings)


@pytest.fixture
def low(make_pair: MakePair) -> GatewayPair:
    """A pair of which only the second one has `latency: low`."""
    pair = make_pair()
    edit(pair.b, lambda config: config["gateway"].update(latency="low"))
    return pair


def test_processors_stay_awake_while_there_is_traffic_and_no_longer(low: GatewayPair) -> None:
    low.start()
    for _ in range(2):
        until(lambda: effective() == FREE, "nothing is held")
        with pings_to(low):
            until(lambda: effective() == 0, "a request is held")
            until(lambda: is_held(low.b), "the status says so")
            shown = low.b.cli("status", check=False).stdout
            assert "latency: low, at the cost of power: " in shown
        until(lambda: effective() == FREE, "the request is released")
        until(lambda: not is_held(low.b), "the status says so")
    for gateway, setting in ((low.a, "normal"), (low.b, "low")):
        status = gateway.ask("status")
        assert (status["latency"]["setting"], status["latency"]["why"]) == (setting, "")
        assert not [line for line in status["warnings"] if "latency" in line]
    assert "latency" not in low.a.cli("status", check=False).stdout


def test_packets_of_one_direction_are_traffic(low: GatewayPair) -> None:
    low.start()
    # An address behind the second gateway that answers nothing; and one that is only sent to.
    for source, target in ((low.a, low.plan.inner(1)), (low.b, low.plan.inner(0))):
        until(lambda: effective() == FREE, "nothing is held")
        script = 'while :; do echo x >/dev/udp/"$0"/9; sleep 0.01; done'
        sender = source.namespace.start("bash", "-c", script, target)
        try:
            until(lambda: effective() == 0, "a request is held")
        finally:
            end(sender)


def test_a_killed_gateway_holds_nothing(low: GatewayPair) -> None:
    low.start()
    with pings_to(low):
        until(lambda: effective() == 0, "a request is held")
        os.kill(low.b.pid, signal.SIGKILL)
        until(lambda: effective() == FREE, "the kernel has released the request")


def test_a_stopped_gateway_holds_nothing(low: GatewayPair) -> None:
    low.start()
    with pings_to(low):
        until(lambda: effective() == 0, "a request is held")
        low.b.stop()
        assert effective() == FREE


def test_a_gateway_that_may_not_open_the_device_runs_on_and_says_what_mends_it(
    low: GatewayPair,
) -> None:
    low.a.start()
    with managed(low.b) as service:
        service.launch(before=("sh", "-ec", REFUSED, "-"), watchdog_usec=2_000_000)
        service.until_told("READY=1")
        assert ping(low.a.namespace, low.plan.inner(1), count=5) == 5
        assert effective() == FREE
        status = low.b.ask("status")
        why = f"{DEVICE}: Permission denied; udev opens it to the group esp-gw"
        assert status["latency"]["why"].startswith(why)
        assert not status["latency"]["held"]
        (warning,) = [line for line in status["warnings"] if "latency" in line]
        assert warning.startswith(f"'latency: low' has no effect: {why}")
        shown = low.b.cli("status", check=False)
        assert shown.returncode == 1
        assert "latency: low, without effect\n" in shown.stdout
        low.b.cli("reload")
        assert service.stop() == 0
        (line,) = [line for line in service.lines("warning") if DEVICE in line]
        assert warning in line


def test_a_fifo_in_place_of_the_device_is_refused_at_once(low: GatewayPair, tmp_path: Path) -> None:
    script = f'mkfifo "$0"; mount --bind "$0" {DEVICE}; exec "$@"'
    low.a.start()
    with managed(low.b) as service:
        before = ("sh", "-ec", script, str(tmp_path / "fifo"))
        service.launch(before=before, watchdog_usec=2_000_000)
        service.until_told("READY=1")
        assert ping(low.a.namespace, low.plan.inner(1), count=5) == 5
        latency = low.b.ask("status")["latency"]
        assert latency["why"].startswith(f"{DEVICE}: No such device or address")
        assert not latency["held"]
        assert service.stop() == 0
