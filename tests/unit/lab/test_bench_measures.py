"""Parsing of the output of ping, iperf3, ethtool and core_bench."""

from __future__ import annotations

import pytest

from esp_gw.errors import LabError
from lab.bench import core
from lab.bench.measures import parse_features, parse_ping, percentile, received_gbit_s, udp_probe

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


def summary(sent: int, seen: int, lost: int, seconds: float = 1.0) -> dict[str, object]:
    """iperf3's summary: the receiver saw the sequence up to `seen`, with `lost` missing."""
    return {
        "sum_sent": {"packets": sent, "seconds": seconds},
        "sum_received": {
            "packets": seen,
            "lost_packets": lost,
            "bytes": (seen - lost) * 64,
            "seconds": seconds,
        },
    }


def test_loss_in_the_sequence_is_loss() -> None:
    probe = udp_probe(summary(1000, 1000, 20), 64, (30.0,))
    assert (probe.sent, probe.received, probe.loss) == (1000, 980, 0.02)
    assert probe.cpu == (30.0,)
    assert not probe.is_good


def test_packets_possibly_in_flight_at_the_end_are_not_lost() -> None:
    assert udp_probe(summary(1000, 960, 0), 64, ()).is_good


def test_packets_missing_at_the_end_of_the_run_are_lost() -> None:
    probe = udp_probe(summary(1000, 700, 0), 64, ())
    assert probe.loss == pytest.approx(0.25)


def test_no_packet_at_all_is_an_error() -> None:
    with pytest.raises(LabError, match="no UDP packet"):
        udp_probe(summary(1000, 0, 0), 64, ())


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


@pytest.mark.parametrize("entry", [{}, {**CORE, "median": None}, {**CORE, "threads": "many"}])
def test_malformed_figures_of_the_core_are_one_error(
    entry: dict[str, object],
) -> None:
    with pytest.raises(LabError, match="malformed"):
        list(core.parse([entry]))
