"""Properties of two engines side by side: both make the same of drawn packets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from esp_gw.model import Direction, Sa
from tests.support.twin_packets import inbound_steps, leases, outbound_steps, plans
from tests.support.twins import Twins


def check_outbound(both: Twins, data: st.DataObject) -> None:
    """Put drawn packets into both TUN devices; what leaves for the wire must be the same."""
    plan = data.draw(plans(Direction.OUTBOUND))
    lease = data.draw(leases(plan.sa))
    steps = data.draw(outbound_steps(plan, lease))
    both.compare(lambda twin: twin.outbound(plan.kind, plan.sas, lease, plan.policies, steps))


def check_inbound(
    both: Twins, data: st.DataObject, floors: Callable[[Sa], Sequence[int]] = lambda sa: (0,)
) -> None:
    """Send drawn datagrams to both sockets; what leaves the TUN must be the same.

    The replay floor is drawn from `floors` of the SA, below its last sequence number.
    """
    plan = data.draw(plans(Direction.INBOUND))
    floor = min(data.draw(st.sampled_from(floors(plan.sa))), plan.sa.last_seq - 1)
    steps = data.draw(inbound_steps(plan, floor))
    both.compare(lambda twin: twin.inbound(plan.sas, floor, steps, both.splitter))
