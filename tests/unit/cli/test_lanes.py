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


def of_office(flows: dict[int, int], count: int = 64) -> list[dict[str, object]]:
    """The lanes of a tunnel, with the flows that some of them carry."""
    return [{"sa": f"office/out.{n}", "flows": flows.get(n, 0)} for n in range(count)]


def list_tunnel(gateway: Gateway, lanes: list[dict[str, object]], *causes: str) -> None:
    (entry,) = REPLIES["ListTunnels"]["tunnels"]  # type: ignore[misc]
    gateway.replies["ListTunnels"] = {"tunnels": [entry | {"lanes": lanes, "causes": causes}]}
    gateway.replies["GetStats"] = REPLIES["GetStats"] | {"lanes": {"office": lanes}}


def test_tunnel_list_has_causes_in_lines_of_80_columns(gateway: Gateway, capsys: Capture) -> None:
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    cause = f"{'word ' * 14}nothing comes from {address}: it is off"
    list_tunnel(gateway, of_office({}), cause)
    lines = run(capsys, "tunnel", "list").splitlines()[2:]
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.count(address) for line in lines) == 1
    assert "office: word word" in " ".join(line.strip() for line in lines)


def test_lanes_are_in_lines_of_80_columns_that_keep_a_lane_and_its_flows_together(
    gateway: Gateway, capsys: Capture
) -> None:
    list_tunnel(gateway, of_office({n: 10 * n + 1 for n in range(64)}))
    for command in (("tunnel", "list"), ("stats",)):
        lines = run(capsys, *command).splitlines()
        (first,) = (n for n, line in enumerate(lines) if ": 0: 1, 1: 11, 2: 21" in line)
        items = " ".join(line.strip() for line in lines[first:]).partition(": 0: 1,")[2]
        assert items.startswith(" 1: 11, 2: 21, ")
        rest = [line for line in lines[first + 1 :] if line.strip()[0].isdigit()]
        assert rest[-1].endswith(" 63: 631")
        for line in (lines[first], *rest):
            assert len(line) <= 80
            assert line.endswith(",") or line is rest[-1]


@pytest.mark.parametrize(
    ("flows", "count", "says"),
    [
        ({0: 3, 1: 1}, 2, "0: 3, 1: 1"),
        ({0: 3}, 8, "0: 3, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 6: 0, 7: 0"),
        ({0: 3, 7: 1}, 64, "0: 3, 7: 1, 62 without flows"),
        ({}, 9, "9 without flows"),
    ],
)
def test_of_many_lanes_those_without_flows_are_counted(
    gateway: Gateway, capsys: Capture, flows: dict[int, int], count: int, says: str
) -> None:
    list_tunnel(gateway, of_office(flows, count))
    assert f"flows of office by lane: {says}\n" in run(capsys, "tunnel", "list")
    assert f"\n  office: {says}\n" in run(capsys, "stats")
