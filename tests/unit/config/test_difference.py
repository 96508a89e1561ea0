"""Differences of two configurations, in the words of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from esp_gw.config.difference import differences
from esp_gw.config.load import load_config

KEYS = {"a": "11" * 36, "b": "22" * 36, "c": "33" * 36}


def tunnel(number: int, **fields: object) -> dict[str, Any]:
    return {
        "local": "192.0.2.1",
        "remote": f"198.51.100.{number}",
        "local_ts": ["10.1.0.0/24"],
        "remote_ts": [f"10.{number}.0.0/24"],
        "outbound": {"spi": 0x1000 + number, "key": {"inline": KEYS["a"]}},
        "inbound": {"spi": 0x2000 + number, "key": {"inline": KEYS["b"]}},
        **fields,
    }


OTHER_KEYS = {
    way: {"spi": 0x9000 + number, "key": {"inline": f"{number}4" * 36}}
    for number, way in enumerate(("outbound", "inbound"), 1)
}


def document() -> dict[str, Any]:
    return {
        "gateway": {"allow_inline_keys": True, "port": 4500},
        "policies": [{"action": "bypass", "remote_ts": ["10.9.0.0/24"]}],
        "tunnels": {"office": tunnel(2)},
    }


@pytest.fixture
def differ(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], list[str]]:
    """Return the differences that a change of the document makes."""

    def of(change: Callable[[dict[str, Any]], object]) -> list[str]:
        found = []
        for step in (lambda _: None, change):
            content = document()
            step(content)
            path = tmp_path / "gateway.yaml"
            path.write_text(yaml.safe_dump(content))
            found.append(load_config(path))
        return differences(*found)

    return of


def office(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["tunnels"]["office"].update(fields)


CASES: list[tuple[Callable[[dict[str, Any]], object], list[str]]] = [
    (lambda _: None, []),
    (
        office(remote_ts=["10.2.0.0/24", "10.3.0.0/24"]),
        ["remote_ts of office: + 10.3.0.0/24"],
    ),
    (
        office(local_ts=["10.4.0.0/24"]),
        ["local_ts of office: - 10.1.0.0/24, + 10.4.0.0/24"],
    ),
    (office(local="auto"), ["local of office: 192.0.2.1 -> auto"]),
    (office(remote="pi.example.org"), ["remote of office: 198.51.100.2 -> pi.example.org"]),
    (office(remote="any"), ["remote of office: 198.51.100.2 -> any"]),
    (office(remote_port=4501), ["remote_port of office: 4500 -> 4501"]),
    (
        office(liveness=10, keepalive=0),
        ["keepalive of office: 20 -> 0", "liveness of office: 0 -> 10"],
    ),
    (office(esn=False), ["esn of office: true -> false"]),
    (office(replay_window=64), ["replay_window of office: 4096 -> 64"]),
    (office(protocol="tcp"), ["protocol and ports of office: any any any -> 6 any any"]),
    (
        office(outbound={"spi": 0x3000, "key": {"inline": KEYS["c"]}}),
        ["outbound.spi of office: 0x1002 -> 0x3000", "outbound.key of office: another one"],
    ),
    (
        lambda content: content["tunnels"].update(home=tunnel(7, **OTHER_KEYS)),
        ["tunnel home: added, 192.0.2.1 to 198.51.100.7, 10.1.0.0/24 - 10.7.0.0/24"],
    ),
    (lambda content: content.update(tunnels={}), ["tunnel office: removed"]),
    (
        lambda content: content["gateway"].update(port=4501, mtu=1400, fwmark=0x77),
        [
            "gateway.port: 4500 -> 4501 (needs a restart)",
            "gateway.fwmark: 0xe5b -> 0x77 (needs a restart)",
            "gateway.mtu: none -> 1400",
        ],
    ),
    (
        lambda content: content["gateway"].update(offload={"tso": False}, address=["10.1.0.1"]),
        [
            "gateway.offload.tso: true -> false (needs a restart)",
            "gateway.address: none -> 10.1.0.1",
        ],
    ),
    (
        lambda content: content["policies"].insert(
            0, {"action": "discard", "remote_ts": ["10.8.0.0/24"], "protocol": "udp"}
        ),
        ["policies: + discard 0.0.0.0/0 to 10.8.0.0/24, protocol 17"],
    ),
    (
        lambda content: content.update(policies=[]),
        ["policies: - bypass 0.0.0.0/0 to 10.9.0.0/24"],
    ),
]


@pytest.mark.parametrize(("change", "says"), CASES, ids=[" ".join(says)[:40] for _, says in CASES])
def test_each_change_is_a_line_in_the_words_of_the_file(
    differ: Callable[[Callable[[dict[str, Any]], object]], list[str]],
    change: Callable[[dict[str, Any]], object],
    says: list[str],
) -> None:
    assert differ(change) == says


def test_no_key_is_in_a_difference(
    differ: Callable[[Callable[[dict[str, Any]], object]], list[str]],
) -> None:
    lines = differ(office(inbound={"spi": 0x2002, "key": {"inline": KEYS["c"]}}))
    assert lines == ["inbound.key of office: another one"]
    assert not any(key in line for key in KEYS.values() for line in lines)
