"""The owner's session of a gateway with a fake data plane: requests, and what becomes of them."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from esp_gw.control.server import Caller
from esp_gw.daemon import owner_events
from esp_gw.engine.base import HardExpired, PeerAddressChanged, Refused, SoftExpired
from esp_gw.errors import ControlError, EspGwError
from esp_gw.model import DropReason
from tests.support.service_rig import ENDS, FakeLink, Rig, child, install, restarted, start_rig


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    rig = await start_rig(tmp_path, monkeypatch)
    await rig.ask("OpenSession", owner="ike")
    yield rig
    if rig.engine.is_open:
        await rig.gateway.stop()


async def again(rig: Rig) -> Rig:
    """Start anew after a stop, with a session that takes over."""
    new = await restarted(rig)
    new.found = await new.ask("OpenSession", owner="ike", take_over=True)  # type: ignore[attr-defined]
    return new


async def test_only_the_session_may_ask_and_only_root_may_open_it(rig: Rig) -> None:
    for method in ("InstallChild", "QuerySas", "FlushOwner", "ReserveSpi", "RemoveSas"):
        with pytest.raises(ControlError, match="not the owner's session"):
            await rig.call(method, Caller(1, 0, 0, FakeLink()))
        with pytest.raises(ControlError, match="not the owner's session"):
            await rig.call(method)
    member = Caller(1, 4711, 0, FakeLink())
    for method in ("OpenSession", "Watch", "InstallChild"):
        with pytest.raises(ControlError) as refusal:
            await rig.call(method, member, owner="ike")
        assert refusal.value.code == "PermissionDenied"


async def test_a_newer_session_ends_the_older_one(rig: Rig) -> None:
    former = rig.link
    assert former.is_kept
    await install(rig, child())
    rig.link = FakeLink(pid=2)
    found = await rig.ask("OpenSession", owner="ike", take_over=True)
    assert len(found["sas"]) == 2
    assert former.ended
    assert not rig.link.ended
    with pytest.raises(ControlError, match="not the owner's session"):
        await rig.call("QuerySas", Caller(1, 0, 0, former))
    # The end of the former one is no end of the new one.
    rig.owner.ended(former)
    assert len((await rig.ask("QuerySas"))["sas"]) == 2


async def test_a_child_is_installed_whole_or_not_at_all(rig: Rig) -> None:
    each = child()
    wrong = [*each.sas(0), *each.sas(0)[:1]]
    with pytest.raises(ControlError, match="already"):
        await rig.ask("InstallChild", sas=wrong, policies=[each.policy(0)])
    with pytest.raises(ControlError, match="no outbound SA"):
        await rig.ask("InstallChild", sas=each.sas(0)[:1], policies=[each.policy(0)])
    assert rig.names() == set()
    await install(rig, each)
    assert len(rig.names()) == 2
    # One more refusal, by the kernel, in the middle of it.
    rig.kernel.fail_at(1)
    before = rig.gateway.policies
    with pytest.raises(EspGwError):
        await install(rig, child(2))
    assert len(rig.names()) == 2
    assert rig.gateway.policies == before
    assert len(await rig.ephemeral.records("sa")) == 2


async def test_a_policy_changes_its_sa_in_one_step_and_holds_without_one(rig: Rig) -> None:
    first, second = child(1), child(2)
    second.inner = first.inner
    await install(rig, first)
    await rig.ask(
        "InstallChild", sas=second.sas(0), policies=[second.policy(0, first.name, priority=5)]
    )
    (policy,) = [each for each in rig.engine.policies if each.name.startswith("ike:")]
    assert policy.sas == (f"ike:{second.spis[1]:08x}/out",)
    await rig.ask("RemoveSas", sas=first.refs(0))
    await rig.ask("RemoveSas", sas=second.refs(0))
    (policy,) = [each for each in rig.engine.policies if each.name.startswith("ike:")]
    assert policy.sas == ()
    assert rig.names() == set()


async def test_policies_stand_behind_all_others_in_the_order_of_their_priority(rig: Rig) -> None:
    for number, priority in ((1, 30), (2, 10), (3, 20), (4, 10)):
        await rig.ask(
            "PutPolicy", **child(number).policy(0, f"p{number}", sa=None, priority=priority)
        )
    assert [policy.name for policy in rig.engine.policies] == [
        *("pi-b", "ike:p2", "ike:p4", "ike:p3", "ike:p1")
    ]


async def test_what_is_held_goes_on_after_a_restart_and_its_numbers_too(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    name = f"ike:{each.spis[1]:08x}/out"
    rig.engine.used[name] = 41
    new = await again(rig)
    assert new.engine.leases[name].first == 42
    assert {sa["spi"] for sa in new.found["sas"]} == set(each.spis)  # type: ignore[attr-defined]
    assert new.engine.policies[-1].sas == (name,)
    await new.gateway.stop()


async def test_a_key_that_was_used_before_is_refused_wherever_it_was_used(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    await rig.ask("RemoveSas", sas=each.refs(0))
    with pytest.raises(EspGwError, match="removed before"):
        await install(rig, each)
    added = {
        "name": "mine",
        "direction": "outbound",
        "spi": 0x9000,
        "local": ENDS[0],
        "remote": ENDS[1],
        "local_ts": ["10.1.0.0/24"],
        "remote_ts": ["10.9.0.0/16"],
        "suite": "aes256gcm16",
    }
    with pytest.raises(EspGwError, match="used before, by another SA"):
        await rig.call("AddSa", **added, key=each.keys[1])
    other = child(2)
    await rig.call("AddSa", **added, key=other.keys[1])
    await rig.call("DeleteSa", name="mine")
    with pytest.raises(EspGwError, match="used before, by another SA"):
        await install(rig, other)
    third = child(3)
    await install(rig, third)
    with pytest.raises(EspGwError, match="same key"):
        await rig.call("AddSa", **added, key=third.keys[1])


async def test_keys_and_prefixes_of_ike_are_in_no_file_of_the_state(
    rig: Rig, tmp_path: Path
) -> None:
    each = child()
    await install(rig, each)
    await rig.gateway.stop()
    for content in contents(tmp_path):
        assert b"10.101." not in content
        for key in each.keys:
            assert key.encode() not in content
            assert bytes.fromhex(key) not in content


def contents(folder: Path) -> list[bytes]:
    """Return the contents of all files but those of IKE."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "ike"]
    assert len(files) > 3
    return [path.read_bytes() for path in files]


async def test_the_durable_ledger_learns_nothing_of_ike(rig: Rig) -> None:
    before = rig.ledger.read_bytes()
    each = child()
    await install(rig, each)
    rig.engine.receive(f"ike:{each.spis[0]:08x}/in", 500)
    await rig.gateway._sas.write_floors(1000.0)
    await rig.ask("RemoveSas", sas=each.refs(0))
    await rig.gateway._sas.write_floors(2000.0)
    assert rig.ledger.read_bytes() == before


async def test_an_sa_moves_with_its_numbers(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    ref = each.refs(0)[1]
    await rig.ask(
        "UpdateSa", **ref, local="192.0.2.1", remote="192.0.2.8", remote_port=7, encapsulation="udp"
    )
    name = f"ike:{each.spis[1]:08x}/out"
    assert rig.engine.replaced == [(name, name)]
    sa = rig.engine.sas[name]
    assert (sa.remote, sa.remote_port) == (ip_address("192.0.2.8"), 7)
    new = await again(rig)
    assert new.engine.sas[name].remote == sa.remote
    await new.gateway.stop()


async def test_a_reserved_spi_is_given_once_and_their_number_is_bounded(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.daemon.reservations.MAX_RESERVED", 50)
    given = [(await rig.ask("ReserveSpi"))["spi"] for _ in range(50)]
    assert len(set(given)) == 50
    assert all(0xC0000000 <= spi <= 0xCFFFFFFF for spi in given)
    with pytest.raises(ControlError, match="reserved already"):
        await rig.ask("ReserveSpi")
    each = child()
    each.spis = (given[0], each.spis[1])
    await install(rig, each)
    await rig.ask("ReserveSpi")


async def test_a_released_spi_gives_its_place_to_another(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.daemon.reservations.MAX_RESERVED", 1)
    each = child()
    for _ in range(3):
        spi = (await rig.ask("ReserveSpi"))["spi"]
        assert await rig.ask("ReleaseSpi", spi=spi) == {}
        # Once more, or that of an SA: there is nothing to release.
        assert await rig.ask("ReleaseSpi", spi=spi) == {}
    spi = (await rig.ask("ReserveSpi"))["spi"]
    each.spis = (spi, each.spis[1])
    await install(rig, each)
    await rig.ask("ReleaseSpi", spi=spi)
    assert len(rig.names()) == 2
    await rig.ask("ReserveSpi")
    with pytest.raises(ControlError, match="reserved already"):
        await rig.ask("ReserveSpi")


async def test_a_flush_leaves_nothing_of_the_owner_and_all_of_the_others(rig: Rig) -> None:
    network = rig.kernel.network
    for number in (1, 2, 3):
        await install(rig, child(number))
    await rig.ask("FlushOwner")
    assert rig.names() == set()
    assert [policy.name for policy in rig.engine.policies] == ["pi-b"]
    assert rig.kernel.network == network
    assert await rig.ephemeral.records("sa") == []
    assert await rig.ephemeral.records("policy") == []


async def test_a_reload_that_conflicts_with_a_child_is_refused(rig: Rig) -> None:
    each = child()
    each.spis = (0x5555, each.spis[1])
    await install(rig, each)
    rig.edit(lambda document: document["tunnels"]["pi-b"]["inbound"].update(spi=0x5555))
    with pytest.raises(EspGwError, match="0x5555 is already used"):
        await rig.call("Reload")
    await rig.ask("RemoveSas", sas=each.refs(0))
    await rig.call("Reload")


async def test_what_conflicts_with_a_changed_configuration_at_a_start_has_expired(
    rig: Rig,
) -> None:
    each, stays = child(1), child(2)
    each.spis = (0x5555, each.spis[1])
    await install(rig, each)
    await install(rig, stays)
    rig.edit(lambda document: document["tunnels"]["pi-b"]["inbound"].update(spi=0x5555))
    new = await again(rig)
    stream = await new.watch()
    assert await stream.next() == {
        "event": "HardExpired",
        "direction": "inbound",
        "spi": 0x5555,
        "number": 0,
        "why": "restart",
    }
    assert {sa.spi for sa in new.engine.sas.values()} >= {*stays.spis, each.spis[1]}
    listed = {(sa["direction"], sa["spi"]): sa["expired"] for sa in new.found["sas"]}  # type: ignore[attr-defined]
    assert [name for name, expired in listed.items() if expired] == [("inbound", 0x5555)]
    # It is still there for its owner, who removes it.
    assert len((await new.ask("QuerySas"))["sas"]) == 4
    await new.ask("RemoveSas", sas=each.refs(0))
    await new.gateway.stop()


async def test_records_that_cannot_be_read_are_left_out(rig: Rig) -> None:
    from esp_gw.ledger.ephemeral import Records

    each = child()
    await install(rig, each)
    await rig.ephemeral.write(
        Records({("sa", "x"): "{", ("sa", "y"): "{}", ("policy", "z"): "[]", ("sa", "w"): "7"})
    )
    new = await again(rig)
    assert {sa.spi for sa in new.engine.sas.values()} >= set(each.spis)
    await new.gateway.stop()


async def test_a_limit_is_told_and_ends_the_use_of_an_sa(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_events, "INTERVAL", 0.0)
    each = child()
    await install(rig, each, soft_packets=5, hard_packets=10)
    stream = await rig.watch()
    name = f"ike:{each.spis[1]:08x}/out"
    rig.engine.used[name] = 5
    await rig.events.step()
    await rig.events.step()
    assert (await stream.next())["event"] == "SoftExpired"
    rig.engine.used[name] = 10
    await rig.events.step()
    event = await stream.next()
    assert (event["event"], event["spi"], event["why"]) == (
        *("HardExpired", each.spis[1], "packets"),
    )
    assert name not in rig.engine.sas
    assert rig.engine.policies[-1].sas == ()
    with pytest.raises(ControlError, match="has expired"):
        await rig.ask("PutPolicy", **each.policy(0, each.name))
    found = await rig.ask("QuerySas", sas=each.refs(0)[1:])
    assert found["sas"][0]["packets"] == 10
    # After a restart, too, it is not used.
    new = await again(rig)
    assert name not in new.engine.sas
    (last,) = (await new.ask("RemoveSas", sas=each.refs(0)[1:]))["sas"]
    assert last["spi"] == each.spis[1]
    await new.gateway.stop()


async def test_events_of_the_engine_reach_the_watch(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    stream = await rig.watch()
    inbound, outbound = (f"ike:{each.spis[0]:08x}/in", f"ike:{each.spis[1]:08x}/out")
    rig.engine.tell(PeerAddressChanged(inbound, ip_address("192.0.2.9"), 7777))
    rig.engine.tell(SoftExpired(outbound))
    rig.engine.tell(SoftExpired("pi-b/out"))
    rig.engine.tell(HardExpired(outbound))
    assert await stream.next() == {
        "event": "PeerAddressChanged",
        "direction": "inbound",
        "spi": each.spis[0],
        "number": 0,
        "address": "192.0.2.9",
        "port": 7777,
    }
    for name in ("SoftExpired", "HardExpired"):
        event = await asyncio.wait_for(stream.next(), 10)
        assert (event["event"], event["why"]) == (name, "sequence numbers")
    assert outbound not in rig.engine.sas
    # A watch that begins later is told what is still so.
    later = await rig.watch()
    assert (await later.next())["event"] == "HardExpired"


def dropped(source: str, destination: str, port: int = 0) -> Refused:
    protocol = 17 if port else 1
    return Refused(
        DropReason.NO_SA,
        None,
        ip_address(source),
        port,
        ip_address(destination),
        port,
        protocol,
        None,
    )


async def test_acquires_name_the_first_policy_that_a_packet_met_once_a_second(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {"selectors": [{"local": "0.0.0.0/0", "remote": "10.0.0.0/8"}]}
    narrow = {
        "selectors": [
            {"local": "0.0.0.0/0", "remote": "10.50.0.0/16", "protocol": 17, "remote_port": "53"}
        ]
    }
    await rig.ask("PutPolicy", id="wide", action="protect", priority=9, **wide)
    await rig.ask("PutPolicy", id="narrow", action="protect", priority=1, **narrow)
    samples = [
        dropped("10.1.0.1", "10.50.0.1"),
        dropped("10.1.0.2", "10.50.0.1"),
        dropped("10.1.0.1", "10.50.0.1", 53),
        # The manual tunnel's, which is in front.
        dropped("10.1.0.1", "10.2.0.1"),
        replace(dropped("10.1.0.1", "10.60.0.1"), reason=DropReason.NO_POLICY),
    ]
    monkeypatch.setattr(rig.gateway.samples, "_source", lambda: [samples.pop(0)] if samples else [])
    monkeypatch.setattr(owner_events, "HOLDING_INTERVAL", 0.0)
    stream = await rig.watch()
    while samples:
        await rig.events.step()
    assert [(await stream.next())["policy"] for _ in range(2)] == ["wide", "narrow"]
    assert not stream._waiting
    # The look at the tunnels has them all the same.
    assert len(rig.gateway.samples.take()) == 5


async def test_what_ike_holds_is_shown_and_left_to_it(rig: Rig) -> None:
    each = child()
    await install(rig, each)
    await rig.health.look(asyncio.get_running_loop().time())
    listed = (await rig.call("ListTunnels"))["tunnels"]
    assert [tunnel["name"] for tunnel in listed] == ["pi-b", "ike:c{1}"]
    names = [sa["name"] for sa in (await rig.call("ListSas"))["sas"] if sa["origin"] == "ike"]
    assert len(names) == 2
    with pytest.raises(ControlError, match="belongs to ike"):
        await rig.call("DeleteSa", name=names[0])
    with pytest.raises(ControlError, match="belongs to ike"):
        await rig.call("DeletePolicy", name="ike:c{1}")
    with pytest.raises(ControlError, match="shown to nobody"):
        await rig.call("GetSa", name=names[0], reveal_keys=True)
    assert (await rig.call("FlushSas"))["deleted"] == []
    assert len((await rig.ask("QuerySas"))["sas"]) == 2
    assert (await rig.call("GetStatus"))["tunnels"] == 2


async def test_removal_of_an_inbound_sa_leaves_no_grace_time(rig: Rig) -> None:
    first, second = child(1), child(2)
    second.name = first.name
    await install(rig, first)
    await install(rig, second)
    await rig.ask("RemoveSas", sas=first.refs(0))
    assert {sa.spi for sa in rig.engine.sas.values()} & set(first.spis) == set()


async def test_the_cost_of_a_child_grows_no_faster_than_what_is_there(rig: Rig) -> None:
    async def cost_of(number: int) -> int:
        task = asyncio.ensure_future(install(rig, child(number)))
        count = 0

        def note(_frame: object, event: str, _arg: object) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(note)
        try:
            await task
        finally:
            sys.setprofile(None)
        return count

    costs = {}
    for number in range(1, 61):
        costs[number] = await cost_of(number)
    first = costs[1]
    # With a term in the square of the number, that of 60 would be four times that of 30.
    assert (costs[60] - first) < 2.5 * (costs[30] - first)
    assert (costs[60] - first) / 59 < 800


async def test_a_child_asks_only_for_the_path_to_a_new_peer(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    path_mtu = rig.kernel.path_mtu

    async def noted(remote: Any, fwmark: int) -> int | None:
        asked.append(str(remote))
        return await path_mtu(remote, fwmark)

    monkeypatch.setattr(rig.kernel, "path_mtu", noted)
    for number in range(1, 6):
        each = child(number)
        each.outer = (ENDS[0], f"198.51.100.{number}")
        await install(rig, each)
    assert asked == [f"198.51.100.{number}" for number in range(1, 6)]
    await rig.call("Reload")
    assert len(asked) == 5 + 6
