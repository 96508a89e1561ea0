"""The list of tunnels has what the CLI added, too."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.requests import sa
from tests.support.service_rig import Rig, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return await start_rig(tmp_path, monkeypatch)


async def listed(rig: Rig) -> dict[str, dict[str, Any]]:
    tunnels = (await rig.call("ListTunnels"))["tunnels"]
    return {entry["name"]: entry for entry in tunnels}


async def test_a_pair_that_the_cli_added_is_listed_as_one(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1, remote_port=4501))
    await rig.call("AddSa", **sa(2, direction="inbound", remote_port=4501, pair="n1"))
    await rig.health.look(asyncio.get_running_loop().time())
    rig.engine.used = {"n1": 20, "n2": 300, "pi-b/in": 7}
    await rig.health.look(asyncio.get_running_loop().time())
    tunnels = await listed(rig)
    assert {name: entry["origin"] for name, entry in tunnels.items()} == {
        "pi-b": "config",
        "n1": "cli",
    }
    assert tunnels["n1"].keys() == tunnels["pi-b"].keys()
    added = tunnels["n1"]
    assert (added["sas"], added["state"]) == (["n1", "n2"], "up")
    assert (added["remote"], added["remote_port"]) == ("192.0.2.2", 4501)
    assert (added["local_ts"], added["remote_ts"]) == (["10.1.0.0/24"], ["10.101.0.0/16"])
    assert (added["packets_out"], added["packets_in"]) == (20, 300)
    await rig.call("FlushSas")
    assert list(await listed(rig)) == ["pi-b"]


async def test_an_sa_without_a_pair_is_listed_alone(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    await rig.call("AddSa", **sa(2, direction="inbound", remote="any"))
    tunnels = await listed(rig)
    assert [tunnels[name]["sas"] for name in ("n1", "n2")] == [["n1"], ["n2"]]
    assert (tunnels["n2"]["remote"], tunnels["n2"]["state"]) == ("any", "quiet")
