"""Presentation of the demo's figures."""

from __future__ import annotations

from typing import Any

import pytest

from esp_gw.demo.ike import IkeDemoResult
from esp_gw.demo.results import DemoResult

FIGURES: dict[str, Any] = {
    "engine": "native",
    "aes": "AES-NI",
    "mode": "tunnel",
    "encapsulation": "udp",
    "suite": "aes256gcm16",
    "mtu": 1422,
    "seconds_to_first_packet": 0.1,
    "rtt_us": 90,
    "tcp_gbit_s": 5.6,
    "tcp_reverse_gbit_s": 0.05,
    "cpu_percent_a": 80,
    "cpu_percent_b": 81,
    "rss_mb": 40.0,
    "esp_packets_on_wire": 900,
    "cleartext_packets_on_wire": 0,
    "cleartext_examples": (),
    "packets_out": 900,
    "packets_in": 900,
    "drops": {},
}
OF_IKE: dict[str, Any] = {"charon": "5.9.8", "rekeys": 2, "lost": 0, "ike_messages_on_wire": 12}


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({}, None),
        ({"cleartext_packets_on_wire": 1}, "CLEARTEXT WAS ON THE WIRE"),
        ({"tcp_reverse_gbit_s": 0.0}, "no traffic passed"),
        ({"rtt_us": 0}, "no traffic passed"),
        ({"esp_packets_on_wire": 0}, "no traffic passed"),
    ],
)
def test_a_fault_is_the_verdict(changed: dict[str, Any], fault: str | None) -> None:
    for result in (
        DemoResult(**(FIGURES | changed)),
        IkeDemoResult(**(FIGURES | changed | OF_IKE)),
    ):
        assert result.fault == fault
        assert dict(result.rows(5))["verdict"] == (fault or "only ESP was on the wire")


def test_with_ike_a_lost_packet_is_a_fault() -> None:
    result = IkeDemoResult(**(FIGURES | OF_IKE | {"lost": 3}))
    assert result.fault == "3 PACKETS GOT LOST"
    assert dict(result.rows(5))["rekeys under load"] == "2, packets lost by them: 3"


def test_both_kinds_show_their_throughput_alike() -> None:
    manual, ike = DemoResult(**FIGURES), IkeDemoResult(**(FIGURES | OF_IKE))
    for name in ("TCP, 5 s", "TCP reverse, 5 s", "round trip", "tunnel"):
        assert dict(manual.rows(5))[name] == dict(ike.rows(5))[name]
    assert "5.60 Gbit/s" in dict(ike.rows(5)).values()
    assert "50.00 Mbit/s" in dict(ike.rows(5)).values()
    assert "charon 5.9.8" in dict(ike.rows(5))["keys"]
