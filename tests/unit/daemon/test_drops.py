"""Drops explained: by tunnel, by none, the most frequent first, with what was seen."""

from __future__ import annotations

from typing import Any

import pytest

from esp_gw.daemon.drops import explain_drops
from esp_gw.errors import ControlError

TUNNELS: list[dict[str, Any]] = [
    {
        "name": "office",
        "state": "failing",
        "causes": ["another key"],
        "drops": {"auth-failed": 12, "too-big": 3, "dummy": 50, "queue-full": 0},
    },
    {"name": "attic", "state": "up", "causes": [], "drops": {"dummy": 9}},
]
TOTALS = {"auth-failed": 13, "too-big": 3, "dummy": 59, "cleartext-out": 4, "no-policy": 0}
SEEN = {"office": {"auth-failed": "from 192.0.2.2"}, None: {"cleartext-out": "from here"}}


def seen(tunnel: str | None) -> dict[str, str]:
    return SEEN.get(tunnel, {})


def counts(drops: Any) -> list[tuple[str, int, str | None]]:
    return [(each["reason"], each["count"], each["seen"]) for each in drops]


def test_drops_are_those_of_tunnels_and_the_rest_without_keepalives() -> None:
    found: Any = explain_drops(TUNNELS, TOTALS, seen)
    (office,) = found["tunnels"]
    assert (office["tunnel"], office["state"], office["causes"]) == (
        *("office", "failing", ["another key"]),
    )
    assert counts(office["drops"]) == [
        ("auth-failed", 12, "from 192.0.2.2"),
        ("too-big", 3, None),
    ]
    assert counts(found["others"]) == [
        ("cleartext-out", 4, "from here"),
        ("auth-failed", 1, None),
    ]
    assert office["drops"][0]["packets"] == "have a wrong ICV"
    assert office["drops"][0]["cause"]
    assert office["drops"][0]["todo"]


def test_of_one_tunnel_only_its_own_are_told() -> None:
    found: Any = explain_drops(TUNNELS, TOTALS, seen, "attic")
    assert found == {"tunnels": [], "others": []}
    found = explain_drops(TUNNELS, TOTALS, seen, "office")
    assert [each["tunnel"] for each in found["tunnels"]] == ["office"]
    assert found["others"] == []


@pytest.mark.parametrize("name", ["none", 5, ["office"]])
def test_a_tunnel_that_is_not_there_is_refused(name: object) -> None:
    with pytest.raises(ControlError, match="there is no tunnel") as refused:
        explain_drops(TUNNELS, TOTALS, seen, name)
    assert refused.value.code == "NotFound"


def test_a_reason_that_nobody_knows_is_told_all_the_same() -> None:
    found: Any = explain_drops([], {"new-reason": 1}, seen)
    assert counts(found["others"]) == [("new-reason", 1, None)]
