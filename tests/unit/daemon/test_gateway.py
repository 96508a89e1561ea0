"""The gateway with a real ledger, a fake engine and a fake kernel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.daemon import gateway as gateway_module
from esp_gw.daemon import sas as sas_module
from esp_gw.desired import Desired
from esp_gw.engine.base import (
    AfAlgLost,
    EngineFailed,
    GsoRefused,
    HardExpired,
    LeaseLow,
    MergeRefused,
    PathMtuChanged,
    PeerAddressChanged,
)
from esp_gw.errors import (
    EngineError,
    KeyReuseError,
    LedgerError,
    LedgerMissingError,
    NetworkError,
)
from esp_gw.ledger.ledger import LEASE_ESN, Ledger
from esp_gw.ledger.thread import LedgerThread
from esp_gw.model import Direction, Lease, Sa
from esp_gw.network.guard import GuardState
from esp_gw.network.objects import RouteKind
from esp_gw.network.plan import protection
from tests.support.builders import desired, make_sa, protect, selector
from tests.support.fakes import captured_logs, until
from tests.support.gateway_rig import MakeRig, Rig, rigs
from tests.support.ledgers import MACHINE

OUT = make_sa("t/out", Direction.OUTBOUND, 0x1001, pair="t/in")
IN = make_sa("t/in", Direction.INBOUND, 0x1002, pair="t/out")
MORE = make_sa("m/out", Direction.OUTBOUND, 0x1003, selector("10.1.9.0/24", "10.2.9.0/24"))
FRESH = replace(OUT, keymat=replace(OUT.keymat, salt=b"othr"))
ONE = desired((OUT, IN), (protect("t", "t/out", *OUT.selectors),))
TWO = desired((OUT, IN, MORE), (*ONE.policies, protect("m", "m/out", *MORE.selectors)))


@pytest.fixture
async def make_rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeRig]:
    monkeypatch.setattr(gateway_module, "FLOOR_INTERVAL", 0.01)
    async with rigs(tmp_path, monkeypatch) as make:
        yield make


@pytest.fixture
async def rig(make_rig: MakeRig) -> Rig:
    rig = make_rig()
    await rig.gateway.start(ONE)
    return rig


def _entries(rig: Rig) -> dict[str, int]:
    """Return the ledger's sequence numbers by role, read after the gateway closed it."""
    ledger = Ledger.open(rig.path, MACHINE)
    try:
        return {str(entry.role): entry.seq for entry in ledger.entries()}
    finally:
        ledger.close()


async def test_a_start_installs_all_and_a_stop_leaves_only_what_keeps_it_closed(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    await rig.gateway.start(ONE)
    assert set(rig.engine.sas) == {"t/out", "t/in"}
    assert rig.engine.leases["t/out"].first == 1
    running = rig.kernel.network
    await rig.gateway.stop()
    stopped = rig.kernel.network
    assert {route for route in running.routes if route.is_guard} == stopped.routes != set()
    assert (stopped.rules, stopped.firewall) == (running.rules, running.firewall)
    assert stopped.firewall is not None
    assert rig.engine.sas == {}
    assert not rig.engine.is_open


async def test_a_release_leaves_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    untouched = rig.kernel.network
    await rig.gateway.start(ONE)
    await rig.gateway.release()
    assert replace(rig.kernel.network, mtu=untouched.mtu) == untouched
    assert not rig.engine.is_open


async def test_a_stop_of_an_opened_gateway_leaves_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    untouched = rig.kernel.network
    await rig.gateway.start(ONE)
    rig.guard.mark_opened()
    await rig.gateway.apply(ONE)
    assert {route.kind for route in rig.kernel.network.routes} == {RouteKind.TUN}
    assert rig.kernel.network.firewall is None
    await rig.gateway.stop()
    assert replace(rig.kernel.network, mtu=untouched.mtu) == untouched


async def test_the_plan_on_disk_is_that_of_the_last_applied_state(rig: Rig) -> None:
    await rig.gateway.apply(TWO)
    refused = make_sa("x/out", Direction.OUTBOUND, 0x1009, key=IN.spi)
    with pytest.raises(KeyReuseError):
        await rig.gateway.apply(desired((*TWO.sas, refused), TWO.policies[:1]))
    stored = GuardState(rig.path.parent).plan.read()
    assert stored is not None
    assert stored.protection.policies == protection(TWO).policies


async def test_a_key_that_the_ledger_refuses_changes_nothing(rig: Rig) -> None:
    before = rig.seen()
    turned = make_sa("m/out", Direction.OUTBOUND, 0x1003, key=IN.spi)
    with pytest.raises(KeyReuseError):
        await rig.gateway.apply(
            desired((OUT, IN, turned), (*ONE.policies, protect("m", "m/out", *OUT.selectors)))
        )
    assert rig.seen() == before


@pytest.mark.parametrize("failing", range(12))
async def test_a_change_that_fails_half_way_is_rolled_back(rig: Rig, failing: int) -> None:
    before = rig.seen()
    rig.kernel.fail_at(failing)
    try:
        await rig.gateway.apply(TWO)
    except NetworkError:
        assert rig.seen() == before
    else:
        assert failing >= rig.kernel.actions
    rig.kernel.fail_at(None)
    await rig.gateway.apply(TWO)
    assert set(rig.engine.sas) == {"t/out", "t/in", "m/out"}


async def test_an_engine_that_refuses_an_sa_loses_no_other(rig: Rig) -> None:
    before = rig.seen()
    rig.engine.refuses = "m/out"
    with pytest.raises(EngineError):
        await rig.gateway.apply(TWO)
    assert rig.seen() == before
    rig.engine.refuses = "t/in"
    changed = replace(IN, replay_window=64)
    with pytest.raises(EngineError):
        await rig.gateway.apply(desired((OUT, changed), ONE.policies))
    assert set(rig.engine.sas) == {sa.name for sa in rig.gateway.sas}


async def test_if_one_of_many_sas_is_refused_none_is_installed(rig: Rig) -> None:
    before = rig.seen()
    many = tuple(make_sa(f"n{n}/out", Direction.OUTBOUND, 0x2011 + n) for n in range(8))
    rig.engine.refuses = "n5/out"
    with pytest.raises(EngineError):
        await rig.gateway.apply(desired((OUT, IN, *many), ONE.policies))
    assert rig.seen() == before


async def test_if_the_ledger_refuses_one_key_it_leases_no_number_of_the_others(
    rig: Rig,
) -> None:
    turned = make_sa("m/out", Direction.OUTBOUND, 0x1003, key=IN.spi)
    fresh = make_sa("n/out", Direction.OUTBOUND, 0x1004)
    with pytest.raises(KeyReuseError):
        await rig.gateway.apply(desired((OUT, IN, fresh, turned), ONE.policies))
    await rig.gateway.apply(desired((OUT, IN, fresh), ONE.policies))
    assert rig.engine.leases["n/out"].first == 1


async def test_a_failed_start_leaves_everything_closed(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.kernel.fail_at(5)
    with pytest.raises(NetworkError):
        await rig.gateway.start(ONE)
    closed = rig.kernel.network
    assert [str(route.destination) for route in closed.routes if route.is_guard] == ["10.2.0.0/24"]
    assert closed.rules
    assert closed.firewall is not None
    assert not rig.engine.is_open


async def test_a_start_that_the_ledger_refuses_leaves_everything_closed(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.path.unlink()
    with pytest.raises(LedgerMissingError):
        await rig.gateway.start(ONE)
    assert [route.kind for route in rig.kernel.network.routes] == [RouteKind.UNREACHABLE]
    assert rig.kernel.network.firewall is not None


@pytest.mark.parametrize("failing", range(3))
async def test_a_failed_start_keeps_the_guards_of_a_killed_run(
    make_rig: MakeRig, failing: int
) -> None:
    killed = make_rig()
    await killed.gateway.start(ONE)
    await killed.gateway.abandon()
    guards = {route for route in killed.kernel.network.routes if route.kind == "unreachable"}
    assert guards
    rig = make_rig()
    rig.kernel.network = replace(killed.kernel.network, routes=frozenset(guards))
    rig.kernel.fail_at(failing)
    with pytest.raises(NetworkError):
        await rig.gateway.start(TWO)
    assert guards <= rig.kernel.network.routes


async def test_a_low_lease_is_extended_at_its_end(rig: Rig) -> None:
    rig.engine.tell(LeaseLow("t/out"))
    await until(lambda: rig.engine.extensions)
    ((name, lease),) = rig.engine.extensions
    assert (name, lease.first, lease.end) == ("t/out", LEASE_ESN + 1, 2 * LEASE_ESN + 1)


async def test_a_lease_extension_is_retried_until_the_ledger_grants_it(
    rig: Rig,
) -> None:
    away = rig.path.with_name("away")
    rig.path.rename(away)
    rig.engine.tell(LeaseLow("t/out"))
    await asyncio.sleep(0.1)  # several tries
    assert rig.engine.extensions == []
    away.rename(rig.path)
    await until(lambda: rig.engine.extensions)
    ((_, lease),) = rig.engine.extensions
    assert lease.first == LEASE_ESN + 1


@pytest.mark.parametrize("sas", [(IN,), (FRESH, IN)], ids=["removed", "replaced"])
async def test_a_lease_that_comes_after_its_sa_was_removed_is_not_used(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, sas: tuple[Sa, ...]
) -> None:
    written = asyncio.Event()
    lease = LedgerThread.lease

    async def slow(thread: LedgerThread, sa: Sa) -> Lease:
        result = await lease(thread, sa)
        if sa == OUT:
            await written.wait()
        return result

    monkeypatch.setattr(LedgerThread, "lease", slow)
    rig.engine.tell(LeaseLow("t/out"))
    await asyncio.sleep(0)
    await rig.gateway.apply(desired(sas))
    written.set()
    await asyncio.sleep(0.02)
    # The lease is for the old key: its numbers are not leased on disk for the new key.
    assert rig.engine.extensions == []


async def test_the_unused_part_of_a_lease_is_returned_at_the_end(
    rig: Rig, make_rig: MakeRig
) -> None:
    rig.engine.used["t/out"] = 500
    await rig.gateway.stop()
    again = make_rig()
    await again.gateway.start(ONE)
    assert again.engine.leases["t/out"].first == 501


@pytest.mark.parametrize("used", [LEASE_ESN - 10, LEASE_ESN, LEASE_ESN + 10])
async def test_the_unused_part_of_an_extended_lease_is_returned_too(
    rig: Rig, make_rig: MakeRig, used: int
) -> None:
    rig.engine.tell(LeaseLow("t/out"))
    await until(lambda: rig.engine.extensions)
    rig.engine.used["t/out"] = used
    await rig.gateway.stop()
    again = make_rig()
    await again.gateway.start(ONE)
    assert again.engine.leases["t/out"].first == used + 1


async def test_no_number_is_given_out_twice_however_an_sa_changes(rig: Rig) -> None:
    spent: list[int] = []

    def spend(name: str) -> None:
        first = rig.engine.counters().sas[name].seq
        rig.engine.used[name] = first + 4
        spent.extend(range(first, first + 5))

    spend("t/out")
    await rig.gateway.apply(desired((replace(OUT, keepalive=7), IN), ONE.policies))
    spend("t/out")
    await rig.gateway.apply(desired((IN,)))
    await rig.gateway.apply(desired((replace(OUT, name="x/out", spi=0x7777), IN)))
    spend("x/out")
    await rig.gateway.apply(ONE)
    spend("t/out")
    assert len(spent) == len(set(spent)) == 20


async def test_advancing_floors_are_stored_and_read_by_the_next_run(
    rig: Rig, make_rig: MakeRig
) -> None:
    rig.engine.used["t/in"] = 4711
    before = rig.path.stat().st_mtime_ns
    await until(lambda: rig.path.stat().st_mtime_ns != before)
    await asyncio.sleep(0.05)
    rested = rig.path.stat().st_mtime_ns
    await asyncio.sleep(0.05)
    assert rig.path.stat().st_mtime_ns == rested
    rig.engine.used["t/in"] = 4712
    await rig.gateway.stop()
    again = make_rig()
    await again.gateway.start(ONE)
    assert again.engine.floors["t/in"] == 4712


async def test_a_replaced_inbound_sa_keeps_the_replay_floor_of_its_key(
    rig: Rig,
) -> None:
    rig.engine.used["t/in"] = 99
    await rig.gateway.apply(desired((OUT, replace(IN, replay_window=64)), ONE.policies))
    assert rig.engine.counters().sas["t/in"].seq == 99
    fresh = replace(IN, keymat=replace(IN.keymat, salt=b"othr"))
    await rig.gateway.apply(desired((OUT, fresh), ONE.policies))
    assert rig.engine.counters().sas["t/in"].seq == 0
    await rig.gateway.apply(desired((OUT, IN), ONE.policies))
    assert rig.engine.counters().sas["t/in"].seq == 99


async def test_a_renamed_inbound_sa_keeps_the_replay_floor_of_its_key(rig: Rig) -> None:
    rig.engine.used["t/in"] = 99  # and the floor is not stored yet
    await rig.gateway.apply(desired((OUT, replace(IN, name="x/in")), ONE.policies))
    assert rig.engine.counters().sas["x/in"].seq == 99


async def test_a_changed_sa_goes_on_in_its_lease_and_window(rig: Rig) -> None:
    rig.engine.used |= {"t/out": 5, "t/in": 99}
    changed = desired((replace(OUT, keepalive=7), replace(IN, replay_window=64)), ONE.policies)
    assert await rig.gateway.apply(changed) == ["sa t/in changed", "sa t/out changed"]
    assert rig.engine.replaced == [("t/in", "t/in"), ("t/out", "t/out")]
    assert rig.engine.counters().sas["t/out"].seq == 6
    await rig.gateway.stop()
    assert _entries(rig) == {"outbound": 6, "inbound": 99}


async def test_a_lease_asked_for_before_a_renaming_reaches_the_renamed_sa(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = asyncio.Event()
    lease = LedgerThread.lease

    async def slow(thread: LedgerThread, sa: Sa) -> Lease:
        result = await lease(thread, sa)
        await written.wait()
        return result

    monkeypatch.setattr(LedgerThread, "lease", slow)
    rig.engine.tell(LeaseLow("t/out"))
    await asyncio.sleep(0)
    renamed = replace(OUT, name="x/out")
    await rig.gateway.apply(desired((renamed, IN), (protect("t", "x/out", *OUT.selectors),)))
    written.set()
    await until(lambda: rig.engine.extensions)
    assert rig.engine.extensions[0][0] == "x/out"


async def test_packets_under_a_replaced_key_are_accepted_for_the_grace_time_and_stay_counted(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sas_module, "GRACE", 1.0)
    rig.engine.used |= {"t/out": 5, "t/in": 99}
    new = (
        replace(FRESH, spi=0x1101),
        replace(IN, keymat=replace(IN.keymat, salt=b"othr"), spi=0x1102),
    )
    said = await rig.gateway.apply(desired(new, ONE.policies))
    assert any("SPI 0x1002 is accepted" in line for line in said)
    assert set(rig.engine.sas) == {"t/out", "t/in", "t/in~0x1002"}
    assert {sa.name for sa in rig.gateway.sas} == {"t/out", "t/in"}
    ((old, seconds),) = rig.gateway.retired
    assert (old.spi, 0 < seconds <= 1.0) == (0x1002, True)
    rig.engine.used["t/in"] = 7
    assert rig.gateway.totals(rig.engine.counters().sas)["t/in"].packets == 106
    await until(lambda: "t/in~0x1002" not in rig.engine.sas)
    assert rig.gateway.totals(rig.engine.counters().sas)["t/in"].packets == 106
    assert rig.gateway.totals(rig.engine.counters().sas)["t/out"].packets == 5
    await rig.gateway.stop()


async def test_a_failed_request_leaves_no_sa_under_its_key(rig: Rig) -> None:
    new = (
        replace(FRESH, spi=0x1101),
        replace(IN, keymat=replace(IN.keymat, salt=b"othr"), spi=0x1102),
    )

    async def record() -> None:
        raise LedgerError("no space")

    before = rig.seen()
    with pytest.raises(LedgerError):
        await rig.gateway.apply(desired(new, ONE.policies), record)
    assert rig.seen()[1:] == before[1:]
    assert rig.engine.sas == {"t/out": OUT, "t/in": IN}


async def test_an_unwritable_ledger_does_not_stop_a_removal(rig: Rig) -> None:
    rig.engine.used["t/in"] = 7
    rig.path.rename(rig.path.with_name("away"))
    await rig.gateway.apply(Desired(ONE.settings))
    assert rig.engine.sas == {}
    with pytest.raises(LedgerError):
        await rig.gateway.apply(ONE)
    assert rig.engine.sas == {}
    rig.path.with_name("away").rename(rig.path)
    await rig.gateway.apply(ONE)
    assert set(rig.engine.sas) == {"t/out", "t/in"}


async def test_a_smaller_path_mtu_reaches_the_tunnel(rig: Rig) -> None:
    assert rig.gateway.mtu > 1300
    rig.engine.tell(PathMtuChanged(OUT.remote, 1300))
    await until(lambda: rig.gateway.mtu < 1300)
    assert rig.gateway.mtu == rig.kernel.network.mtu


async def test_a_failed_data_plane_is_reported_once_and_an_expired_sa_is_no_failure(
    rig: Rig,
) -> None:
    rig.engine.tell(HardExpired("t/out"))
    assert rig.failures == []
    rig.engine.tell(EngineFailed("the TUN device is gone"))
    assert rig.failures == ["the TUN device is gone"]


async def test_a_change_while_the_gateway_stops_is_refused(rig: Rig) -> None:
    stop = asyncio.create_task(rig.gateway.stop())
    await until(lambda: not rig.engine.sas)
    with pytest.raises(EngineError, match="stopping"):
        await rig.gateway.apply(TWO)
    await stop
    assert rig.engine.sas == {}
    assert {str(route.destination) for route in rig.kernel.network.routes} == {"10.2.0.0/24"}


async def test_concurrent_changes_are_serialized(rig: Rig) -> None:
    sas: list[Sa] = [
        make_sa(f"n{number}", Direction.INBOUND, 0x2010 + number) for number in range(6)
    ]
    await asyncio.gather(
        *(
            rig.gateway.apply(desired((OUT, IN, *sas[: number + 1]), ONE.policies))
            for number in range(len(sas))
        )
    )
    assert {sa.name for sa in rig.gateway.sas} == {"t/out", "t/in", *(sa.name for sa in sas)}


async def test_a_refusal_of_gso_is_logged_once_per_peer(rig: Rig) -> None:
    with captured_logs() as lines:
        for remote in (IN.remote, IN.remote, IN.local):
            rig.engine.tell(GsoRefused(remote, "EIO"))
    assert [(line["remote"], line["error"]) for line in lines] == [
        (str(IN.remote), "EIO"),
        (str(IN.local), "EIO"),
    ]


async def test_a_refusal_of_merging_is_one_line_with_its_kind(rig: Rig) -> None:
    with captured_logs() as lines:
        rig.engine.tell(MergeRefused("UDP"))
    (line,) = lines
    assert line["kind"] == "UDP"
    assert "one by one" in line["event"]


async def test_the_loss_of_af_alg_is_one_line_with_its_reason(rig: Rig) -> None:
    with captured_logs() as lines:
        rig.engine.tell(AfAlgLost("the kernel refused a packet: EPERM"))
    (line,) = lines
    assert line["reason"] == "the kernel refused a packet: EPERM"
    assert "AF_ALG is lost" in line["event"]


async def test_a_peer_that_moves_is_logged_once(rig: Rig) -> None:
    with captured_logs() as lines:
        for port in range(50):
            rig.engine.tell(PeerAddressChanged("t/in", IN.remote, 1000 + port))
        rig.engine.tell(PeerAddressChanged("gone", IN.remote, 6))
    assert [(line["sa"], line["port"]) for line in lines] == [("t/in", 1000)]
