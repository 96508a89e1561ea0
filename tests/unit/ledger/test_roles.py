"""A key has one role for ever, an inbound key has a floor, and no key is ever shown."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from esp_gw.errors import KeyReuseError
from esp_gw.ledger.ledger import Ledger, Role
from tests.support.ledgers import ESN, key, reopened


def test_replay_floors_survive_and_never_go_down(ledger: Ledger, path: Path) -> None:
    assert ledger.replay_floor(key(1)) == 0
    ledger.store_replay_floors([(key(1), 70), (key(2), 2**64 - 1), (key(1), 60)])
    ledger.store_replay_floors([(key(1), 50), (key(2), 1), (key(3), 0)])
    with closing(reopened(ledger, path)) as again:
        assert [again.replay_floor(key(n)) for n in (1, 2, 3)] == [70, 2**64 - 1, 0]
        assert len(again.entries()) == 3


def test_a_key_known_in_one_direction_is_refused_in_the_other(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.replay_floor(key(2))
    with closing(reopened(ledger, path)) as again:
        with pytest.raises(KeyReuseError, match=r"SA in: .* used for outbound traffic"):
            again.replay_floor(key(1), sa="in")
        with pytest.raises(KeyReuseError, match="used for inbound traffic"):
            again.lease(key(2), 10, ESN)
        with pytest.raises(KeyReuseError, match="used for outbound traffic"):
            again.store_replay_floors([(key(2), 99), (key(1), 99)])
        assert again.replay_floor(key(2)) == 0
        assert again.lease(key(1), 1, ESN).first == 11


def test_entries_show_role_next_and_highest_but_no_key(ledger: Ledger, path: Path) -> None:
    ledger.lease(key(1), 10, ESN)
    ledger.store_replay_floors([(key(2), 7)])
    entries = {entry.role: entry for entry in ledger.entries()}
    assert (entries[Role.OUTBOUND].seq, entries[Role.INBOUND].seq) == (11, 7)
    assert all(len(bytes.fromhex(entry.fingerprint)) == 4 for entry in ledger.entries())
    assert all(entry.first_use.utcoffset() is not None for entry in ledger.entries())
    stored = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for secret in (key(1).key[:8], key(1).salt, key(2).key[:8], key(2).salt):
        assert secret not in stored


def test_no_error_nor_repr_shows_a_key_or_the_secret(ledger: Ledger, path: Path) -> None:
    ledger.replay_floor(key(1))
    with pytest.raises(KeyReuseError) as refused:
        ledger.lease(key(1), 1, ESN, sa="office")
    shown = str(refused.value) + repr(refused.value) + repr(ledger._contents)
    assert key(1).key.hex() not in shown
    assert repr(key(1).key)[2:-1] not in shown
    assert repr(ledger._contents.secret) not in shown
