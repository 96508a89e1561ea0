"""Any order of leases, releases, floors, restarts and crashes, against a plain model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from esp_gw.errors import KeyReuseError
from esp_gw.ledger.ledger import MIN_MARGIN, FloorRequest, Ledger, Role
from esp_gw.model import KeyMaterial, Lease, Reception
from tests.support.ledgers import MACHINE

KEYS = [KeyMaterial(bytes([number]) * 32, b"salt") for number in range(3)]

keys = st.integers(0, len(KEYS) - 1)
counts = st.sampled_from([1, 2, 3, 5, 8, 8, 8, 2**20, 2**63])
lasts = st.sampled_from([2**64 - 1, 2**64 - 1, 2**32 - 1, 40])
fractions = st.sampled_from([0, 0.1, 0.25, 0.5, 0.75, 1])


class LedgerMachine(RuleBasedStateMachine):
    """The model: each key's role, its next or highest number, its ceiling, and its newest lease.

    `spent` is the independent check: the last number that may have been sent on the wire.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="ledger-"))
        self.lives = 0
        self.roles: dict[int, Role] = {}
        self.next: dict[int, int] = {}
        self.highest: dict[int, int] = {}
        self.ceilings: dict[int, int] = {}
        self.spent: dict[int, int] = {}
        self.newest: dict[int, Lease] = {}
        self.joined: dict[int, Lease] = {}
        self.old: list[tuple[int, Lease]] = []

    @property
    def path(self) -> Path:
        return self.root / str(self.lives) / "ledger.db"

    @initialize()
    def create(self) -> None:
        self.path.parent.mkdir()
        Ledger.create(self.path, MACHINE)
        self.ledger = Ledger.open(self.path, MACHINE)

    def allowed(self, key: int, role: Role) -> bool:
        return self.roles.get(key, role) is role

    @rule(key=keys, count=counts, last=lasts)
    def lease(self, key: int, count: int, last: int) -> None:
        first = self.next.get(key, 1)
        if not self.allowed(key, Role.OUTBOUND) or first > last:
            with pytest.raises(KeyReuseError):
                self.ledger.lease(KEYS[key], count, last)
            return
        lease = self.ledger.lease(KEYS[key], count, last)
        assert lease.first > self.spent.get(key, 0)
        assert lease == Lease(first, min(first + count, last + 1))
        self.roles[key] = Role.OUTBOUND
        self.next[key] = lease.end
        self.spent[key] = lease.end - 1
        if key in self.newest:
            self.old.append((key, self.newest[key]))
        self.newest[key] = lease
        self.joined[key] = Lease(self.joined.get(key, lease).first, lease.end)

    @precondition(lambda self: self.newest)
    @rule(data=st.data(), fraction=fractions, join=st.booleans())
    def release(self, data: st.DataObject, fraction: float, join: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.newest)))
        newest, joined = self.newest.pop(key), self.joined.pop(key)
        lease = joined if join else newest
        next_seq = lease.first + int((lease.end - lease.first) * fraction)
        next_seq = min(next_seq, lease.end)
        self.ledger.release(KEYS[key], lease, next_seq)
        self.next[key] = next_seq
        self.spent[key] = next_seq - 1
        self.old += [(key, newest), (key, joined)]

    @precondition(lambda self: self.old)
    @rule(data=st.data(), fraction=fractions)
    def release_a_lease_no_longer_held(self, data: st.DataObject, fraction: float) -> None:
        key, lease = data.draw(st.sampled_from(self.old))
        joined = self.joined.get(key)
        if joined is None or lease.end != joined.end or lease.first < joined.first:
            past = int((lease.end - lease.first) * fraction)
            self.ledger.release(KEYS[key], lease, min(lease.first + past, lease.end))

    @rule(key=keys)
    def read_floor(self, key: int) -> None:
        if not self.allowed(key, Role.INBOUND):
            with pytest.raises(KeyReuseError):
                self.ledger.replay_floor(KEYS[key])
            return
        _, (numbers,) = self.ledger.begin([], [FloorRequest(KEYS[key], None)])
        floor = self.highest.setdefault(key, 0)
        fence = max(floor, self.ceilings.get(key, 0))
        ceiling = min(max(fence, floor + MIN_MARGIN), 2**64 - 1)
        assert numbers == Reception(floor, fence, ceiling)
        self.roles[key] = Role.INBOUND
        self.ceilings[key] = ceiling

    @rule(floors=st.lists(st.tuples(keys, st.integers(0, 2**64 - 1)), max_size=4))
    def store_floors(self, floors: list[tuple[int, int]]) -> None:
        wanted = [(KEYS[key], highest) for key, highest in floors]
        if not all(self.allowed(key, Role.INBOUND) for key, _ in floors):
            with pytest.raises(KeyReuseError):
                self.ledger.store_replay_floors(wanted)
            return
        self.ledger.store_replay_floors(wanted)
        for key, highest in floors:
            self.roles[key] = Role.INBOUND
            self.highest[key] = max(highest, self.highest.get(key, 0))
            self.ceilings[key] = max(self.highest[key], self.ceilings.get(key, 0))

    @rule(key=keys, ceiling=st.integers(0, 2**64))
    def store_ceiling(self, key: int, ceiling: int) -> None:
        if not self.allowed(key, Role.INBOUND):
            with pytest.raises(KeyReuseError):
                self.ledger.end([], [], [(KEYS[key], ceiling)])
            return
        self.ledger.end([], [], [(KEYS[key], ceiling)])
        if key in self.roles or ceiling:
            self.roles[key] = Role.INBOUND
            floor = self.highest.setdefault(key, 0)
            self.ceilings[key] = min(max(ceiling, floor), 2**64 - 1)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.begin_new_life()

    @rule(lost=st.sets(st.sampled_from(["ledger.db-wal", "ledger.db-shm", "ledger.db.lock"])))
    def crash(self, lost: set[str]) -> None:
        before = self.path.parent
        self.lives += 1
        shutil.copytree(before, self.path.parent)
        for name in lost:
            (self.path.parent / name).unlink(missing_ok=True)
        self.ledger.close()
        self.begin_new_life()

    def begin_new_life(self) -> None:
        self.old += self.newest.items()
        self.newest.clear()
        self.joined.clear()
        self.ledger = Ledger.open(self.path, MACHINE)

    @invariant()
    def the_entries_match_the_model(self) -> None:
        if not hasattr(self, "ledger"):
            return
        shown = sorted((entry.role, entry.seq) for entry in self.ledger.entries())
        assert shown == sorted(
            (role, self.next[key] if role is Role.OUTBOUND else self.highest[key])
            for key, role in self.roles.items()
        )

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
        shutil.rmtree(self.root)


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
