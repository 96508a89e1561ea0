"""Figures of keys by IKE: gaps and losses, and the tables that they stand in."""

from __future__ import annotations

from typing import Any

import pytest

from esp_gw.errors import LabError
from lab.bench import report, report_ike
from lab.bench.charon import CHILDREN, swanctl_conf
from lab.bench.ike import initiate
from lab.bench.losses import count_lost
from lab.bench.measures import IKE_TESTS
from lab.bench.model import Link, Memory, Observation, Sample
from lab.bench.plan import QUICK, Options, make_plan
from lab.bench.probe import count_missing, longest_gap
from lab.bench.results import summarise


def test_the_longest_gap_is_between_arrivals_that_follow_each_other_in_time() -> None:
    assert longest_gap([(0, 1.0), (2, 1.5), (1, 1.1), (3, 1.6)]) == pytest.approx(0.4)
    assert longest_gap([(0, 1.0)]) == longest_gap([]) == 0


def test_missing_are_numbers_between_the_first_and_the_last_one() -> None:
    assert count_missing([(7, 0.0), (12, 0.1), (9, 0.2), (9, 0.3)]) == 3
    assert count_missing([(0, 0.0), (1, 0.1)]) == count_missing([]) == 0


class Gateway:
    """A gateway that answers with these counters."""

    def __init__(self, out: int, into: int, **drops: int) -> None:
        named = {name.replace("_", "-"): count for name, count in drops.items()}
        self._stats = {"packets_out": out, "packets_in": into, "drops": named}

    def call(self, method: str) -> dict[str, Any]:
        assert method == "GetStats"
        return self._stats


def test_lost_is_what_was_not_sealed_or_did_not_arrive_but_for_a_busy_machine() -> None:
    one = Gateway(1000, 480, no_sa=3, too_big=50, replay_old=4)
    two = Gateway(500, 990, socket_overflow=10, queue_full=2)
    # 1,500 sealed and 5 not; 1,470 received; 14 lost by the machine.
    assert count_lost([one, two]) == 21  # type: ignore[list-item]


def test_both_systems_have_a_section_of_their_own_and_the_common_tests() -> None:
    plan = make_plan(Options(rounds=2, systems=("native-ike", "strongswan")))
    turns = {(section.name, subject.system): subject.tests for _, section, subject in plan.turns()}
    for system in ("native-ike", "strongswan"):
        assert turns["ike", system] == IKE_TESTS
        assert "tcp_wire" in turns["systems", system]
        assert ("udp_64" in turns["systems", system]) == (system == "strongswan")
        assert not set(IKE_TESTS) & set(turns["systems", system])
    assert not [
        subject.system
        for _, _, subject in make_plan(Options(native=False)).turns()
        if subject.system == "native-ike"
    ]


def test_a_system_without_charon_is_refused() -> None:
    link = Link(None, None, "", "")  # type: ignore[arg-type]
    with pytest.raises(LabError, match="no charon"):
        initiate(link, QUICK, Memory())


def test_the_two_ends_of_each_child_mirror_each_other() -> None:
    def ends(side: int) -> list[tuple[str, str]]:
        words = [line.split(" = ") for line in swanctl_conf(side, "s", esn="").splitlines()]
        near = [pair[1] for pair in words if pair[0].strip() == "local_ts"]
        far = [pair[1] for pair in words if pair[0].strip() == "remote_ts"]
        return list(zip(near, far, strict=True))

    assert len(ends(0)) == CHILDREN + 1 == len(set(ends(0)))
    assert ends(1) == [(far, near) for near, far in ends(0)]


def test_the_tables_hold_what_was_measured_and_the_ratios_to_manual_keys() -> None:
    def seen(system: str, test: str, metric: str, unit: str, value: float) -> Observation:
        return Observation("ike", system, test, 0, Sample(metric, unit, value))

    results = summarise(
        [
            seen("native", "tcp", "throughput", "Gbit/s", 4.0),
            seen("native-1-sa", "tcp", "throughput", "Gbit/s", 2.0),
            seen("native-ike", "tcp", "throughput", "Gbit/s", 3.0),
            seen("native-ike", "initiate", "first_packet", "ms", 30.0),
            seen("strongswan", "initiate", "first_packet", "ms", 20.0),
            seen("native-ike", "rekey", "lost", "packets", 0.0),
        ]
    )
    assert report_ike.beside_manual_keys(results).rows == (
        ("one TCP stream, Gbit/s", "3.00", "0.75", "1.50"),
    )
    rows = report_ike.ike(results).rows
    assert [row[1:] for row in rows] == [("30.0", "20.0"), ("0.00", "-")]
    titles = [table.title for table in report.tables(results) if table.rows]
    assert {"IKE", "Keys by IKE beside manual keys"} <= set(titles)
    assert not report_ike.ike(summarise([])).rows
