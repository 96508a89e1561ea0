"""`explain`: the flow that it asks for, and the answer for people, scripts and the shell."""

from __future__ import annotations

import json

import pytest

from esp_gw.cli.main import main
from esp_gw.errors import ControlError
from tests.support.canned import REPLIES, Gateway
from tests.support.commands import Capture, fail, run

ENDS = {"source": "10.1.0.5", "destination": "10.2.0.7"}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("10.1.0.5 10.2.0.7", ENDS),
        ("10.1.0.5 10.2.0.7 icmp", ENDS | {"protocol": 1}),
        ("10.1.0.5 10.2.0.7 any", ENDS),
        ("10.1.0.5 10.2.0.7 47", ENDS | {"protocol": 47}),
        ("10.1.0.5 10.2.0.7 tcp 443", ENDS | {"protocol": 6, "destination_port": 443}),
        (
            "10.1.0.5 10.2.0.7 udp 0 53",
            ENDS | {"protocol": 17, "source_port": 0, "destination_port": 53},
        ),
        ("fd00::5 fd00:2::7", {"source": "fd00::5", "destination": "fd00:2::7"}),
    ],
)
def test_a_flow_is_asked_for(
    gateway: Gateway, capsys: Capture, words: str, asked: dict[str, object]
) -> None:
    run(capsys, "explain", *words.split(), status=1)
    assert gateway.asked == [("Explain", asked)]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("", "expected SRC DST [PROTO [[SPORT] DPORT]], or --drops"),
        ("10.1.0.5", "expected SRC DST"),
        ("10.1.0.5 10.2.0.7 tcp 1 2 3", "expected SRC DST"),
        ("pi.lan 10.2.0.7", "SRC: expected an IPv4 or IPv6 address, not the name 'pi.lan'"),
        ("10.1.0.5 10.2.0.0/24", "DST: expected an address without prefix length"),
        ("10.1.0.5 224.0.0.1", "DST: 224.0.0.1 is a multicast"),
        ("10.1.0.5 10.2.0.7 tpc", "PROTO: expected any, icmp"),
        ("10.1.0.5 10.2.0.7 tcp 65536", "DPORT: expected a number from 0 to 65535"),
        ("10.1.0.5 10.2.0.7 tcp x 80", "SPORT: expected a number from 0 to 65535"),
        ("--drops office attic", "the name of one tunnel at most"),
    ],
)
def test_what_is_no_flow_is_a_usage_error_in_one_line(
    gateway: Gateway, capsys: Capture, words: str, says: str
) -> None:
    err = fail(capsys, "explain", *words.split(), status=2)
    assert err.startswith("esp-gw explain: error: ")
    assert says in err
    assert err.endswith("see 'esp-gw explain --help'\n")
    assert err.count("\n") == 1
    assert gateway.asked == []


def test_the_steps_are_a_short_list_with_the_remedy(gateway: Gateway, capsys: Capture) -> None:
    assert run(capsys, "explain", *ENDS.values(), "tcp", "443", status=1).splitlines() == [
        "10.1.0.5 -> 10.2.0.7 tcp to port 443: stopped",
        "ok       policy    office: protect",
        "stop     forward   ip_forward is 0",
        "                   run 'sysctl -w net.ipv4.ip_forward=1'",
    ]


@pytest.mark.parametrize(
    ("verdict", "tunnel", "says", "status"),
    [
        ("carried", "office", "carried by office", 0),
        ("carried", None, "carried by more", 0),
        ("clear", None, "in the clear", 0),
        ("stopped", "office", "stopped", 1),
    ],
)
def test_the_verdict_is_the_first_line_and_the_exit_status(
    gateway: Gateway, capsys: Capture, verdict: str, tunnel: str | None, says: str, status: int
) -> None:
    told = {"verdict": verdict, "tunnel": tunnel, "policy": "more"}
    gateway.replies["Explain"] = REPLIES["Explain"] | told
    out = run(capsys, "explain", *ENDS.values(), status=status)
    assert out.splitlines()[0].endswith(f": {says}")


def test_json_is_the_reply(gateway: Gateway, capsys: Capture) -> None:
    out = run(capsys, "explain", *ENDS.values(), "--json", status=1)
    assert json.loads(out) == REPLIES["Explain"]
    assert json.loads(run(capsys, "explain", "--drops", "--json")) == REPLIES["ExplainDrops"]


def test_drops_are_explained_by_tunnel_and_for_the_rest(gateway: Gateway, capsys: Capture) -> None:
    assert run(capsys, "explain", "--drops").splitlines() == [
        "tunnel office, failing",
        "  auth-failed 12: packets that have a wrong ICV",
        "    usually: another key",
        "    last one: from 192.0.2.2",
        "    compare the keys",
        "  likely cause: another key",
        "of no tunnel",
        "  no-policy 1: packets that match no policy",
        "    usually: a source outside",
    ]
    run(capsys, "explain", "--drops", "office")
    assert gateway.asked == [("ExplainDrops", {}), ("ExplainDrops", {"tunnel": "office"})]


def test_where_nothing_was_dropped_it_says_so(gateway: Gateway, capsys: Capture) -> None:
    gateway.replies["ExplainDrops"] = {"tunnels": [], "others": []}
    assert run(capsys, "explain", "--drops") == "nothing was dropped\n"


def test_a_refusal_is_one_line(gateway: Gateway, capsys: Capture) -> None:
    gateway.replies["Explain"] = ControlError("InvalidParameter", "of two IP versions")
    assert main(["explain", "10.1.0.5", "fd00::1"]) == 1
    assert capsys.readouterr().err == "esp-gw: error: of two IP versions\n"
