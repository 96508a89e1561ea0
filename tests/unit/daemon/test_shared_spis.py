"""Outbound SAs whose peers have chosen the same SPI: each is an SA of its own, with its number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp_gw.daemon.held import Key, key_of, sa_name
from esp_gw.engine.base import HardExpired
from esp_gw.errors import ControlError
from esp_gw.model import Direction
from tests.support.owner_client import Child
from tests.support.service_rig import Rig, restarted, start_rig

SPI = 0xC0000777
OUT = {"direction": "outbound", "spi": SPI}


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    yield rig
    if rig.engine.is_open:
        await rig.gateway.stop()


def child(number: int) -> Child:
    """A child of a peer of its own, which has chosen SPI."""
    ends = ("192.0.2.1", f"192.0.2.{10 + number}")
    nets = ("10.1.0.0/24", f"10.{100 + number}.0.0/16")
    return Child(f"c{{{number}}}", ends, nets, (0xC0000100 + number, SPI))


async def install(rig: Rig, each: Child, number: int) -> None:
    into, out = each.sas(0)
    policy = each.policy(0, each.name, sa_number=number)
    await rig.ask("InstallChild", sas=[into, out | {"number": number}], policies=[policy])


async def both(rig: Rig) -> tuple[Child, Child]:
    first, second = child(1), child(2)
    await install(rig, first, 0)
    await install(rig, second, 7)
    return first, second


def used(rig: Rig) -> dict[str, tuple[str, ...]]:
    """Return the SAs of IKE's policies in the engine."""
    return {each.name: each.sas for each in rig.engine.policies if each.name.startswith("ike:c")}


def test_a_key_is_that_of_its_name() -> None:
    for key in (Key(Direction.OUTBOUND, 256), Key(Direction.OUTBOUND, SPI, 2**32 - 1)):
        assert key_of(sa_name(key)) == key
    assert key_of("pi-b/out") is None


async def test_each_peer_has_its_own(rig: Rig) -> None:
    first, second = await both(rig)
    names = ("ike:c0000777/out", "ike:c0000777-7/out")
    assert used(rig) == {"ike:c{1}": names[:1], "ike:c{2}": names[1:]}
    keys = [rig.engine.sas[name].keymat.to_bytes().hex() for name in names]
    assert keys == [first.keys[1], second.keys[1]]
    found = (await rig.ask("QuerySas", sas=[OUT, OUT | {"number": 7}]))["sas"]
    assert [(sa["number"], sa["remote"]) for sa in found] == [
        (0, "192.0.2.11"),
        (7, "192.0.2.12"),
    ]
    children = (await rig.call("GetStatus"))["children"]
    assert [each["remote"] for each in children] == ["192.0.2.11", "192.0.2.12"]


async def test_what_becomes_of_one_concerns_no_other(rig: Rig) -> None:
    await both(rig)
    stream = await rig.watch()
    rig.engine.tell(HardExpired("ike:c0000777-7/out"))
    event = await stream.next()
    assert (event["event"], event["spi"], event["number"]) == ("HardExpired", SPI, 7)
    assert used(rig) == {"ike:c{1}": ("ike:c0000777/out",), "ike:c{2}": ()}
    move = {"local": "192.0.2.1", "remote": "192.0.2.99", "encapsulation": "udp"}
    await rig.ask("UpdateSa", **OUT, **move)
    await rig.ask("RemoveSas", sas=[OUT | {"number": 7}])
    assert str(rig.engine.sas["ike:c0000777/out"].remote) == "192.0.2.99"
    assert used(rig)["ike:c{1}"] == ("ike:c0000777/out",)
    await rig.ask("RemoveSas", sas=[OUT])
    assert used(rig) == {"ike:c{1}": (), "ike:c{2}": ()}


async def test_both_are_there_after_a_restart_with_their_own_numbers(rig: Rig) -> None:
    _, second = await both(rig)
    new = await restarted(rig)
    found = await new.ask("OpenSession", owner="ike", take_over=True)
    assert sorted((sa["spi"], sa["number"]) for sa in found["sas"] if sa["spi"] == SPI) == [
        (SPI, 0),
        (SPI, 7),
    ]
    assert used(new) == {"ike:c{1}": ("ike:c0000777/out",), "ike:c{2}": ("ike:c0000777-7/out",)}
    await new.ask("RemoveSas", sas=[OUT])
    last = await restarted(new)
    assert used(last) == {"ike:c{1}": (), "ike:c{2}": ("ike:c0000777-7/out",)}
    assert last.engine.sas["ike:c0000777-7/out"].keymat.to_bytes().hex() == second.keys[1]
    await last.gateway.stop()


async def test_one_peer_has_an_spi_once_and_every_key_one_sa(rig: Rig) -> None:
    first, second = await both(rig)
    again = child(1).sas(0)[1]
    with pytest.raises(
        ControlError, match="there is an outbound SA with the SPI 0xc0000777 already"
    ):
        await rig.ask("InstallChild", sas=[again])
    with pytest.raises(ControlError, match=r"SPI 0xc0000777 to .* is already used"):
        await rig.ask("InstallChild", sas=[again | {"number": 8}])
    same = second.sas(0)[1] | {"number": 9, "remote": "192.0.2.13"}
    with pytest.raises(ControlError, match="has the same key"):
        await rig.ask("InstallChild", sas=[same])
    # Nor do two come together by a move.
    to_first = {"local": "192.0.2.1", "remote": "192.0.2.11", "encapsulation": "udp"}
    with pytest.raises(ControlError, match="is already used"):
        await rig.ask("UpdateSa", **OUT, number=7, **to_first)
    inbound = child(3).sas(0)[0] | {"number": 1}
    with pytest.raises(ControlError, match="number: an inbound SA has an SPI of its own"):
        await rig.ask("InstallChild", sas=[inbound])
    for wrong in (-1, 1 << 32, "one", True):
        with pytest.raises(ControlError, match="number: expected a number"):
            await rig.ask("QuerySas", sas=[OUT | {"number": wrong}])
    with pytest.raises(ControlError, match="with the SPI 0xc0000777, number 3"):
        await rig.ask("PutPolicy", **first.policy(0, "x", sa_number=3))
