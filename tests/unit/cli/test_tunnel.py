"""`tunnel show`, and what `tunnel ping` refuses before it sends anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.canned import POLICIES, REPLIES, SA_IN, SA_OUT, Gateway
from tests.support.commands import Capture, fail, run

EVENT = {
    "number": 9, "time": 0.0, "tunnel": "attic", "before": "up", "state": "down",
    "cause": None, "drops": "",
}  # fmt: skip


def test_show_has_the_sas_policies_and_changes_of_one_tunnel(
    gateway: Gateway, capsys: Capture
) -> None:
    retired = SA_IN | {"name": "office/in~c0ffee01"}
    gateway.replies["ListSas"] = {"sas": [SA_OUT, SA_IN | {"name": "attic/in"}, retired]}
    events: Any = REPLIES["ListEvents"]["events"]
    gateway.replies["ListEvents"] = {"events": [*events, EVENT], "last": 9}
    shown = json.loads(run(capsys, "tunnel", "show", "office", "--json"))
    listed: Any = REPLIES["ListTunnels"]["tunnels"]
    assert shown == {
        "tunnel": listed[0],
        "sas": [SA_OUT, retired],
        "policies": [POLICIES[0]],
        "events": events,
    }


def test_show_is_a_block_a_table_and_the_last_changes(gateway: Gateway, capsys: Capture) -> None:
    out = run(capsys, "tunnel", "show", "office")
    assert out.startswith("tunnel: office\n  state: up, heard 2 s ago, sent never\n")
    assert "  remote: 198.51.100.7:4501\n" in out
    assert "  policies: office (protect)\n" in out
    assert "  flows by lane: 0: 3, 1: 1\n" in out
    assert "office/out  out  0x00001001" in out
    assert out.splitlines()[-1].endswith(" failing -> up")


def test_a_tunnel_that_is_not_there_names_the_list(gateway: Gateway, capsys: Capture) -> None:
    for command in ("show", "ping"):
        err = fail(capsys, "tunnel", command, "none")
        assert err == (
            "esp-gw: error: there is no tunnel none; 'esp-gw tunnel list' shows the existing ones\n"
        )


def change(gateway: Gateway, **fields: object) -> None:
    listed: Any = REPLIES["ListTunnels"]["tunnels"]
    gateway.replies["ListTunnels"] = {"tunnels": [listed[0] | fields]}


@pytest.mark.parametrize(
    ("fields", "told", "says"),
    [
        ({"remote_ts": ["0.0.0.0/0"]}, {}, "'esp-gw tunnel ping office ADDRESS'"),
        ({"local_ts": ["192.0.2.240/28"]}, {}, "this host has no address in 192.0.2.240/28"),
        ({}, {}, "forward: ip_forward is 0; run 'sysctl -w net.ipv4.ip_forward=1'"),
        ({}, {"verdict": "clear", "steps": []}, "is not reached by office, but in the clear"),
        (
            {},
            {"verdict": "carried", "steps": [], "tunnel": "attic", "sas": ["attic/out"]},
            "is reached by attic, not by office",
        ),
    ],
)
def test_a_ping_that_would_not_go_by_the_tunnel_is_refused(
    gateway: Gateway,
    capsys: Capture,
    fields: dict[str, object],
    told: dict[str, object],
    says: str,
) -> None:
    change(gateway, **{"local_ts": ["127.0.0.0/8"], "remote_ts": ["127.2.0.0/16"]} | fields)
    gateway.replies["Explain"] = REPLIES["Explain"] | told
    err = fail(capsys, "tunnel", "ping", "office")
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("count", ["0", "-1", "x", "10001"])
def test_a_wrong_count_is_a_usage_error(gateway: Gateway, capsys: Capture, count: str) -> None:
    err = fail(capsys, "tunnel", "ping", "office", "--count", count, status=2)
    assert "expected a number from 1 to 10000" in err
