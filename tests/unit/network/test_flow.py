"""A flow that is named in part: selectors match it, don't, or may."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from esp_gw.model import PortRange
from esp_gw.network.flow import Flow, matches
from tests.support.builders import selector

SOURCE, TARGET = ip_address("10.1.0.5"), ip_address("10.2.0.7")
TCP, UDP, ICMP = 6, 17, 1
HTTPS = PortRange(443, 443)


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (Flow(SOURCE, TARGET), None),
        (Flow(SOURCE, TARGET, TCP), None),
        (Flow(SOURCE, TARGET, TCP, None, 443), True),
        (Flow(SOURCE, TARGET, TCP, 443, None), None),
        (Flow(SOURCE, TARGET, TCP, None, 80), False),
        (Flow(SOURCE, TARGET, UDP, None, 443), False),
        (Flow(SOURCE, TARGET, ICMP), False),
        (Flow(TARGET, SOURCE, TCP, None, 443), False),
        (Flow(ip_address("fd00::1"), ip_address("fd00::2")), False),
    ],
)
def test_a_selector_with_a_port(flow: Flow, expected: bool | None) -> None:
    assert matches(selector(protocol=TCP, remote_port=HTTPS), flow) is expected


def test_a_selector_of_prefixes_alone_matches_whatever_is_not_said() -> None:
    assert matches(selector(), Flow(SOURCE, TARGET)) is True
    assert matches(selector(), Flow(SOURCE, ip_address("10.3.0.1"))) is False


def test_a_port_without_a_protocol_says_nothing_of_a_packet_without_ports() -> None:
    wanted = selector(remote_port=HTTPS)
    assert matches(wanted, Flow(SOURCE, TARGET)) is None
    assert matches(wanted, Flow(SOURCE, TARGET, ICMP)) is False
    assert matches(wanted, Flow(SOURCE, TARGET, UDP, None, 443)) is True


def test_the_answers_of_a_flow_have_its_ends_exchanged() -> None:
    flow = Flow(SOURCE, TARGET, TCP, 1000, 443)
    assert flow.reverse == Flow(TARGET, SOURCE, TCP, 443, 1000)
    assert flow.reverse.reverse == flow
