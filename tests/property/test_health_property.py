"""A tunnel that works never gets a likely cause, whatever is sent at it from outside."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from esp_gw.engine.base import Opening
from esp_gw.model import DropReason
from esp_gw.network.icmp import Unreachable, What
from tests.support.tunnel_life import IN, OUT, TunnelLife, outer

FORGED = (
    DropReason.AUTH_FAILED,
    DropReason.REPLAY_OLD,
    DropReason.REPLAY_DUPLICATE,
    DropReason.WRONG_ENCAPSULATION,
    DropReason.TOO_SHORT,
)
LOST = [reason for reason in DropReason if reason != DropReason.SELECTOR_MISMATCH]
"""A peer that goes on to send what a tunnel may not carry is a fault beside any traffic."""
LIVENESS = 10


@dataclass(frozen=True)
class Second:
    sent: int
    delivered: int
    forged: dict[DropReason, int]
    spis: list[int]
    error: What | None


SECONDS = st.builds(
    Second,
    sent=st.integers(0, 3),
    delivered=st.integers(0, 3),
    forged=st.dictionaries(st.sampled_from(FORGED), st.integers(1, 1000), max_size=3),
    spis=st.lists(st.one_of(st.just(OUT.spi), st.integers(1, 2**32 - 1)), max_size=3),
    error=st.none() | st.sampled_from(What),
)


def errors(second: Second) -> list[Unreachable]:
    if second.error is None:
        return []
    return [Unreachable(OUT.remote, second.error, OUT.local, OUT.remote, 17, 4500, OUT.spi)]


@given(st.lists(SECONDS, max_size=120), st.integers(0, 2))
def test_a_tunnel_with_keepalives_has_no_cause_under_any_forgery(
    seconds: list[Second], lost: int
) -> None:
    life = TunnelLife(liveness=LIVENESS)
    since = LIVENESS
    for second in seconds:
        since += 1
        # The peer sends something at least every interval, of which some in a row are lost.
        dummies = since >= LIVENESS * (lost + 1) and not second.delivered
        if dummies or second.delivered:
            since = 0
        drops = {**second.forged, **({DropReason.DUMMY: 1} if dummies else {})}
        life.second(
            sent=second.sent,
            delivered=second.delivered,
            drops=drops,
            refused=[
                outer(DropReason.UNKNOWN_SPI, spi) for spi in second.spis if spi != IN.spi + 1
            ],
            unreachable=errors(second),
        )
        assert life.state in ("up", "quiet")
        assert life.kinds == [] or life.watched.tracker.last_in is None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 2),
            st.dictionaries(st.sampled_from(LOST), st.integers(1, 2), max_size=2),
        ),
        max_size=120,
    )
)
def test_single_losses_beside_traffic_are_no_failure(
    seconds: list[tuple[int, int, dict[DropReason, int]]],
) -> None:
    life = TunnelLife()
    for sent, delivered, drops in seconds:
        # Something goes and comes in each second that loses anything.
        life.second(
            sent=sent + bool(drops), delivered=delivered + bool(drops), drops=drops, out=drops
        )
        assert life.state in ("up", "quiet")
        assert life.kinds == []


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=120))
def test_requests_that_are_answered_are_no_failure(seconds: list[tuple[int, bool]]) -> None:
    life = TunnelLife()
    host = ip_address("10.1.0.7")
    for requests, again in seconds:
        opening = Opening("t/in", ip_address("10.2.0.1"), host, 6, 22)
        life.second(
            sent=requests, delivered=requests, openings=[opening] if requests and again else []
        )
        assert life.kinds == []
