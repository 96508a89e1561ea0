"""Policies of the owner that its configuration has: they are in the guard's plan, and no other."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest

from esp_gw.daemon import background, plan_keeping
from esp_gw.desired import Desired
from esp_gw.network.plan_file import NAMES, PlanFile
from tests.support.fakes import until
from tests.support.service_rig import Rig, child, install, restarted, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    yield rig
    if rig.engine.is_open:
        await rig.gateway.stop()


async def planned(rig: Rig) -> list[str]:
    """Write what is due, and return the remote prefixes of IKE in the plan."""
    await rig.gateway.plan_file.write_due()
    return on_disk(rig)


def on_disk(rig: Rig) -> list[str]:
    """Return the remote prefixes of IKE in the plan on disk."""
    stored = PlanFile(rig.ledger.parent).read()
    assert stored is not None
    return [str(pair.remote) for each in stored.standing for pair in each.selectors]


NET = "10.101.0.0/16"


async def test_a_child_comes_into_the_plan_as_a_trap_alone(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    assert await planned(rig) == []
    await rig.ask("RemoveSas", sas=each.refs(0))
    # It holds, and is not the configuration's for that.
    assert await planned(rig) == []
    await rig.ask("PutPolicy", **each.policy(0, each.name, sa=None, trap=False))
    assert await planned(rig) == []
    await rig.ask("PutPolicy", **each.policy(0, each.name, sa=None))
    assert await planned(rig) == [NET]
    await rig.ask("RemovePolicy", id=each.name)
    assert await planned(rig) == []


async def test_a_trap_stays_one_while_a_child_has_it(rig: Rig) -> None:
    each = child()
    await rig.ask("PutPolicy", **each.policy(0, each.name, sa=None))
    policy = each.policy(0, each.name, trap=True)
    await rig.ask("InstallChild", sas=each.sas(0), policies=[policy])
    assert await planned(rig) == [NET]
    new = await restarted(rig)
    found = await new.ask("OpenSession", owner="ike", take_over=True)
    assert [each["trap"] for each in found["policies"]] == [True]
    assert await planned(new) == [NET]
    # The traps that a session leaves are in the plan for as long as they are closed.
    await new.ask("OpenSession", owner="ike")
    assert await planned(new) == [NET]
    await new.ask("FlushOwner")
    assert await planned(new) == []
    await new.gateway.stop()


async def test_what_is_discarded_is_in_the_plan_and_what_passes_is_not(rig: Rig) -> None:
    for action, remote in (("discard", "10.8.0.0/16"), ("bypass", "10.9.0.0/16")):
        selectors = [{"local": "10.1.0.0/24", "remote": remote}]
        await rig.ask("PutPolicy", id=action, action=action, selectors=selectors)
    assert await planned(rig) == ["10.8.0.0/16"]


async def test_a_session_of_the_same_configuration_writes_nothing(rig: Rig) -> None:
    traps = [child(number).policy(0, f"p{number}", sa=None) for number in range(1, 4)]
    for trap in traps:
        await rig.ask("PutPolicy", **trap)
    files = [rig.ledger.parent / name for name in NAMES]
    assert len(await planned(rig)) == 3
    before = [path.stat().st_ino for path in files]
    await rig.ask("OpenSession", owner="ike")
    for number, trap in enumerate(reversed(traps)):
        await rig.ask("PutPolicy", **{**trap, "id": f"q{number}"})
        await rig.gateway.plan_file.write_due()
    assert [path.stat().st_ino for path in files] == before
    assert await planned(rig) == ["10.101.0.0/16", "10.102.0.0/16", "10.103.0.0/16"]


async def test_traps_in_a_row_are_written_at_once_and_by_themselves(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = PlanFile.write

    def counted(plan: PlanFile, desired: Desired) -> None:
        written.append(len(desired.standing))
        write(plan, desired)

    monkeypatch.setattr(PlanFile, "write", counted)
    # No pause ends before they are all there.
    monkeypatch.setattr(plan_keeping, "PAUSE", 3600)
    for number in range(1, 21):
        await rig.ask("PutPolicy", **child(number).policy(0, f"p{number}", sa=None))
    assert written == []
    await rig.gateway.plan_file.write_due()
    assert written == [20] and len(on_disk(rig)) == 20


async def test_a_trap_comes_into_the_plan_by_itself(rig: Rig) -> None:
    await rig.ask("PutPolicy", **child().policy(0, "trap", sa=None))
    await until(lambda: on_disk(rig) == [NET])


async def test_a_plan_that_can_not_be_written_is_one_fault_until_it_can(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full = True
    write = PlanFile.write

    def full(plan: PlanFile, desired: Desired) -> None:
        if is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(plan, desired)

    monkeypatch.setattr(PlanFile, "write", full)
    monkeypatch.setattr(plan_keeping, "PAUSE", 0)
    monkeypatch.setattr(background, "FIRST_PAUSE", 0.01)

    def faults() -> list[str]:
        return [text for text in rig.gateway.warnings if "guard's plan" in text]

    tasks = len(asyncio.all_tasks())
    for number in range(1, 6):
        await rig.ask("PutPolicy", **child(number).policy(0, f"p{number}", sa=None))
    await until(faults)
    assert len(faults()) == 1 and len(asyncio.all_tasks()) <= tasks
    is_full = False
    await until(lambda: not faults() and len(on_disk(rig)) == 5)
