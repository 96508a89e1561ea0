"""iperf3-two-pis: parsing of reports, board states and tunnels, and the table."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from esp_gw.errors import LabError
from lab.two_pis.answers import (
    Description,
    Rate,
    Reading,
    Tunnel,
    common_tunnel,
    inner_address,
    parse_description,
    parse_rate,
    parse_reading,
    parse_tunnels,
)
from lab.two_pis.measure import Board, Comparison, Report
from lab.two_pis.report import table

# Excerpts of reports of iperf3 3.12.
TCP = {
    "sum_sent": {"bits_per_second": 9.42e8, "retransmits": 3},
    "sum_received": {"bits_per_second": 9.41e8},
}
UDP = {
    "sum": {"bits_per_second": 9.56e8, "lost_packets": 77, "packets": 770, "lost_percent": 10},
    "sum_sent": {"bits_per_second": 9.56e8, "lost_percent": 0},
    "sum_received": {"bits_per_second": 8.6e8, "lost_percent": 10},
}


class TestRate:
    def test_is_the_received_rate(self) -> None:
        assert parse_rate(json.dumps({"end": TCP}), "pi") == Rate(941.0)
        assert parse_rate(json.dumps({"end": UDP}), "pi") == Rate(860.0, 10)

    def test_of_an_older_iperf3_is_its_only_sum(self) -> None:
        assert parse_rate(json.dumps({"end": {"sum": UDP["sum"]}}), "pi") == Rate(956.0, 10)

    def test_of_a_run_that_failed_is_its_error(self) -> None:
        text = '{"start": {}, "end": {}, "error": "unable to connect to server: No route to host"}'
        with pytest.raises(LabError, match=r"^pi: iperf3: unable to connect to server: No route"):
            parse_rate(text, "pi")

    @pytest.mark.parametrize(
        "text", ["", "[]", "{}", '{"end": {}}', '{"end": {"sum": 1}}', "iperf"]
    )
    def test_of_malformed_reports_is_an_error(self, text: str) -> None:
        with pytest.raises(LabError, match="pi: iperf3 gave no report"):
            parse_rate(text, "pi")


class TestReading:
    def test_of_a_raspberry_pi(self) -> None:
        output = (
            "model Raspberry Pi 5 Model B Rev 1.0\ntemperature 48850\ntemperature 51600\n"
            "clock 1500000\nclock 2400000\nthrottled=0x50001\n"
        )
        assert parse_reading(output) == Reading(
            "Raspberry Pi 5 Model B Rev 1.0",
            51.6,
            2400,
            ("under-voltage",),
            ("under-voltage", "throttled"),
        )

    @pytest.mark.parametrize("output", ["", "temperature \nclock \n", "throttled=error\nclock x"])
    def test_of_a_machine_that_reports_nothing(self, output: str) -> None:
        assert parse_reading(output) == Reading()


TUNNEL = Tunnel(
    "pi-b",
    "tunnel",
    "192.0.2.1",
    "198.51.100.1",
    frozenset({"10.1.0.0/24", "fd00:1::/64"}),
    frozenset({"10.2.0.0/24"}),
    7,
)


def other_end(tunnel: Tunnel) -> Tunnel:
    return replace(
        tunnel,
        local=tunnel.remote,
        remote=tunnel.local,
        local_ts=tunnel.remote_ts,
        remote_ts=tunnel.local_ts,
    )


class TestTunnel:
    def test_list_is_read(self) -> None:
        listed = {
            "name": "pi-b",
            "mode": "tunnel",
            "local": "192.0.2.1",
            "remote": "198.51.100.1",
            "local_ts": ["fd00:1::/64", "10.1.0.0/24"],
            "remote_ts": ["10.2.0.0/24"],
            "packets_out": 7,
        }
        assert parse_tunnels(json.dumps({"tunnels": [listed]}), "pi") == [TUNNEL]

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"tunnels": [{"name": "a"}]}'])
    def test_malformed_list_is_an_error(self, text: str) -> None:
        with pytest.raises(LabError, match=r"malformed answer of 'esp-gw tunnel list'"):
            parse_tunnels(text, "pi")

    def test_common_to_both_is_found_among_others(self) -> None:
        far = replace(TUNNEL, name="far", remote_ts=frozenset({"10.9.0.0/24"}))
        pair = common_tunnel([far, TUNNEL], [other_end(TUNNEL)], ("a", "b"))
        assert pair == (TUNNEL, other_end(TUNNEL))

    def test_through_a_nat_is_found(self) -> None:
        translated = replace(other_end(TUNNEL), local="192.168.1.7")
        assert common_tunnel([TUNNEL], [translated], ("a", "b")) == (TUNNEL, translated)

    def test_with_the_same_networks_to_another_peer_is_not_chosen(self) -> None:
        elsewhere = replace(TUNNEL, name="elsewhere", remote="203.0.113.1")
        ends = [other_end(elsewhere), other_end(TUNNEL)]
        assert common_tunnel([TUNNEL], ends, ("a", "b")) == (TUNNEL, other_end(TUNNEL))

    def test_of_another_mode_or_network_does_not_match(self) -> None:
        others = [replace(other_end(TUNNEL), mode="transport"), TUNNEL]
        with pytest.raises(LabError, match=r"^there is no tunnel between a and b; is one"):
            common_tunnel([TUNNEL], others, ("a", "b"))

    def test_in_transport_mode_is_matched_by_its_addresses(self) -> None:
        one = replace(TUNNEL, mode="transport", local_ts=frozenset(), remote_ts=frozenset())
        assert one.mirrors(other_end(one))
        assert not one.mirrors(replace(other_end(one), local="203.0.113.1"))


LINKS = [
    {"addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
    {
        "addr_info": [
            {"local": "10.1.0.1", "scope": "global"},
            {"local": "fe80::1", "scope": "link"},
        ]
    },
]


class TestDescription:
    def test_is_read(self) -> None:
        text = f"5c1e net:[4]\n/usr/bin/iperf3\n{json.dumps(LINKS)}\n"
        assert parse_description(text, "pi") == Description("5c1e net:[4]", True, ("10.1.0.1",))
        assert not parse_description(f"5c1e\n\n{json.dumps(LINKS)}", "pi").has_iperf3

    @pytest.mark.parametrize("text", ["", "router>", "id\n\n", "id\n\n[1]", 'id\n\n[{"a": 1}]'])
    def test_malformed_is_an_error(self, text: str) -> None:
        with pytest.raises(LabError, match=r"^pi: it doesn't report its id and addresses"):
            parse_description(text, "pi")

    def test_has_an_address_protected_by_the_tunnel(self) -> None:
        description = Description("5c1e", True, ("192.0.2.1", "2001:db8::1", "10.1.0.77"))
        assert inner_address(TUNNEL, description, "pi") == "10.1.0.77"
        with pytest.raises(LabError, match=r"^pi: no address in 10\.1\.0\.0/24, fd00:1::/64"):
            inner_address(TUNNEL, replace(description, addresses=("192.0.2.1",)), "pi")


def test_the_table_shows_rates_and_board_states() -> None:
    hot = Reading("Raspberry Pi 4", 80.25, 1500, ("throttled",), ())
    report = Report(
        10,
        ("10.1.0.1", "10.2.0.1"),
        None,
        (Board("a", Reading(), hot), Board("b", Reading(), Reading())),
        [
            Comparison("TCP", "a", "b", Rate(940.0), Rate(705.0)),
            Comparison("UDP", "b", "a", None, Rate(500.0, 0.25)),
        ],
    )
    lines = [" ".join(line.split()) for line in table(report).splitlines()]
    assert lines == [
        "10 s each without through the tunnel share",
        "TCP a -> b 940.0 Mbit/s 705.0 Mbit/s 75 %",
        "UDP b -> a - 500.0 Mbit/s, 0.2 % lost -",
        "before after",
        "a (Raspberry Pi 4)",
        "temperature - 80.2 °C",
        "clock - 1500 MHz",
        "throttled - throttled",
        "throttled since boot - no",
        "b",
        "temperature - -",
        "clock - -",
        "throttled - -",
        "throttled since boot - -",
    ]
