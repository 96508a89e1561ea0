"""Lanes: when a flow moves, which SA carries it, and that the table is bounded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

from esp_gw.engine.python.lanes import (
    BULK,
    HOLD,
    INTERVAL,
    LANE_FLOWS,
    QUIET,
    RECENT,
    STAY,
    LaneFlows,
    bulk_lane,
    choose,
    fold,
)
from esp_gw.engine.python.wire import flow_key

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "lanes.json").read_text())
KEY = (17, b"\x0a\x01\x00\x01\x0a\x02\x00\x01\x00\x07\x00\x09")


def other(number: int) -> tuple[int, bytes]:
    return 17, number.to_bytes(12)


@dataclass
class Lane:
    """An SA, exhausted or not."""

    is_exhausted: bool = False


def test_a_flow_is_sparse_until_it_has_sent_enough_in_one_interval() -> None:
    flows = LaneFlows()
    assert not flows.sent(KEY, BULK - 1, 0).is_bulk
    assert not flows.sent(KEY, BULK - 1, INTERVAL).is_bulk
    assert flows.sent(KEY, 1, 2 * INTERVAL - 1).is_bulk


def test_a_super_packet_alone_makes_a_new_flow_bulk() -> None:
    assert LaneFlows().sent(KEY, BULK, 0).is_bulk


def test_a_bulk_flow_stays_with_a_part_of_what_made_it_bulk() -> None:
    flows = LaneFlows()
    flows.sent(KEY, BULK, 0)
    for now in range(QUIET - 1, 10 * QUIET, QUIET - 1):
        assert flows.sent(KEY, STAY, now).is_bulk
    assert flows.sent(KEY, STAY - 2, now + QUIET - 1).is_bulk
    assert not flows.sent(KEY, 1, now + QUIET).is_bulk


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["name"]))
def test_a_flow_moves_as_the_cases_of_both_engines_say(case: dict[str, Any]) -> None:
    flows = LaneFlows()
    for now, kind, size, is_bulk in case["steps"]:
        if kind == "heard":
            flows.heard(KEY, size, now)
        sent = size if kind == "sent" else 0
        assert flows.sent(KEY, sent, now).is_bulk is is_bulk, now


def test_the_limits_are_those_of_the_native_engine() -> None:
    limits = [VECTORS[name] for name in ("interval", "bulk", "stay", "quiet", "hold")]
    assert limits == [INTERVAL, BULK, STAY, QUIET, HOLD]


def test_what_comes_by_a_bulk_lane_moves_a_flow_up_and_keeps_it_there() -> None:
    flows = LaneFlows()
    assert not flows.sent(KEY, 40, 0).is_bulk
    flows.heard(KEY, 1, 1)
    assert flows.sent(KEY, 40, 2).is_bulk
    for now in range(0, 10 * QUIET, QUIET - 1):
        flows.heard(KEY, STAY, now)
        assert flows.sent(KEY, 40, now).is_bulk


def test_a_flow_is_bulk_that_was_heard_before_it_sent() -> None:
    flows = LaneFlows()
    flows.heard(KEY, 1, 0)
    assert flows.sent(KEY, 40, 0).is_bulk


def test_a_flood_of_flows_leaves_the_table_bounded_and_a_flow_that_sends_in_it() -> None:
    flows = LaneFlows()
    flows.sent(KEY, BULK, 0)
    for number in range(300_000):
        flows.heard(other(number), 40, 0)
        if number % (LANE_FLOWS // 4) == 0:
            assert flows.sent(KEY, STAY, 0).is_bulk
    assert len(flows) <= LANE_FLOWS


def test_flows_count_for_the_sa_of_their_last_packet_for_some_seconds() -> None:
    flows = LaneFlows()
    flows.sent(KEY, 40, 0).carrier = "t/out"
    flows.sent(other(1), 40, 5).carrier = "t/out"
    flows.sent(other(2), BULK, 5).carrier = "t/out.2"
    flows.heard(other(3), 40, 5)
    assert flows.carried(RECENT - 1) == {"t/out": 2, "t/out.2": 1}
    assert flows.carried(RECENT) == {"t/out": 1, "t/out.2": 1}
    flows.sent(KEY, 40, RECENT).carrier = "t/out.2"
    assert flows.carried(RECENT) == {"t/out": 1, "t/out.2": 2}


@pytest.mark.parametrize(
    ("one", "back"),
    [
        (IP(src="10.1.0.1", dst="10.2.0.1"), IP(src="10.2.0.1", dst="10.1.0.1")),
        (IPv6(src="fd00:1::1", dst="fd00:2::1"), IPv6(src="fd00:2::1", dst="fd00:1::1")),
    ],
)
def test_both_directions_of_a_flow_have_one_key_and_other_flows_another(
    one: Packet, back: Packet
) -> None:
    def key(packet: Packet) -> tuple[int, bytes]:
        found = flow_key(memoryview(bytes(packet)))
        assert found is not None
        return fold(found)

    assert key(one / UDP(sport=5, dport=6)) == key(back / UDP(sport=6, dport=5))
    assert key(one / Raw(b"x")) == key(back / Raw(b"x"))
    keys = [one / UDP(sport=5, dport=6), one / UDP(sport=6, dport=5), one / TCP(sport=5, dport=6)]
    assert len(set(map(key, keys))) == 3


@pytest.mark.parametrize("count", [2, 3, 4, 64])
def test_bulk_flows_have_any_lane_but_the_first(count: int) -> None:
    assert {bulk_lane(spread, count) for spread in range(200)} == set(range(1, count))


def test_the_wanted_lane_is_taken_while_it_works() -> None:
    lanes = [Lane(), Lane(), Lane()]
    assert [choose(lanes, wanted) for wanted in range(3)] == lanes


@pytest.mark.parametrize(
    ("dead", "wanted", "taken"),
    [
        ({2}, 2, 3),
        ({3}, 3, 1),
        ({3, 1}, 3, 2),
        ({1, 2, 3}, 2, 0),
        ({0}, 0, 1),
        ({0, 1}, 0, 2),
        ({0, 1, 2}, 0, 3),
        ({0, 2, 3}, 3, 1),
    ],
)
@pytest.mark.parametrize("missing", [True, False])
def test_a_lane_that_does_not_work_is_passed_over(
    dead: set[int], wanted: int, taken: int, missing: bool
) -> None:
    gone = None if missing else Lane(is_exhausted=True)
    lanes = [gone if number in dead else Lane() for number in range(4)]
    assert choose(lanes, wanted) is lanes[taken]


def test_where_no_lane_works_an_exhausted_one_counts_the_loss() -> None:
    exhausted = Lane(is_exhausted=True)
    for wanted in range(3):
        assert choose([None, None, None], wanted) is None
        assert choose([None, exhausted, None], wanted) is exhausted
