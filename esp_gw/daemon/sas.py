"""The SAs in the engine, and their sequence numbers in the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from esp_gw.daemon.ceilings import Ceilings
from esp_gw.daemon.reconcile import GRACE, RETIRED_MARK, InstallSa, RetireSa, retired_name
from esp_gw.engine.base import Engine, SaCounters
from esp_gw.errors import LedgerError
from esp_gw.ledger.thread import SequenceNumbers
from esp_gw.logs import log
from esp_gw.model import Direction, DropReason, KeyMaterial, Lease, Origin, Reception, Sa

DUMMY_WAIT = 600.0
"""Longest time, in seconds, for which a replay floor advanced by dummies alone is not written.

An idle gateway with authentic keepalives must not wear out a flash card.
"""
_NOT_ACCEPTED = (
    DropReason.TOO_SHORT,
    DropReason.WRONG_ENCAPSULATION,
    DropReason.AUTH_FAILED,
    DropReason.REPLAY_OLD,
    DropReason.REPLAY_DUPLICATE,
    DropReason.DUMMY,
)
"""Drops of packets that advanced no window, and of dummies: no reason to write a floor."""
_NAMED = 5
"""SAs named in a log line about many."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Inner packets and bytes, and drops by reason, of all SAs that had one name."""

    packets: int = 0
    bytes: int = 0
    drops: Mapping[str, int] = field(default_factory=dict)

    def plus(self, counters: SaCounters) -> Totals:
        """Return the totals with another SA's counters."""
        return Totals(
            self.packets + counters.packets,
            self.bytes + counters.bytes,
            Counter(self.drops) + Counter(counters.drops),
        )


@dataclass(slots=True)
class _Installed:
    """An SA in the engine; `lease` is the leased range whose unused part the ledger takes back.

    `numbers` are those that an inbound SA may have received before. `accepted` counts the packets
    other than dummies that it had accepted when its floor was last written. A retired SA is there
    `until` the end of its grace time; `origin` was its name before.
    """

    sa: Sa
    lease: Lease | None = None
    numbers: Reception = field(default_factory=Reception)
    accepted: int = 0
    until: float | None = None
    origin: str = ""


Registered = Mapping[str, _Installed]
"""SAs registered in the ledger and ready to install, by name."""
_NONE: Registered = {}


class InstalledSas:
    """The SAs of a gateway; only its change queue installs and removes them."""

    def __init__(self, engine: Engine, ledger: SequenceNumbers) -> None:
        self._engine = engine
        self._ledger = ledger
        self._installed: dict[str, _Installed] = {}
        self._floors: dict[KeyMaterial, int] = {}
        self._unwritten_since: dict[KeyMaterial, float] = {}
        self._ceilings = Ceilings()
        self._near: dict[str, int] = {}
        self._former: dict[str, Totals] = {}
        self.last: dict[str, SaCounters] = {}
        """The last counters of IKE's removed SAs, until somebody pops them."""

    def __contains__(self, name: str) -> bool:
        """True for an SA in the engine."""
        return name in self._installed

    def find(self, name: str) -> Sa | None:
        """Return the SA in the engine with this name."""
        entry = self._installed.get(name)
        return None if entry is None else entry.sa

    @property
    def sas(self) -> dict[str, Sa]:
        """The SAs in the engine, by name."""
        return {name: entry.sa for name, entry in self._installed.items()}

    @property
    def retired(self) -> dict[str, float]:
        """The ends of the grace times of the retired SAs, by name, in the loop's time."""
        return {
            name: entry.until for name, entry in self._installed.items() if entry.until is not None
        }

    def in_grace(self, now: float) -> dict[str, str]:
        """Return the SAs in their grace time, each with its successor's name."""
        return {
            name: entry.origin
            for name, entry in self._installed.items()
            if entry.until is not None and now < entry.until
        }

    def totals(self, counters: Mapping[str, SaCounters]) -> dict[str, Totals]:
        """Return what all SAs of each name have counted; `counters` are the engine's."""
        totals = dict(self._former)
        for name, entry in self._installed.items():
            if name in counters:
                origin = entry.origin or name
                totals[origin] = totals.get(origin, Totals()).plus(counters[name])
        return totals

    async def register(self, sas: Sequence[Sa]) -> Registered:
        """Register SAs in the ledger, which refuses before anything is changed.

        Raises LedgerError.
        """
        if not sas:
            return {}
        outbound = [sa for sa in sas if sa.direction is Direction.OUTBOUND]
        inbound = [sa for sa in sas if sa.direction is Direction.INBOUND]
        leases, received = await self._ledger.begin(outbound, inbound)
        ready = {sa.name: _Installed(sa, lease) for sa, lease in zip(outbound, leases, strict=True)}
        for sa, numbers in zip(inbound, received, strict=True):
            floor = max(numbers.floor, self._floors.get(sa.keymat, 0))
            ready[sa.name] = _Installed(sa, numbers=replace(numbers, floor=floor))
        return ready

    async def install(self, changes: Sequence[InstallSa], ready: Registered, now: float) -> None:
        """Install SAs in one step, registered ones and those that take over another's numbers.

        Raises EngineError; nothing is changed in that case.
        """
        retiring = {
            change.retires.name: replace(
                change.retires, name=retired_name(change.retires), selectors=change.sa.selectors
            )
            for change in changes
            if change.retires is not None
        }
        with self._engine.at_once():
            for name, sa in retiring.items():
                self._engine.replace_sa(name, sa)
            for change in changes:
                if change.moves is not None:
                    self._engine.replace_sa(change.moves, change.sa)
                    continue
                entry = ready[change.name]
                if entry.lease is not None:
                    self._engine.install_outbound(entry.sa, entry.lease)
                else:
                    floor = max(entry.numbers.floor, self._highest(change))
                    ceiling = self._ceilings.begin(entry.sa.keymat, entry.numbers, now)
                    self._engine.install_inbound(entry.sa, floor, ceiling.fence, ceiling.notice_at)
                    if entry.sa.learns_peer and ceiling.fence > floor:
                        log.warning(
                            "after a crash the peer is followed only once these packets have come",
                            sa=change.name,
                            packets=ceiling.fence - floor,
                        )
        moved = {c.name: self._installed.pop(c.moves) for c in changes if c.moves is not None}
        retired = self._retire(retiring, {name: name for name in retiring}, now)
        for change in changes:
            entry = moved.get(change.name) or ready[change.name]
            entry.sa = change.sa
            if RETIRED_MARK not in change.name:
                entry.until, entry.origin = None, ""
            self._installed[change.name] = entry
        # Events of the engine with a former name may be lost.
        self._watch({entry.sa.keymat for entry in (*moved.values(), *retired)})
        # The engine sends nothing through it any more.
        await self.remove([entry.sa.name for entry in retired if entry.lease is not None])

    def retire(self, changes: Sequence[RetireSa], now: float) -> None:
        """Begin the grace time of SAs that nobody wants any more. Raises EngineError."""
        retiring = {c.sa.name: replace(c.sa, name=retired_name(c.sa)) for c in changes}
        with self._engine.at_once():
            for name, sa in retiring.items():
                self._engine.replace_sa(name, sa)
        retired = self._retire(retiring, {change.sa.name: change.heir for change in changes}, now)
        self._watch({entry.sa.keymat for entry in retired})

    def _retire(
        self, retiring: Mapping[str, Sa], origins: Mapping[str, str], now: float
    ) -> list[_Installed]:
        retired = [self._installed.pop(name) for name in retiring]
        for (name, sa), entry in zip(retiring.items(), retired, strict=True):
            entry.sa, entry.until, entry.origin = sa, now + GRACE, origins[name]
            self._installed[sa.name] = entry
        return retired

    def _highest(self, change: InstallSa) -> int:
        """Return the highest number of the same key under the SPI that retires, or 0."""
        if change.retires is None or change.retires.keymat != change.sa.keymat:
            return 0
        return self._engine.counters().sas[change.retires.name].seq

    async def remove(self, names: Sequence[str], ready: Registered = _NONE) -> None:
        """Remove SAs; return the unused rest of their leases, and store their replay floors.

        A packet accepted since the ledger was read must not be accepted again by an SA in `ready`
        with the same key, whose floor is raised.
        """
        if not names:
            return
        counters = self._engine.remove_sas(names)
        successors = {entry.sa.keymat: entry for entry in ready.values()}
        gone = [(self._installed.pop(name), c) for name, c in zip(names, counters, strict=True)]
        for entry, last in gone:
            origin = entry.origin or entry.sa.name
            self._former[origin] = self._former.get(origin, Totals()).plus(last)
            if entry.sa.origin is Origin.IKE:
                self.last[entry.sa.name] = last
            if (successor := successors.get(entry.sa.keymat)) is not None:
                numbers = successor.numbers
                successor.numbers = replace(numbers, floor=max(numbers.floor, last.seq))
        # Where a key goes on, the ledger has leased numbers after these. Told apart by their bytes,
        # as thousands have to be looked at.
        ended = {entry.sa.keymat.key for entry, _ in gone}
        there = [entry.sa.keymat for entry in self._installed.values()]
        used = {keymat for keymat in there if keymat.key in ended} | successors.keys()
        await self._write([(entry, last.seq) for entry, last in gone], used)

    def forget(self, keys: Iterable[KeyMaterial]) -> None:
        """Forget the floors of retired keys that are not written yet."""
        for key in keys:
            self._floors.pop(key, None)
            self._unwritten_since.pop(key, None)

    async def remove_all(self) -> None:
        """Remove every SA as `remove` does."""
        await self.remove(list(self._installed))

    def end_grace(self, names: Set[str], now: float) -> bool:
        """End the grace time of these SAs; return True if there are any."""
        for name in names:
            self._installed[name].until = now
        return bool(names)

    def forget_totals(self) -> None:
        """Forget the counters of names that no SA has any more."""
        names = {entry.origin or name for name, entry in self._installed.items()}
        self._former = {name: totals for name, totals in self._former.items() if name in names}

    async def extend_lease(self, name: str) -> bool:
        """Lease more numbers for an outbound SA; return True if it nears the end of its numbers.

        Does nothing for an SA that is gone meanwhile. Raises LedgerError.
        """
        entry = self._installed.get(name)
        if entry is None or entry.lease is None:
            return False
        if entry.lease.end > entry.sa.last_seq:
            log.warning("an SA is using its last sequence numbers: give it a new key", sa=name)
            return False
        lease = await self._ledger.lease(entry.sa)
        # The SA may have been renamed or removed while the ledger wrote.
        if self._installed.get(entry.sa.name) is entry:
            self._engine.extend_lease(entry.sa.name, lease)
            joined = lease.first == entry.lease.end
            entry.lease = Lease(entry.lease.first, lease.end) if joined else lease
        # An engine need not know the lower last_seq of an SA that another program began.
        last = entry.sa.last_seq
        return bool(entry.sa.used_seq) and lease.first <= last - last // 8 < lease.end

    async def write_floors(self, now: float) -> None:
        """Write the replay floors that advanced; an idle gateway writes nothing.

        Those that dummies alone have advanced wait for DUMMY_WAIT, or until another packet comes.
        Raises LedgerError; the floors are then written by the next call.
        """
        advanced = self._engine.advanced_replay_floors()
        if not advanced and not self._floors and not self._ceilings.is_moving:
            self._ceilings.count({}, now)
            return
        # Counted before the floors are read: a packet that is in a floor and not in the counters
        # yet is in those of the next call.
        accepted = self._accepted()
        advanced |= self._engine.advanced_replay_floors()
        arrived: dict[KeyMaterial, int] = {}
        for name, seq in advanced.items():
            # A key may be there under two SPIs.
            key = self._installed[name].sa.keymat
            self._floors[key] = max(seq, self._floors.get(key, 0))
            arrived[key] = self._floors[key]
        self._ceilings.count(arrived, now)
        excessive = self._ceilings.excessive()
        idle = self._only_dummies(accepted, now) - excessive
        floors = {key: seq for key, seq in self._floors.items() if key not in idle}
        if not floors and not excessive:
            return
        await self._write_ahead(floors, self._ceilings.choose(floors.keys() | excessive))
        for entry, count in accepted:
            if entry.sa.keymat in floors:
                entry.accepted = count

    def near(self, name: str, highest: int) -> bool:
        """Note that an inbound SA nears its ceiling; return True if that has to be raised."""
        is_first = not self._near
        self._near[name] = highest
        return is_first

    async def raise_ceilings(self, now: float) -> None:
        """Write the next ceilings of all SAs that near theirs, with their floors.

        Raises LedgerError; the ceilings are then written by the next call.
        """
        while near := dict(self._near):
            floors: dict[KeyMaterial, int] = {}
            for name, highest in near.items():
                if (entry := self._installed.get(name)) is not None:
                    key = entry.sa.keymat
                    floors[key] = max(highest, floors.get(key, 0))
            chosen = {key: self._ceilings.reach(key, seq, now) for key, seq in floors.items()}
            if chosen:
                await self._write_ahead(floors, chosen)
            for name, highest in near.items():
                if self._near.get(name) == highest:
                    del self._near[name]

    async def _write_ahead(
        self, floors: dict[KeyMaterial, int], chosen: Mapping[KeyMaterial, int]
    ) -> None:
        """Write floors and ceilings; the engine tells when numbers near these. Raises LedgerError.

        A lower ceiling is watched before it is on disk, a higher one after that.
        """
        self._watch(self._ceilings.lowered(chosen))
        await self._ledger.end([], list(floors.items()), list(chosen.items()))
        self._watch(chosen.keys())
        self._drop_written(floors)

    def _watch(self, keys: Set[KeyMaterial]) -> None:
        if not keys:
            return
        self._engine.watch_numbers(
            {
                name: self._ceilings.of(entry.sa.keymat).notice_at
                for name, entry in self._installed.items()
                if entry.lease is None and entry.sa.keymat in keys
            }
        )

    def _accepted(self) -> list[tuple[_Installed, int]]:
        """Return the inbound SAs, each with the packets other than dummies that it has accepted."""
        counters = self._engine.counters().sas
        found = []
        for name, entry in self._installed.items():
            if entry.lease is None:
                drops = counters[name].drops
                refused = sum(drops.get(reason, 0) for reason in _NOT_ACCEPTED)
                found.append((entry, counters[name].packets + sum(drops.values()) - refused))
        return found

    def _only_dummies(
        self, accepted: Sequence[tuple[_Installed, int]], now: float
    ) -> Set[KeyMaterial]:
        """Return the keys whose floors may wait."""
        for key in self._floors:
            self._unwritten_since.setdefault(key, now)
        busy = {entry.sa.keymat for entry, count in accepted if count != entry.accepted}
        return {
            entry.sa.keymat
            for entry, _ in accepted
            if now - self._unwritten_since.get(entry.sa.keymat, now) < DUMMY_WAIT
        } - busy

    def _drop_written(self, floors: dict[KeyMaterial, int]) -> None:
        for key, seq in floors.items():
            self._unwritten_since.pop(key, None)
            if self._floors.get(key) == seq:
                del self._floors[key]

    async def _write(self, gone: Sequence[tuple[_Installed, int]], used: Set[KeyMaterial]) -> None:
        """Write the last sequence numbers of removed SAs to the ledger; keys in `used` go on."""
        floors = {entry.sa.keymat: seq for entry, seq in gone if entry.lease is None}
        self._floors |= floors
        ceilings = self._ceilings.end((key, seq) for key, seq in floors.items() if key not in used)
        leases = [
            (entry.sa.keymat, entry.lease, seq)
            for entry, seq in gone
            if entry.lease is not None and entry.sa.keymat not in used
        ]
        try:
            await self._ledger.end(leases, list(floors.items()), list(ceilings.items()))
        except LedgerError as error:
            # IVs are safe: the rest of the lease counts as used.
            names = ", ".join(entry.sa.name for entry, _ in gone[:_NAMED])
            more = f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else ""
            log.error("can't write the ledger", sa=f"{names}{more}", reason=str(error))
        else:
            self._drop_written(floors)
