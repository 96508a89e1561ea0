"""Moves of peers in the log, however often they come."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from esp_gw.daemon.peer_log import INTERVAL, TUNNEL_INTERVAL, PeerLog
from esp_gw.model import Direction
from tests.support.builders import make_sa
from tests.support.fakes import captured_logs

ADDRESS = ip_address("198.51.100.7")
SA = make_sa("t/in", Direction.INBOUND, 0x1001)


def test_a_peer_that_flaps_has_a_line_an_interval_whichever_sa_hears_it() -> None:
    told = PeerLog()
    sas = [replace(SA, name=f"t/in.{number}", tunnel="t") for number in range(64)]
    with captured_logs() as lines:
        for tenth in range(600):
            told.moved(sas[tenth % 64], ADDRESS, tenth, tenth / 10)
    assert [line["port"] for line in lines] == [100 * n for n in range(int(60 / TUNNEL_INTERVAL))]


def test_many_peers_share_a_line_a_second() -> None:
    told = PeerLog()
    with captured_logs() as lines:
        for number in range(1000):
            told.moved(replace(SA, name=f"s{number}"), ADDRESS, number, number / 100)
    assert len(lines) == 10 / INTERVAL
