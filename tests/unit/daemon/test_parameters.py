"""The pair of an SA to add has to be one: there, of the other direction, with the same peer."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.errors import ControlError
from tests.support.requests import sa
from tests.support.service_rig import Rig, restarted, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return await start_rig(tmp_path, monkeypatch)


async def refusal(rig: Rig, *wanted: dict[str, object]) -> str:
    """Add SAs singly, or several in one import, and return the refusal; none is added."""
    before = rig.names()
    with pytest.raises(ControlError) as refused:
        if len(wanted) == 1:
            await rig.call("AddSa", **wanted[0])
        else:
            await rig.call("ImportSas", sas=list(wanted))
    assert refused.value.code == "Refused"
    assert rig.names() == before
    return str(refused.value)


async def test_the_sa_that_is_added_last_names_the_other(rig: Rig) -> None:
    assert "there is no SA nope" in await refusal(rig, sa(1, pair="nope"))
    await rig.call("AddSa", **sa(1))
    await rig.call("AddSa", **sa(2, direction="inbound", pair="n1"))
    again = await restarted(rig)
    assert again.names() == {"n1", "n2"}


async def test_both_of_an_import_may_name_each_other(rig: Rig) -> None:
    both = sa(1, pair="n2"), sa(2, direction="inbound", pair="n1")
    await rig.call("ImportSas", sas=list(both))
    assert rig.names() == {"n1", "n2"}
    assert "there is no SA n9" in await refusal(rig, sa(3, pair="n9"), sa(4))


async def test_a_pair_has_an_sa_of_each_direction_and_one_peer(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    assert "n1 can't be the pair of n2: it is outbound like n2" in await refusal(
        rig, sa(2, pair="n1")
    )
    elsewhere = sa(2, direction="inbound", remote="192.0.2.3", pair="n1")
    assert "another peer than n2: 192.0.2.2, not 192.0.2.3" in await refusal(rig, elsewhere)


async def test_an_sa_has_one_pair(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    await rig.call("AddSa", **sa(2, direction="inbound", pair="n1"))
    third = sa(3, direction="inbound", pair="n1")
    assert "n1 can't be the pair of n3: it belongs to n2 already" in await refusal(rig, third)
    assert "it belongs to n1 already" in await refusal(rig, sa(3, pair="n2"))
    assert "it belongs to pi-b already" in await refusal(rig, sa(3, pair="pi-b/in"))
    await rig.call("DeleteSa", name="n2")
    await rig.call("AddSa", **third)


async def test_a_pair_that_is_deleted_frees_the_sa_that_names_it(rig: Rig) -> None:
    await rig.call("AddSa", **sa(1))
    await rig.call("AddSa", **sa(2, direction="inbound", pair="n1"))
    await rig.call("DeleteSa", name="n1")
    await rig.call("AddSa", **sa(3, pair="n2"))
    again = await restarted(rig)
    assert again.names() == {"n2", "n3"}
