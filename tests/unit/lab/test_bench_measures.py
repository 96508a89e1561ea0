"""Parsing of the output of ping, iperf3, ethtool, go and core_bench, and of /proc/stat."""

from __future__ import annotations

import os

import pytest

from esp_gw.errors import LabError
from lab.bench import core
from lab.bench.costs import costs
from lab.bench.cpu import Spent, parse_unused
from lab.bench.host import module_version
from lab.bench.ping import parse_ping, percentile
from lab.bench.streams import parse_interval, received_gbit_s
from lab.bench.tcp import parse_features, sender_seconds
from lab.bench.udp import Exchange, count_at, samples

PING = """\
PING 10.2.0.1 (10.2.0.1) from 10.1.0.1 : 56(84) bytes of data.
64 bytes from 10.2.0.1: icmp_seq=1 ttl=64 time=0.318 ms
64 bytes from 10.2.0.1: icmp_seq=2 ttl=64 time=12.4 ms
64 bytes from 10.2.0.1: icmp_seq=4 ttl=64 time=0.047 ms

--- 10.2.0.1 ping statistics ---
4 packets transmitted, 3 received, 25% packet loss, time 40ms
rtt min/avg/max/mdev = 0.047/4.255/12.400/1.000 ms
"""
ETHTOOL = """\
Features for wan:
rx-checksumming: on
tcp-segmentation-offload: on
\ttx-tcp-segmentation: on
generic-receive-offload: off
tx-udp-segmentation: on [fixed]
"""


def test_every_round_trip_of_ping_is_read_in_microseconds() -> None:
    assert parse_ping(PING) == pytest.approx([318, 12_400, 47])
    assert parse_ping("4 packets transmitted, 0 received") == []


def test_features_are_read_with_their_state() -> None:
    features = parse_features(ETHTOOL)
    assert features["tcp-segmentation-offload"] == "on"
    assert features["tx-udp-segmentation"] == "on"
    assert features["generic-receive-offload"] == "off"


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, 1), (1, 1), (50, 50), (98.5, 99), (99, 99), (99.1, 100), (100, 100)],
)
def test_a_percentile_is_the_nearest_rank(percent: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == expected


def test_both_ways_of_a_bidirectional_run_are_added() -> None:
    one_way = {"sum_sent": {"bits_per_second": 9e9}, "sum_received": {"bits_per_second": 2e9}}
    assert received_gbit_s(one_way) == 2
    both = {**one_way, "sum_received_bidir_reverse": {"bits_per_second": 5e8}}
    assert received_gbit_s(both) == 2.5


def test_the_seconds_of_a_run_are_the_senders() -> None:
    assert sender_seconds({"sum_sent": {"seconds": 2.01}, "sum_received": {"seconds": 2.2}}) == 2.01


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[  5]   1.00-2.00   sec   119 MBytes   999 Mbits/sec    0    390 KBytes", ("5", 999)),
        ("[SUM]   0.00-1.00   sec  1.15 GBytes  9890.5 Mbits/sec  331", ("SUM", 9890.5)),
        ("[ ID] Interval           Transfer     Bitrate         Retr  Cwnd", None),
        ("- - - - - - - - -", None),
    ],
)
def test_a_line_of_iperf3_has_its_stream_and_rate(
    line: str, expected: tuple[str, float] | None
) -> None:
    assert parse_interval(line) == expected


STAT = """\
cpu  1000 1 300 5000 40 0 70 30 0 0
cpu0 500 1 150 2500 20 0 35 15 0 0
cpu1 500 0 150 2500 20 0 35 15 0 0
intr 1 2 3
"""


def test_a_core_does_no_work_while_it_is_idle_waits_or_is_taken_away() -> None:
    cores, unused = parse_unused(STAT)
    assert cores == 2
    assert unused * os.sysconf("SC_CLK_TCK") == pytest.approx(5000 + 40 + 30)


def test_the_receiving_sides_daemons_are_the_second_half() -> None:
    spent = Spent(2.0, (0.5, 0.25, 1.0, 0.125), 3.0)
    assert spent.receiver == 1.125
    assert spent.percent() == (25, 12.5, 50, 6.25)
    assert spent.percent(1.0) == (50, 25, 100, 12.5)
    assert Spent(1.0, (), 0.5).receiver == 0


def test_a_count_between_two_marks_is_in_proportion() -> None:
    marks = [(10.0, 0), (11.0, 100), (13.0, 500), (14.0, 500)]
    assert [count_at(marks, at) for at in (9, 10, 10.5, 11, 12, 13.5, 20)] == [
        *(0, 0, 50, 100, 300, 500, 500)
    ]
    assert count_at([], 1.0) == 0


def test_loss_is_what_was_offered_and_not_received() -> None:
    probe = Exchange(1000, 985.0, 0.5, Spent(0.55, (0.1, 0.05), 0.9)).probe
    assert (probe.sent, probe.received) == (2000, 1970)
    assert probe.loss == pytest.approx(0.015)
    assert probe.cpu == pytest.approx((20, 10))
    assert not probe.is_good
    more_than_sent = Exchange(1000, 1000.4, 1.0, Spent(1.0, (), 0.9)).probe
    assert more_than_sent.loss == 0


def test_packets_a_processor_second_are_those_received() -> None:
    seen = Exchange(1100, 1000.0, 0.5, Spent(0.6, (0.25, 0.15), 0.8))
    found = {each.metric: (each.value, each.note) for each in samples(seen, 64, "a limit")}
    assert found == {
        "throughput": (pytest.approx(2000 * 512 / 1e9), "a limit"),
        "packets": (2000, "a limit"),
        "per_gateways_cpu": (pytest.approx(2500), ""),
        "per_machine_cpu": (pytest.approx(1250), ""),
    }
    plain = samples(Exchange(10, 10.0, 0.5, Spent(0.6, (), 0.8)), 64, "")
    assert "per_gateways_cpu" not in {each.metric for each in plain}


def test_costs_are_divided_by_what_was_carried() -> None:
    spent = Spent(2.0, (0.25, 0.15), 0.8)
    found = costs(spent, 200_000, "us/packet", 1e6, "")
    values = {each.metric: pytest.approx(each.value) for each in found}
    assert values == {"machine": 4.0, "gateways": 2.0, "receiver": 0.75}
    assert {(each.unit, each.cpu) for each in found} == {("us/packet", spent.percent())}
    assert [each.metric for each in costs(Spent(2.0, (), 0.8), 2.0, "s/Gbit", 1, "")] == ["machine"]


def test_the_version_of_a_go_program_is_its_modules() -> None:
    output = (
        "/cache/wireguard: go1.26.8\n\tpath\tgolang.zx2c4.com/wireguard\n"
        "\tmod\tgolang.zx2c4.com/wireguard\tv0.0.0-20260522210424-ecfc5a8d5446\th1:x=\n"
        "\tdep\tgolang.org/x/crypto\tv0.37.0\th1:y=\n"
    )
    assert module_version(output) == "v0.0.0-20260522210424-ecfc5a8d5446"
    assert module_version("not a Go executable") == ""


CORE = {
    "test": "encap",
    "size": 1400,
    "threads": 1,
    "sas": "own",
    "metric": "ns_per_packet",
    "provider": "openssl",
    "suite": "aes256gcm16",
    "path": "aes vaes",
    "median": 300.5,
    "min": 299,
    "max": 310,
}


def test_figures_of_the_core_have_distinct_keys() -> None:
    entries = [
        CORE,
        {**CORE, "provider": "aws-lc"},
        {**CORE, "threads": 2, "metric": "speedup", "median": 1.9},
        {**CORE, "threads": 2, "metric": "speedup", "sas": "shared"},
        {**CORE, "test": "decap"},
    ]
    results = list(core.parse(entries))
    keys = {(result.system, result.test, result.metric) for result in results}
    assert len(keys) == len(entries)
    assert ("native-openssl", "core_encap_1400", "speedup_2_threads_own") in keys
    assert (results[0].median, results[0].low, results[0].high) == (300.5, 299, 310)
    assert results[0].unit == "ns"
    (split,) = core.parse(
        [{**CORE, "test": "split", "size": 45, "threads": 2, "sas": "parked", "metric": "speedup"}]
    )
    assert (split.test, split.metric) == ("core_split_45", "speedup_2_threads_parked")
    (earlier,) = core.parse([CORE], "baseline")
    assert earlier.system == "baseline-openssl"


@pytest.mark.parametrize("entry", [{}, {**CORE, "median": None}, {**CORE, "threads": "many"}])
def test_malformed_figures_of_the_core_are_one_error(
    entry: dict[str, object],
) -> None:
    with pytest.raises(LabError, match="malformed"):
        list(core.parse([entry]))
