"""Generator and receiver of small datagrams over a veth pair: what one sends, the other counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import UDP
from scapy.utils import rdpcap

from esp_gw.errors import LabError
from lab.bench.datagrams import FIRST_SOURCE_PORT, PORT
from lab.bench.model import Link
from lab.bench.systems import veth
from lab.bench.udp import exchange
from tests.support.labtools import StartCapture

RATE = 5000.0


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    with veth(tmp_path) as link:
        yield link


@pytest.mark.parametrize("flows", [1, 8, 64])
def test_every_datagram_is_counted_and_none_is_sent_beyond_the_rate(link: Link, flows: int) -> None:
    seen = exchange(link, flows, 64, RATE, 0.5)
    assert seen.received == seen.sent
    assert 0 < seen.sent <= RATE * seen.seconds + 1
    assert seen.seconds >= 0.5
    assert seen.spent.machine > 0
    assert seen.spent.daemons == ()


def test_the_flows_take_turns(link: Link, capture: StartCapture) -> None:
    running = capture(link.b)
    seen = exchange(link, 8, 64, 1000.0, 0.2)
    found = [each[UDP].sport for each in rdpcap(str(running.stop())) if UDP in each]
    ports = [port - FIRST_SOURCE_PORT for port in found]
    assert len(ports) == seen.sent
    assert ports == [place % 8 for place in range(len(ports))]


def test_at_full_speed_nothing_is_counted_that_was_not_sent(link: Link) -> None:
    seen = exchange(link, 8, 64, 0, 0.2)
    assert 0 < seen.received <= seen.sent


def test_a_link_that_carries_nothing_is_an_error(link: Link) -> None:
    link.b.run("nft", "add table ip t; add chain ip t i { type filter hook input priority 0; }")
    link.b.run("nft", f"add rule ip t i udp dport {PORT} drop")
    with pytest.raises(LabError, match="no UDP packet came through"):
        exchange(link, 1, 64, RATE, 0.1)
