"""IKE's children in the output of `esp-gw status`."""

from __future__ import annotations

import json

from tests.support.canned import REPLIES, Gateway
from tests.support.commands import Capture, run

CHILD = {
    "name": "ike:office{3}",
    "connection": "office",
    "peer": "CN=b.example",
    "encapsulation": "udp",
    "local": "192.0.2.1",
    "remote": "2001:db8::2",
    "remote_port": 4501,
    "state": "up",
    "age_s": 125.0,
    "rekey_s": 3700.0,
    "remote_ts": ["10.2.0.0/24"],
    "acquired_s": None,
}


def status(gateway: Gateway, capsys: Capture, *children: dict[str, object]) -> str:
    gateway.replies["GetStatus"] = REPLIES["GetStatus"] | {"children": list(children)}
    return run(capsys, "status", status=1)


def test_a_child_is_a_row_with_peer_age_and_next_rekey(gateway: Gateway, capsys: Capture) -> None:
    heading, row, *_ = [
        line
        for line in status(gateway, capsys, CHILD).splitlines()
        if "  up" in line or "NEXT" in line
    ]
    assert heading.split("  ")[0] == "CHILD"
    for cell in (
        "ike:office{3}",
        "CN=b.example",
        "[2001:db8::2]:4501",
        "2 min 5 s",
        "in 1 h 1 min",
    ):
        assert cell in row
    assert json.loads(run(capsys, "status", "--json", status=1))["children"] == [CHILD]


def test_a_gateway_without_children_shows_no_table(gateway: Gateway, capsys: Capture) -> None:
    assert "CHILD" not in status(gateway, capsys)


def test_what_is_not_known_is_left_out(gateway: Gateway, capsys: Capture) -> None:
    unknown = CHILD | {"peer": "", "age_s": None, "rekey_s": None}
    out = status(gateway, capsys, unknown)
    assert "PEER" not in out and "AGE" not in out and "REKEY" not in out
    assert "ike:office{3}" in out


def test_a_rekey_whose_time_has_come_is_due(gateway: Gateway, capsys: Capture) -> None:
    assert "due" in status(gateway, capsys, CHILD | {"rekey_s": 0.0})


def test_an_identity_of_the_peer_controls_no_terminal(gateway: Gateway, capsys: Capture) -> None:
    assert "\x1b" not in status(gateway, capsys, CHILD | {"peer": "a\x1b[2Jb"})


def test_a_child_that_waits_shows_its_connection_and_networks(
    gateway: Gateway, capsys: Capture
) -> None:
    unknown = ("peer", "encapsulation", "local", "remote", "remote_port", "age_s", "rekey_s")
    waiting = CHILD | dict.fromkeys(unknown) | {"state": "waiting", "acquired_s": 3.0}
    out = status(gateway, capsys, waiting)
    (row,) = [line for line in out.splitlines() if "ike:office" in line]
    for cell in ("office", "10.2.0.0/24", "waiting, asked for 3 s ago"):
        assert cell in row
    (row,) = [
        line
        for line in status(gateway, capsys, waiting | {"acquired_s": None}).splitlines()
        if "ike:office" in line
    ]
    assert row.rstrip().endswith("waiting")


def test_a_gateway_of_an_earlier_version_tells_no_times_of_packets(
    gateway: Gateway, capsys: Capture
) -> None:
    earlier = {name: CHILD[name] for name in CHILD if name not in ("remote_ts", "acquired_s")}
    assert "ike:office{3}" in status(gateway, capsys, earlier)
