"""The end of what a session of the owner has left closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp_gw.daemon import closed_time
from tests.support.service_rig import FakeLink, Rig, child, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(closed_time, "INTERVAL", 0.0)
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    await rig.ask("PutPolicy", **child().policy(0, "trap", sa=None))
    yield rig
    await rig.gateway.stop()


async def new_session(rig: Rig) -> list[str]:
    """Begin one; return what it finds closed."""
    rig.owner.ended(rig.link)
    rig.link = FakeLink()
    await rig.ask("OpenSession", owner="ike")
    return left(rig)


def left(rig: Rig) -> list[str]:
    names = [policy.name for policy in rig.engine.policies]
    return [name for name in names if name.startswith("ike-left:")]


async def told(rig: Rig) -> list[str]:
    """Return the warnings that say that it is closed."""
    warnings = (await rig.call("GetStatus"))["warnings"]
    start = "nothing goes to 10.101.0.0/16: an IKE daemon protected it"
    return [warning for warning in warnings if warning.startswith(start)]


async def test_it_is_open_once_the_time_of_a_session_is_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await new_session(rig) == ["ike-left:1"]
    assert rig.engine.policies[-1].sas == ()
    await rig.owner.closed_time.step()
    assert left(rig) == ["ike-left:1"]
    monkeypatch.setattr(closed_time, "CLOSED_TIME", 0.0)
    assert await new_session(rig) == ["ike-left:1"]
    assert len(await told(rig)) == 1
    await rig.owner.closed_time.step()
    assert left(rig) == []
    assert await told(rig) == []


async def test_it_stays_closed_without_a_session(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_time, "CLOSED_TIME", 0.0)
    await new_session(rig)
    rig.owner.ended(rig.link)
    await rig.owner.closed_time.step()
    assert left(rig) == ["ike-left:1"]
    # A session that takes over has its time, too.
    rig.link = FakeLink()
    found = await rig.ask("OpenSession", owner="ike", take_over=True)
    assert found["policies"] == []
    await rig.owner.closed_time.step()
    assert left(rig) == []


async def test_a_policy_of_the_new_session_takes_its_place_and_opens_in_order(rig: Rig) -> None:
    await new_session(rig)
    await rig.ask("PutPolicy", **child().policy(0, "again", sa=None))
    assert [policy.name for policy in rig.engine.policies] == ["pi-b", "ike:again"]
    await rig.ask("RemovePolicy", id="again")
    assert [policy.name for policy in rig.engine.policies] == ["pi-b"]


async def test_it_is_in_no_record_and_no_answer(rig: Rig) -> None:
    await new_session(rig)
    assert await rig.ephemeral.records("policy") == []
    found = await rig.ask("OpenSession", owner="ike", take_over=True)
    assert found["policies"] == []
