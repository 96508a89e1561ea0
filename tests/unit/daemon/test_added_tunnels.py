"""Tunnels of the CLI: added, changed and removed whole, or not at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from esp_gw.errors import ControlError
from esp_gw.model import Origin
from tests.support.requests import policy, sa
from tests.support.service_rig import Rig, restarted, start_rig

KEYS = {"outbound": f"{1:040x}", "inbound": f"{2:040x}"}


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return await start_rig(tmp_path, monkeypatch)


def office(**fields: object) -> dict[str, object]:
    return {
        "name": "office",
        "local": "192.0.2.1",
        "remote": "192.0.2.7",
        "local_ts": ["10.1.0.0/24"],
        "remote_ts": ["10.7.0.0/24"],
        "suite": "aes128gcm16",
        "outbound": {"spi": 0x8001, "key": KEYS["outbound"]},
        "inbound": {"spi": 0x8002, "key": KEYS["inbound"]},
        **fields,
    }


async def listed(rig: Rig) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in (await rig.call("ListTunnels"))["tunnels"]}


def installed(rig: Rig) -> dict[str, Any]:
    return {name: sa for name, sa in rig.engine.sas.items() if name.startswith("office")}


async def test_a_tunnel_is_a_pair_and_a_policy_of_its_name(rig: Rig) -> None:
    assert await rig.call("AddTunnel", **office(liveness=5)) == {}
    assert set(installed(rig)) == {"office/out", "office/in"}
    assert rig.engine.policies[-1].name == "office"
    assert rig.engine.policies[-1].sas == ("office/out",)
    assert rig.engine.policies[-1].origin is Origin.CLI
    assert installed(rig)["office/out"].liveness == 5
    await rig.health.look(asyncio.get_running_loop().time())
    found = (await listed(rig))["office"]
    assert (set(found["sas"]), found["origin"]) == ({"office/out", "office/in"}, "cli")
    assert found["state"] == "quiet"
    again = await restarted(rig)
    assert set(installed(again)) == {"office/out", "office/in"}
    assert "office" in await listed(again)


async def test_a_change_keeps_keys_and_is_kept_over_a_restart(rig: Rig) -> None:
    await rig.call("AddTunnel", **office(remote_port=4501))
    before = installed(rig)
    prefixes = ["10.7.0.0/24", "10.8.0.0/16"]
    assert await rig.call("SetTunnel", name="office", remote="192.0.2.9", remote_ts=prefixes) == {}
    for running in (rig, await restarted(rig)):
        for name, found in installed(running).items():
            assert str(found.remote) == "192.0.2.9"
            assert found.remote_port == 4501
            assert sorted({str(each.remote) for each in found.selectors}) == prefixes
            assert (found.keymat, found.spi) == (before[name].keymat, before[name].spi)
        policy = running.engine.policies[-1]
        assert sorted({str(each.remote) for each in policy.selectors}) == prefixes


async def test_a_tunnel_is_removed_whole(rig: Rig) -> None:
    await rig.call("AddTunnel", **office())
    assert await rig.call("DeleteTunnel", name="office") == {}
    assert installed(rig) == {}
    assert [each.name for each in rig.engine.policies] == ["pi-b"]
    assert list(await listed(await restarted(rig))) == ["pi-b"]


async def test_its_place_in_the_spd_can_be_chosen(rig: Rig) -> None:
    await rig.call("AddPolicy", **policy(1))
    await rig.call("AddTunnel", **office(before="p1"))
    assert [each.name for each in rig.engine.policies] == ["pi-b", "office", "p1"]
    await rig.call("AddPolicy", **policy(2, before="office"))
    with pytest.raises(ControlError, match="the policy p2 is placed before office"):
        await rig.call("DeleteTunnel", name="office")
    assert set(installed(rig)) == {"office/out", "office/in"}


async def refused(rig: Rig, method: str, **parameters: object) -> ControlError:
    """The error of a request that is refused, and has changed nothing."""
    before = dict(rig.engine.sas), rig.engine.policies
    with pytest.raises(ControlError) as error:
        await rig.call(method, **parameters)
    assert (dict(rig.engine.sas), rig.engine.policies) == before
    for key in KEYS.values():
        assert key not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("fields", "code", "says"),
    [
        ({"name": ""}, "InvalidParameter", "name: expected"),
        ({"name": "a b"}, "InvalidParameter", "expected a name"),
        ({"mode": "transport"}, "InvalidParameter", "tunnel mode"),
        ({"outbound": None}, "InvalidParameter", "outbound: expected spi and key"),
        ({"inbound": {"spi": 0x8002}}, "InvalidParameter", "inbound: expected spi and key"),
        ({"inbound": {"spi": 5, "key": KEYS["inbound"]}}, "InvalidParameter", "spi"),
        ({"inbound": {"spi": 0x8002, "key": "00"}}, "InvalidParameter", "key"),
        ({"remote_ts": None}, "InvalidParameter", "remote_ts"),
        ({"remote": "192.0.2.1"}, "InvalidParameter", "is the same address as local"),
        ({"pair": "pi-b/in"}, "InvalidParameter", "pair: belongs to one SA"),
        ({"key": "00" * 20}, "InvalidParameter", "key: belongs to one SA"),
        ({"colour": "red"}, "InvalidParameter", "colour"),
        ({"before": "none"}, "NotFound", "there is no policy none"),
        ({"name": "pi-b"}, "AlreadyExists", "pi-b"),
        # One key in both directions.
        ({"inbound": {"spi": 0x8002, "key": KEYS["outbound"]}}, "Refused", "key"),
    ],
)
async def test_a_wrong_tunnel_is_refused_whole(
    rig: Rig, fields: dict[str, object], code: str, says: str
) -> None:
    error = await refused(rig, "AddTunnel", **office(**fields))
    assert error.code == code
    assert says in str(error)


async def test_a_name_that_an_sa_a_policy_or_a_tunnel_has_is_refused(rig: Rig) -> None:
    await rig.call("AddTunnel", **office())
    keys = {"outbound": {"spi": 0x9001, "key": f"{3:040x}"}}
    keys["inbound"] = {"spi": 0x9002, "key": f"{4:040x}"}
    assert (await refused(rig, "AddTunnel", **office(**keys))).code == "AlreadyExists"
    await rig.call("AddSa", **sa(1, key=f"{5:040x}"))
    await rig.call("AddPolicy", **policy(2))
    for name in ("n1", "p2"):
        error = await refused(rig, "AddTunnel", **office(name=name, **keys))
        assert error.code == "AlreadyExists"


async def test_what_the_cli_did_not_add_is_not_touched(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    for method, more, todo in (
        ("SetTunnel", {"liveness": 5}, "change it in"),
        ("DeleteTunnel", {}, "remove it from"),
    ):
        text = str(await refused(rig, method, name="pi-b", **more))
        assert "comes from the configuration" in text
        assert todo in text
        for name in ("none", "n1"):
            error = await refused(rig, method, name=name, **more)
            assert error.code == "NotFound"
            assert "'esp-gw tunnel list' shows the existing ones" in str(error)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": "00" * 20}, "key: can't be set"),
        ({"spi": 0x9000}, "spi: can't be set"),
        ({"suite": "aes256gcm16"}, "suite: can't be set"),
        ({"remote": "192.0.2.1"}, "is the same address as local"),
        ({"remote": "2001:db8::2"}, "IPv6"),
        ({"remote_ts": []}, "remote_ts"),
        ({"liveness": -1}, "liveness"),
    ],
)
async def test_a_wrong_change_is_refused(rig: Rig, changes: dict[str, object], says: str) -> None:
    await rig.call("AddTunnel", **office())
    assert says in str(await refused(rig, "SetTunnel", name="office", **changes))


async def test_a_policy_of_another_name_keeps_its_sa(rig: Rig) -> None:
    await rig.call("AddTunnel", **office())
    more = policy(3, action="protect", sa="office/out", local_ts=["10.1.0.0/24"])
    await rig.call("AddPolicy", **more | {"remote_ts": ["10.7.0.5/32"], "before": "office"})
    error = await refused(rig, "DeleteTunnel", name="office")
    assert "esp-gw policy delete p3" in str(error)
