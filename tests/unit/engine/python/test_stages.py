"""The python engine's stages: each step's own time, and nothing wrapped without a profile."""

from __future__ import annotations

import pytest

from esp_gw.engine.python import stages
from esp_gw.engine.stages import Stage

CLOCK = [0]


class Outer:
    def send(self) -> None:
        CLOCK[0] += 100


class Outbound:
    def __init__(self, outer: Outer) -> None:
        self.outer = outer

    def drain(self) -> str:
        CLOCK[0] += 1
        for _ in range(2):
            self._forward()
        CLOCK[0] += 1
        return "drained"

    def _forward(self) -> None:
        CLOCK[0] += 10
        self._protect()

    def _protect(self) -> None:
        CLOCK[0] += 50
        self.outer.send()
        CLOCK[0] += 5


class Inbound:
    def drain(self) -> None:
        CLOCK[0] += 3
        self._receive()

    def _receive(self) -> None:
        CLOCK[0] += 20
        self._write()

    def _write(self) -> None:
        raise BlockingIOError


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> stages.StageClock:
    monkeypatch.setattr(stages.time, "perf_counter_ns", lambda: CLOCK[0])
    return stages.StageClock()


def test_a_step_has_its_own_time_without_that_of_the_steps_inside(clock: stages.StageClock) -> None:
    outer = Outer()
    outbound, inbound = Outbound(outer), Inbound()
    outbound.drain()
    clock.begin(outbound, inbound, [outer])
    began = CLOCK[0]
    assert outbound.drain() == "drained"
    CLOCK[0] += 1000  # between turns
    with pytest.raises(BlockingIOError):
        inbound.drain()
    found = clock.times()
    assert found.ns == {
        Stage.TUN_READ: 2,
        Stage.LOOK_UP: 20,
        Stage.SEAL: 110,
        Stage.SEND: 200,
        Stage.RECEIVE: 3,
        Stage.OPEN: 20,
        Stage.TUN_WRITE: 0,
    }
    assert sum(found.ns.values()) == CLOCK[0] - began - 1000
    assert (found.packets_out, found.packets_in) == (2, 1)
    assert found.clock_reads == 20
    clock.end()
    outbound.drain()
    assert clock.times() == found
    assert all("drain" not in vars(each) for each in (outbound, inbound))
    assert "send" not in vars(outer)


def test_the_name_of_the_thread_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = stages.StageClock()
    name = clock.times().thread
    assert name
    monkeypatch.setattr(stages, "Path", None)
    assert clock.times().thread == name


def test_the_steps_that_are_wrapped_are_those_of_the_engine() -> None:
    from esp_gw.engine.python.inbound import InboundPath
    from esp_gw.engine.python.outbound import OutboundPath
    from esp_gw.engine.python.outer import Outer as Socket

    for owner, steps in (
        (OutboundPath, stages.OUTBOUND),
        (InboundPath, stages.INBOUND),
        (Socket, stages.OUTER),
    ):
        assert all(callable(getattr(owner, name)) for name in steps)
