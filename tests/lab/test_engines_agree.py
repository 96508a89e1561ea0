"""Both engines agree on the same packets: bytes, verdicts, counters, events."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from esp_gw.engine.base import PeerAddressChanged
from esp_gw.model import Direction, DropReason, Encapsulation, Sa
from tests.support.builders import OUTER, make_sa
from tests.support.esp import padded, seal
from tests.support.twin_checks import check_inbound, check_outbound
from tests.support.twins import PORT, Datagrams, Kind, Twins, twins

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


INNER = bytes.fromhex("450000140000000040fd") + bytes(2) + bytes([10, 9, 9, 9, 10, 1, 0, 1])
TEXTS = {
    DropReason.DUMMY: padded(bytes(4), 59, 2),
    DropReason.BAD_PADDING: bytes(4) + bytes([9, 9, 2, 4]),
    DropReason.BAD_NEXT_HEADER: padded(bytes(20), 17, 2),
    DropReason.SELECTOR_MISMATCH: padded(INNER, 4, 2),
}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("reason", TEXTS)
def test_an_authentic_packet_moves_the_peer_before_its_content_is_judged(
    both: Twins, reason: DropReason, version: int
) -> None:
    here, there = OUTER[version]
    sa = make_sa("in", Direction.INBOUND, 0x2001, local=here, remote=there)
    datagram = seal(sa, 1, TEXTS[reason])
    step = Datagrams(Kind(version, Encapsulation.UDP), (datagram,), moved=True)
    outcome = both.compare(lambda twin: twin.inbound([sa], 0, [step], both.splitter))
    assert outcome.drops == {reason: 1}
    moved = PeerAddressChanged("in", ip_address(there), PORT + 1)
    assert outcome.events == {moved: 1}
    assert (outcome.sas["in"].remote_port, outcome.packets) == (PORT + 1, [])
