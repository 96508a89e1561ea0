"""An owner's SAs and policies at a start that can't have all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esp_gw.daemon.protection import Protection
from esp_gw.errors import LedgerError
from esp_gw.ledger.ephemeral import EphemeralLedger, Records
from esp_gw.model import Action, Policy
from tests.support.builders import protect, selector
from tests.support.service_rig import Rig, child, install, restarted, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    yield rig
    if rig.engine.is_open:
        await rig.gateway.stop()


async def test_a_bypass_that_the_configuration_closes_now_is_gone(rig: Rig) -> None:
    tunnels: dict[str, object] = {}
    rig.edit(lambda document: tunnels.update(document.pop("tunnels")))
    await rig.call("Reload")
    hole = [{"local": "0.0.0.0/0", "remote": "10.2.0.0/28"}]
    await rig.ask("PutPolicy", id="lan", action="bypass", selectors=hole)
    await rig.ask("PutPolicy", **child().policy(0, "trap", sa=None))
    rig.edit(lambda document: document.update(tunnels=tunnels))
    new = await restarted(rig)
    found = await new.ask("OpenSession", owner="ike", take_over=True)
    assert [each.name for each in new.engine.policies] == ["pi-b", "ike:trap"]
    assert [policy["id"] for policy in found["policies"]] == ["trap"]
    assert [name for name, _ in await new.ephemeral.records("policy")] == ["trap"]
    # Later requests of the owner are not refused for its sake.
    await install(new, child(2))
    await new.gateway.stop()


async def test_a_bypass_opens_nothing_that_the_guard_closes(rig: Rig) -> None:
    desired = rig.service.sources.configured
    closed = protect("t", "t/out", selector("10.2.0.0/24", "10.2.0.0/24"))
    hole = Policy("ike:lan", Action.BYPASS, (selector("10.2.0.0/28", "10.2.0.0/28"),))
    stays = Policy("ike:x", Action.BYPASS, (selector("10.3.0.0/28", "10.3.0.0/28"),))
    joined = Protection(desired, None).plus((closed,)).plus((hole, stays))
    assert joined.desired.policies[-2:] == (closed, stays)


async def test_an_sa_without_a_write_at_the_start_is_removed_with_its_record_and_key(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = child()
    await install(rig, each)
    with monkeypatch.context() as full:
        for method in ("begin", "write"):
            full.setattr(EphemeralLedger, method, _refuse)
        new = await restarted(rig)
        found = await new.ask("OpenSession", owner="ike", take_over=True)
    assert {(sa["direction"], sa["spi"]) for sa in found["sas"]} == {
        (ref["direction"], ref["spi"]) for ref in each.refs(0)
    }
    assert new.names() == set()
    await new.ask("OpenSession", owner="ike")
    assert await new.ephemeral.records("sa") == []
    last = await restarted(new)
    assert last.names() == set()
    await last.ask("OpenSession", owner="ike")
    with pytest.raises(LedgerError, match="removed before"):
        await install(last, each)
    await last.gateway.stop()


async def test_a_record_that_cannot_be_read_leaves_no_key_behind(rig: Rig) -> None:
    first, second = child(1), child(2)
    await install(rig, first)
    await install(rig, second)
    (name, text), *_ = await rig.ephemeral.records("sa")
    await rig.ephemeral.write(Records({("sa", name): text.replace('"mode"', '"mood"')}))
    new = await restarted(rig)
    assert len(await new.ephemeral.records("sa")) == 3
    assert len(new.names()) == 3
    content = (rig.ledger.parent / "ike" / "held.db").read_bytes()
    assert [key.encode() in content for key in first.keys] == [False, True]
    await new.gateway.stop()


async def test_no_gateway_starts_beside_records_that_cannot_be_opened(rig: Rig) -> None:
    await install(rig, child())
    await rig.gateway.stop()
    path = rig.ledger.parent / "ike" / "held.db"
    other = EphemeralLedger.open(path)
    with pytest.raises(LedgerError, match="another esp-gw uses this ledger"):
        await Rig(rig.ledger.parent).start()
    other.close()
    new = Rig(rig.ledger.parent)
    await new.start()
    assert len(new.names()) == 2
    await new.gateway.stop()


async def test_an_empty_file_of_records_needs_no_space_at_a_start(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.gateway.stop()
    path = rig.ledger.parent / "ike" / "held.db"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    with monkeypatch.context() as full:
        full.setattr(EphemeralLedger, "open", _refuse)
        new = Rig(rig.ledger.parent)
        await new.start()
    await new.gateway.stop()


def _refuse(*_: object) -> None:
    raise LedgerError("database or disk is full")


@pytest.mark.parametrize("end", ["local_original", "remote_original"])
async def test_an_sa_with_original_addresses_stays_in_udp_and_readable(rig: Rig, end: str) -> None:
    each = child()
    ends = (f"{each.outer[0]}/32", f"{each.outer[1]}/32")
    fields: dict[str, object] = {
        "mode": "transport",
        "selectors": [{"local": ends[0], "remote": ends[1]}],
        end: "10.9.9.9",
    }
    await rig.ask("InstallChild", sas=each.sas(0, **fields))
    change = {"local": each.outer[0], "remote": each.outer[1], "encapsulation": "none"}
    with pytest.raises(Exception, match="needs encapsulation: udp"):
        await rig.ask("UpdateSa", **each.refs(0)[0], **change)
    assert len(rig.names()) == 2
    assert len((await restarted(rig)).names()) == 2
