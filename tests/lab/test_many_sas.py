"""Hundreds of SAs: each tunnel uses its own, and after a kill the ledger has every lease."""

from __future__ import annotations

from collections import Counter
from typing import Any

from esp_gw.demo.pair import GatewayPair
from tests.support.labtools import (
    MakePair,
    StartCapture,
    edit,
    esp_packets,
    ping,
    sas,
    write_key,
)

TUNNELS = 150
WATCHED = (0, TUNNELS // 2, TUNNELS - 1)


def test_each_of_hundreds_of_sas_carries_its_own_traffic_and_is_in_the_ledger_after_a_kill(
    make_pair: MakePair, capture: StartCapture
) -> None:
    pair = make_pair()
    _add_tunnels(pair)
    pair.start()
    wire = capture(pair.a.namespace)
    for number in WATCHED:
        assert ping(pair.a.namespace, _inner(number), count=3) == 3
    at_work = sas(pair.a)
    assert len(at_work) == 2 * TUNNELS
    carried = {name: sa["packets"] for name, sa in at_work.items() if sa["packets"]}
    ways = [f"{_name(number)}/{way}" for number in WATCHED for way in ("in", "out")]
    assert carried == dict.fromkeys(ways, 3)

    pair.a.kill()
    show = ("ledger", "show", "--state-dir", str(pair.a.folder))
    keys = pair.a.ask(*show)["keys"]
    outbound = [sa["lease_end"] for sa in at_work.values() if sa["direction"] == "outbound"]
    assert sorted(key["seq"] for key in keys if key["role"] == "outbound") == sorted(outbound)
    assert len(keys) == 2 * TUNNELS

    pair.a.start()
    for number in WATCHED:
        assert ping(pair.a.namespace, _inner(number), count=3) == 3
    seen = Counter((packet.spi, packet.iv) for packet in esp_packets(wire.stop()))
    assert len({spi for spi, _ in seen}) == 2 * len(WATCHED)
    assert set(seen.values()) == {1}


def _name(number: int) -> str:
    return f"site-{number}" if number else "pi-b"


def _inner(number: int) -> str:
    return f"10.100.{number}.1" if number else "10.2.0.1"


def _add_tunnels(pair: GatewayPair) -> None:
    """Add the other tunnels to both configurations of the pair, each with its own keys."""
    pair.b.namespace.ip("route", "add", "local", "10.100.0.0/16", "dev", "lo")
    keys = [write_key(pair.a.config.parent / "keys" / f"{n}.key") for n in range(2 * TUNNELS)]

    def add(config: dict[str, Any], side: int) -> None:
        for number in range(1, TUNNELS):
            spis = [0x10000 + number, 0x20000 + number]
            ways = [
                {"spi": spi, "key": {"file": str(keys[2 * number + way])}}
                for way, spi in enumerate(spis)
            ]
            nets = ["10.1.0.0/24", f"10.100.{number}.0/24"]
            outer = [str(address) for address in pair.plan.outer]
            config["tunnels"][_name(number)] = {
                "local": outer[side],
                "remote": outer[1 - side],
                "local_ts": nets[side],
                "remote_ts": nets[1 - side],
                "outbound": ways[side],
                "inbound": ways[1 - side],
            }

    for side, gateway in enumerate((pair.a, pair.b)):
        edit(gateway, lambda config, side=side: add(config, side))  # type: ignore[misc]
