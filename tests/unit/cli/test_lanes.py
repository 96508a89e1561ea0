"""Lanes on the command line: how they are steered, and what each carries."""

from __future__ import annotations

import pytest

from tests.support.canned import REPLIES, Gateway
from tests.support.commands import Capture, run


@pytest.mark.parametrize(
    ("lanes", "workers", "says"),
    [
        ({"laned": 0}, 2, None),
        ({"limit": 0}, 1, "one worker for all"),
        ({}, 1, "one worker for all"),
        (
            {"laned": 401},
            4,
            "not steered: 401 inbound SPIs, those of replaced SAs included; at most 400 can be",
        ),
        (
            {"refused": "ENOMEM: Cannot allocate memory"},
            2,
            "not steered: the kernel refused the list of SPIs (ENOMEM: Cannot allocate memory)",
        ),
        (
            {"steered": True, "listed": 8, "priority_refused": "EACCES: Permission denied"},
            2,
            "8 inbound SPIs steered, no priority for lane 0: "
            "LimitNICE of the unit, or RLIMIT_NICE, allows no nice of -11",
        ),
    ],
)
def test_status_says_how_lanes_are_steered_and_why_not(
    gateway: Gateway, capsys: Capture, lanes: dict[str, object], workers: int, says: str | None
) -> None:
    there = {"steered": False, "listed": 0, "laned": 8, "limit": 400, "refused": None}
    there |= {"priority": None, "priority_refused": None, **lanes}
    gateway.replies["GetStatus"] = REPLIES["GetStatus"] | {"lanes": there, "workers": workers}
    lines = run(capsys, "status", status=1).splitlines()
    found = [line.partition("lanes: ")[2] for line in lines if line.startswith("  lanes:")]
    assert found == ([says] if says else [])


def test_tunnel_list_has_lanes_and_causes_in_lines_of_80_columns(
    gateway: Gateway, capsys: Capture
) -> None:
    (entry,) = REPLIES["ListTunnels"]["tunnels"]  # type: ignore[misc]
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    gateway.replies["ListTunnels"] = {
        "tunnels": [
            entry
            | {
                "lanes": [{"sa": f"office/out.{n}", "flows": 10 * n} for n in range(64)],
                "causes": [f"{'word ' * 14}nothing comes from {address}: it is off"],
            }
        ]
    }
    lines = run(capsys, "tunnel", "list").splitlines()[2:]
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("flows of office by lane: 0: 0, 1: 10, 2: 20, ")
    assert sum(line.count(address) for line in lines) == 1
    joined = " ".join(line.strip() for line in lines)
    assert "63: 630 office: word word" in joined
