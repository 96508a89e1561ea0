"""How the gateway uses the machine: which of its SAs the kernel takes for one flow."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from esp_gw.cli import outgoing
from esp_gw.cli.options import Daemon
from esp_gw.model import Direction, Encapsulation, Sa
from tests.support.builders import desired, make_sa

HERE, THERE, ELSEWHERE = (ip_address(f"192.0.2.{number}") for number in (1, 2, 3))
ANY = ip_address("0.0.0.0")


@pytest.fixture(autouse=True)
def _no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "outgoing_cards", lambda *_: [])


def pair(number: int, **fields: Any) -> list[Sa]:
    """Return the two SAs of a tunnel."""
    ways = (Direction.OUTBOUND, Direction.INBOUND)
    both = [make_sa(f"t{number}/{way}", way, 0x1000 * number + n) for n, way in enumerate(ways, 1)]
    plain = {"local": HERE, "remote": THERE, "encapsulation": Encapsulation.UDP}
    return [replace(sa, tunnel=f"t{number}", **plain | fields) for sa in both]


@pytest.mark.parametrize(
    ("second", "shares"),
    [
        ({}, True),
        ({"remote": ELSEWHERE}, False),
        ({"local": ELSEWHERE}, False),
        ({"encapsulation": Encapsulation.NONE}, False),
    ],
)
def test_tunnels_between_the_same_two_addresses_share_a_flow(
    second: dict[str, Any], shares: bool
) -> None:
    sas = (*pair(1), *pair(2, **second))
    assert outgoing.around(desired(sas), Path("/none")).use.shares_flows is shares


@pytest.mark.parametrize("name", [None, "example"])
def test_peers_that_may_be_anywhere_share_a_flow_if_they_have_one_name(name: str | None) -> None:
    fields = {"remote": ANY, "remote_name": name}
    found = outgoing.around(desired((*pair(1, **fields), *pair(2, **fields))), Path("/none"))
    assert found.use.shares_flows is (name is not None)


def tunnel(name: str, sas: int, **fields: object) -> dict[str, object]:
    plain = {"local": str(HERE), "remote": str(THERE), "encapsulation": "udp"}
    return {"name": name, "sas": [f"{name}/{n}" for n in range(sas)], **plain, **fields}


@pytest.mark.parametrize(
    ("tunnels", "shares"),
    [
        ([tunnel("a", 2)], False),
        ([tunnel("a", 8)], True),
        ([tunnel("a", 8, encapsulation="none")], False),
        ([tunnel("a", 2), tunnel("b", 2)], True),
        ([tunnel("a", 2), tunnel("b", 2, remote=str(ELSEWHERE))], False),
        ([tunnel("a", 2), tunnel("b", 2, local=str(ELSEWHERE))], False),
        ([tunnel("a", 2, remote="any"), tunnel("b", 2, remote="any"), tunnel("c", 2)], False),
    ],
)
def test_without_a_configuration_the_running_gateway_tells(
    tmp_path: Path, tunnels: list[dict[str, object]], shares: bool
) -> None:
    class Running(Daemon):
        def call(self, method: str, **_: object) -> dict[str, Any]:
            assert method == "ListTunnels"
            return {"tunnels": tunnels}

    found = outgoing.surroundings(tmp_path / "none", Running(), tmp_path)
    assert found.use.shares_flows is shares
