"""Policies of the owner that its configuration has: they are in the guard's plan, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp_gw.network.plan_file import NAMES, PlanFile
from tests.support.service_rig import Rig, child, install, restarted, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    yield rig
    if rig.engine.is_open:
        await rig.gateway.stop()


def planned(rig: Rig) -> list[str]:
    """Return the remote prefixes of IKE in the plan."""
    stored = PlanFile(rig.ledger.parent).read()
    assert stored is not None
    return [str(pair.remote) for each in stored.standing for pair in each.selectors]


NET = "10.101.0.0/16"


async def test_a_child_comes_into_the_plan_as_a_trap_alone(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    assert planned(rig) == []
    await rig.ask("RemoveSas", sas=each.refs(0))
    # It holds, and is not the configuration's for that.
    assert planned(rig) == []
    await rig.ask("PutPolicy", **each.policy(0, each.name, sa=None, trap=False))
    assert planned(rig) == []
    await rig.ask("PutPolicy", **each.policy(0, each.name, sa=None))
    assert planned(rig) == [NET]
    await rig.ask("RemovePolicy", id=each.name)
    assert planned(rig) == []


async def test_a_trap_stays_one_while_a_child_has_it(rig: Rig) -> None:
    each = child()
    await rig.ask("PutPolicy", **each.policy(0, each.name, sa=None))
    policy = each.policy(0, each.name, trap=True)
    await rig.ask("InstallChild", sas=each.sas(0), policies=[policy])
    assert planned(rig) == [NET]
    new = await restarted(rig)
    found = await new.ask("OpenSession", owner="ike", take_over=True)
    assert [each["trap"] for each in found["policies"]] == [True]
    assert planned(new) == [NET]
    # What a session leaves is in the plan for as long as it is closed.
    await new.ask("OpenSession", owner="ike")
    assert planned(new) == [NET]
    await new.ask("FlushOwner")
    assert planned(new) == []
    await new.gateway.stop()


async def test_what_is_discarded_is_in_the_plan_and_what_passes_is_not(rig: Rig) -> None:
    for action, remote in (("discard", "10.8.0.0/16"), ("bypass", "10.9.0.0/16")):
        selectors = [{"local": "10.1.0.0/24", "remote": remote}]
        await rig.ask("PutPolicy", id=action, action=action, selectors=selectors)
    assert planned(rig) == ["10.8.0.0/16"]


async def test_a_session_of_the_same_configuration_writes_nothing(rig: Rig) -> None:
    traps = [child(number).policy(0, f"p{number}", sa=None) for number in range(1, 4)]
    for trap in traps:
        await rig.ask("PutPolicy", **trap)
    files = [rig.ledger.parent / name for name in NAMES]
    before = [path.stat().st_ino for path in files]
    await rig.ask("OpenSession", owner="ike")
    for number, trap in enumerate(reversed(traps)):
        await rig.ask("PutPolicy", **{**trap, "id": f"q{number}"})
    assert [path.stat().st_ino for path in files] == before
    assert planned(rig) == ["10.101.0.0/16", "10.102.0.0/16", "10.103.0.0/16"]
