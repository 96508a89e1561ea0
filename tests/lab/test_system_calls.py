"""System calls of a worker: a short batch shows that a queue is empty, so none asks it again."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path

import pytest

from esp_gw.demo.netns import end
from esp_gw.demo.pair import PairPlan, gateway_pair
from esp_gw.model import Encapsulation
from tests.support.labtools import ping, until

PINGS = 20


@pytest.mark.parametrize("encapsulation", list(Encapsulation))
def test_a_short_batch_ends_a_turn_without_another_receive(
    encapsulation: Encapsulation, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    settings = {"engine": "native", "workers": 2}
    plan = PairPlan(sas=2, encapsulation=encapsulation, settings=settings)
    pair = stack.enter_context(gateway_pair(tmp_path, plan))
    pair.start()
    # The kernel gives the flow of later pings to the queue of lane 0's worker.
    ping(pair.a.namespace, pair.plan.inner(1), count=5)
    tasks = Path(f"/proc/{pair.b.pid}/task").iterdir()
    (worker,) = (task for task in tasks if (task / "comm").read_text() == "esp-worker-0\n")
    trace = tmp_path / "trace"
    strace = pair.b.namespace.start("strace", "-o", str(trace), "-p", worker.name)
    try:
        until(lambda: f"TracerPid:\t{strace.pid}" in (worker / "status").read_text(), "it traces")
        # One at a time, so that each is a batch of its own.
        assert ping(pair.a.namespace, pair.plan.inner(1), count=PINGS, interval=0.02) == PINGS
    finally:
        end(strace)
    lines = trace.read_text().splitlines()
    calls = Counter(line.partition("(")[0] for line in lines)
    receives = [line for line in lines if line.startswith("recvmmsg(")]
    assert not [line for line in receives if "EAGAIN" in line]
    assert 0 < calls["recvmmsg"] <= calls["writev"] == PINGS
    # Each ping wakes the worker twice: for the request, and for the reply in the TUN.
    assert calls["epoll_pwait"] <= 2 * PINGS + 2
