"""Both ledgers as one: which key is in which."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.daemon.ledgers import Ledgers
from esp_gw.errors import KeyReuseError
from esp_gw.ledger import thread as ledger_thread
from esp_gw.ledger.ledger import Ledger
from esp_gw.ledger.thread import EphemeralThread, LedgerThread
from esp_gw.model import Direction, Origin, Sa
from tests.support.builders import make_sa
from tests.support.ledgers import MACHINE


def of_ike(sa: Sa) -> Sa:
    return replace(sa, origin=Origin.IKE)


@pytest.fixture
async def ledgers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(ledger_thread, "machine_identity", lambda: MACHINE)
    both = Ledgers(
        LedgerThread(tmp_path / "ledger.db"), EphemeralThread(tmp_path / "ike" / "held.db")
    )
    yield both
    await both.close()


async def test_ike_alone_needs_no_ledger_and_makes_none(ledgers: Ledgers) -> None:
    out, into = make_sa("a", Direction.OUTBOUND, 1), make_sa("b", Direction.INBOUND, 2)
    (lease,), (numbers,) = await ledgers.begin([of_ike(out)], [of_ike(into)])
    assert (lease.first, numbers.floor) == (1, 0)
    await ledgers.end([(out.keymat, lease, 7)], [(into.keymat, 9)], [(into.keymat, 300)])
    (lease,), (numbers,) = await ledgers.begin([of_ike(out)], [of_ike(into)])
    assert (lease.first, numbers.floor, numbers.fence) == (7, 9, 300)
    assert not ledgers.path.exists()


async def test_answers_are_in_the_order_of_the_questions(ledgers: Ledgers, tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger.db", MACHINE)
    sas = [make_sa(f"s{number}", Direction.OUTBOUND, number) for number in range(1, 5)]
    mixed = [of_ike(sa) if number % 2 else sa for number, sa in enumerate(sas)]
    first, _ = await ledgers.begin(mixed, [])
    used = [
        (sa.keymat, lease, 10 + number)
        for number, (sa, lease) in enumerate(zip(sas, first, strict=True))
    ]
    await ledgers.end(used, [])
    again, _ = await ledgers.begin(mixed, [])
    assert [lease.first for lease in again] == [10, 11, 12, 13]


async def test_a_key_of_one_is_refused_to_the_other(ledgers: Ledgers, tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger.db", MACHINE)
    mine, ikes = make_sa("a", Direction.OUTBOUND, 1), make_sa("b", Direction.OUTBOUND, 2)
    await ledgers.begin([mine, of_ike(ikes)], [])
    with pytest.raises(KeyReuseError, match="used before, by another SA"):
        await ledgers.begin([of_ike(mine)], [])
    with pytest.raises(KeyReuseError, match="used before, by another SA"):
        await ledgers.begin([ikes], [])
