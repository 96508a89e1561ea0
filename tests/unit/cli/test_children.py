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
