"""Both engines agree on the same packets: bytes, verdicts, counters, events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from esp_gw.model import Sa
from tests.support.twin_checks import check_inbound, check_outbound
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
def test_packets_from_the_tun_leave_both_engines_as_the_same_bytes(
    both: Twins, data: st.DataObject
) -> None:
    check_outbound(both, data)


@given(st.data())
@some
def test_datagrams_from_the_sockets_leave_both_engines_as_the_same_packets(
    both: Twins, data: st.DataObject
) -> None:
    def floors(sa: Sa) -> list[int]:
        return [0, 0, 90, 2**32 - 5, sa.last_seq - 200]

    check_inbound(both, data, floors)
