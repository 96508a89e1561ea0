"""Both engines make the same of the same packets: bytes, verdicts, counters, events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from esp_gw.model import Direction
from tests.support.twin_packets import inbound_steps, leases, outbound_steps, plans
from tests.support.twins import Twins, twins

some = settings(
    max_examples=200,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module")
def both() -> Iterator[Twins]:
    with twins() as both:
        yield both


@given(st.data())
@some
def test_what_the_tun_gives_leaves_both_engines_as_the_same_bytes(
    both: Twins, data: st.DataObject
) -> None:
    plan = data.draw(plans(Direction.OUTBOUND))
    lease = data.draw(leases(plan.sa))
    steps = data.draw(outbound_steps(plan, lease))
    both.compare(lambda twin: twin.outbound(plan.kind, plan.sas, lease, plan.policies, steps))


@given(st.data())
@some
def test_what_the_sockets_give_leaves_both_engines_as_the_same_packets(
    both: Twins, data: st.DataObject
) -> None:
    plan = data.draw(plans(Direction.INBOUND))
    floor = data.draw(st.sampled_from([0, 0, 90, 2**32 - 5, plan.sa.last_seq - 200]))
    floor = min(floor, plan.sa.last_seq - 1)
    steps = data.draw(inbound_steps(plan, floor))
    both.compare(lambda twin: twin.inbound(plan.sas, floor, steps, both.splitter))
