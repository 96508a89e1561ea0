"""The ledger of keys that live until a reboot at most, against what its promise says."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esp_gw.errors import KeyReuseError, LedgerError
from esp_gw.ledger import ephemeral
from esp_gw.ledger.ephemeral import EphemeralLedger, Records, read_records
from esp_gw.ledger.ledger import MIN_MARGIN, FloorRequest, LeaseRequest
from esp_gw.model import KeyMaterial, Lease

KEY = KeyMaterial(b"k" * 16, b"salt")
OTHER = KeyMaterial(b"o" * 16, b"salt")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ike" / "held.db"


def lease(ledger: EphemeralLedger, key: KeyMaterial = KEY, count: int = 100) -> Lease:
    return ledger.begin([LeaseRequest(key, count, 2**64 - 1, "sa")], [])[0][0]


def killed(ledger: EphemeralLedger) -> EphemeralLedger:
    """Open the file again as after the end of the process, which writes nothing."""
    ledger.close()
    return EphemeralLedger.open(ledger._path)


def test_after_a_kill_the_numbers_go_on_behind_the_lease(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    assert lease(ledger) == Lease(1, 101)
    assert lease(killed(ledger)) == Lease(101, 201)


def test_the_unused_rest_of_a_lease_is_used_later(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    ledger.end([(KEY, lease(ledger), 6)], [])
    assert lease(killed(ledger)).first == 6


def test_a_rest_that_is_not_of_the_last_lease_is_not_taken_back(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    first = lease(ledger)
    lease(ledger)
    ledger.end([(KEY, first, 6)], [])
    assert lease(ledger).first == 201


def test_a_floor_never_goes_down_and_the_fence_is_above_all_that_came(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    ((), (fresh,)) = ledger.begin([], [FloorRequest(KEY, "sa")])
    assert (fresh.floor, fresh.fence, fresh.ceiling) == (0, 0, MIN_MARGIN)
    ledger.end([], [(KEY, 50)], [(KEY, 5000)])
    ledger.end([], [(KEY, 20)])
    _, (found,) = killed(ledger).begin([], [FloorRequest(KEY, "sa")])
    assert (found.floor, found.fence, found.ceiling) == (50, 5000, 5000)


def test_a_key_of_one_direction_is_refused_to_the_other(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    lease(ledger)
    with pytest.raises(KeyReuseError, match="used for outbound"):
        ledger.begin([], [FloorRequest(KEY, "sa")])


def test_a_retired_key_is_refused_and_its_record_gone_from_the_file(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    lease(ledger)
    ledger.write(Records({("sa", "one"): "secret-of-one", ("sa", "two"): "two"}))
    ledger.write(Records({}, [("sa", "one")], [KEY]))
    again = killed(ledger)
    assert again.records("sa") == [("two", "two")]
    assert again.knows(KEY)
    assert not again.knows(OTHER)
    with pytest.raises(KeyReuseError, match="removed before"):
        lease(again)
    # Late numbers of a retired key change nothing.
    again.end([(KEY, Lease(1, 101), 1)], [(KEY, 7)], [(KEY, 700)])
    with pytest.raises(KeyReuseError):
        lease(again)
    for file in path.parent.iterdir():
        assert b"secret-of-one" not in file.read_bytes()


def test_the_oldest_retired_keys_are_forgotten_beyond_the_bound_and_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ephemeral, "MAX_RETIRED", 10)
    ledger = EphemeralLedger.open(path)
    lease(ledger)
    gone = [KeyMaterial(bytes([number]) * 16, b"salt") for number in range(20)]
    for key in gone:
        lease(ledger, key)
        ledger.write(Records({}, (), [key]))
    again = killed(ledger)
    assert [again.knows(key) for key in gone] == [False] * 10 + [True] * 10
    assert lease(again).first == 101


def test_the_oldest_is_the_one_that_was_retired_first_however_old_the_key_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ephemeral, "MAX_RETIRED", 10)
    ledger = EphemeralLedger.open(path)
    lease(ledger)
    gone = [KeyMaterial(bytes([number]) * 16, b"salt") for number in range(10)]
    for key in gone:
        lease(ledger, key)
        ledger.write(Records({}, (), [key]))
    ledger.write(Records({}, (), [KEY]))
    again = killed(ledger)
    assert [again.knows(key) for key in gone] == [False] + [True] * 9
    with pytest.raises(KeyReuseError, match="removed before"):
        lease(again)


def test_keys_in_use_leave_room_for_retired_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ephemeral, "MAX_RETIRED", 10)
    ledger = EphemeralLedger.open(path)
    for number in range(15):
        lease(ledger, KeyMaterial(bytes([number]) * 16, b"salt"))
    lease(ledger)
    ledger.write(Records({}, (), [KEY]))
    assert ledger.knows(KEY)
    assert killed(ledger).knows(KEY)


@pytest.mark.parametrize("page", [0, 1, 3, -1])
def test_a_file_that_is_damaged_at_any_page_is_begun_anew(path: Path, page: int) -> None:
    ledger = EphemeralLedger.open(path)
    for number in range(100):
        lease(ledger, KeyMaterial(bytes([number]) * 16, b"salt"))
        ledger.write(Records({("sa", str(number)): "text" * 50}))
    ledger.close()
    content = bytearray(path.read_bytes())
    at = page % (len(content) // 4096) * 4096
    content[at : at + 2048] = bytes(range(256)) * 8
    path.write_bytes(content)
    assert read_records(path, "sa") == []
    fresh = EphemeralLedger.open(path)
    assert fresh.records("sa") == []
    assert lease(fresh).first == 1
    fresh.write(Records({("sa", "one"): "text"}))
    assert killed(fresh).records("sa") == [("one", "text")]


def test_another_boot_discards_keys_and_numbers(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = EphemeralLedger.open(path)
    lease(ledger)
    ledger.write(Records({("sa", "one"): "text"}))
    ledger.close()
    boot = tmp_path / "boot_id"
    boot.write_text("another\n")
    monkeypatch.setattr(ephemeral, "_BOOT_ID", boot)
    assert read_records(path, "sa") == []
    fresh = EphemeralLedger.open(path)
    assert fresh.records("sa") == []
    assert not fresh.knows(KEY)


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_file_that_is_none_of_ours_is_replaced(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_records(path, "sa") == []
    assert lease(EphemeralLedger.open(path)).first == 1


def test_a_second_process_may_read_the_records_but_not_open_the_ledger(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    ledger.write(Records({("policy", "b"): "2", ("policy", "a"): "1"}))
    lease(ledger)
    assert read_records(path, "policy") == ["2", "1"]
    with pytest.raises(LedgerError, match="another esp-gw"):
        EphemeralLedger.open(path)


def test_nobody_else_may_read_it(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    ledger.write(Records({("sa", "one"): "text"}))
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert {each.stat().st_mode & 0o777 for each in path.parent.iterdir()} == {0o600}


def test_a_failed_write_changes_nothing(path: Path) -> None:
    ledger = EphemeralLedger.open(path)
    first = lease(ledger)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError):
        lease(ledger)
    with pytest.raises(LedgerError):
        ledger.write(Records({("sa", "one"): "text"}, (), [KEY]))
    other.execute("ROLLBACK")
    other.close()
    assert lease(ledger).first == first.end
    assert ledger.records("sa") == []


Steps = st.lists(
    st.tuples(
        st.sampled_from(["lease", "release", "retire", "kill"]),
        st.integers(0, 2),
        st.integers(0, 100),
    ),
    max_size=30,
)


@given(Steps)
def test_no_number_of_a_key_is_leased_twice_whatever_happens(
    steps: list[tuple[str, int, int]],
) -> None:
    keys = [KeyMaterial(bytes([number]) * 16, b"salt") for number in range(3)]
    used: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    held: dict[int, tuple[Lease, int]] = {}
    retired: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        ledger = EphemeralLedger.open(Path(folder) / "ike" / "held.db")
        for what, which, count in steps:
            if what == "kill":
                held.clear()
                ledger = killed(ledger)
            elif what == "retire":
                ledger.write(Records({}, (), [keys[which]]))
                retired.add(which)
                held.pop(which, None)
            elif what == "release":
                if which in held:
                    given_back, next_seq = held.pop(which)
                    ledger.end([(keys[which], given_back, next_seq)], [])
            elif which in retired:
                with pytest.raises(KeyReuseError):
                    lease(ledger, keys[which])
            elif which not in held:
                got = lease(ledger, keys[which])
                spent = min(count, got.end - got.first)
                numbers = set(range(got.first, got.first + spent))
                assert not numbers & used[which]
                used[which] |= numbers
                held[which] = (got, got.first + spent)
        ledger.close()
