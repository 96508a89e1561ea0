"""On any machine, with any failures: all that is made is taken back, and nothing else."""

from __future__ import annotations

import errno
from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from esp_gw.tune.advice import advise
from esp_gw.tune.knobs import Place, fault_of
from esp_gw.tune.machine import Card, Clock, Interrupt, Machine, Queue, Storage, Use
from esp_gw.tune.making import Record, make, make_again, take_back

MASKS = st.integers(0, 255)
FEATURES = ("rx-gro", "tx-generic-segmentation", "tx-udp-segmentation", "tx-tcp-segmentation")


def queues(kind: str) -> st.SearchStrategy[tuple[Queue, ...]]:
    masks = st.none() | st.sampled_from([0, 0, 3])
    found = st.lists(st.tuples(masks, st.none() | st.sampled_from([0, 0, 64])), max_size=6)
    return found.map(
        lambda each: tuple(Queue(f"{kind}-{n}", *values) for n, values in enumerate(each))
    )


NAMES = st.sets(st.sampled_from(FEATURES)).map(frozenset)
INTERRUPTS = st.lists(st.tuples(MASKS.filter(bool), MASKS.filter(bool)), max_size=6).map(
    lambda each: tuple(
        Interrupt(f"eth0-{('rx', 'tx', 'TxRx')[n % 3]}-{n // 2}#0", *masks)
        for n, masks in enumerate(each)
    )
)
CARDS = st.builds(
    Card,
    st.sampled_from(["eth0", "end1"]),
    driver=st.sampled_from(["", "macb", "bcmgenet", "virtio_net", "igb"]),
    receive=queues("rx"),
    send=queues("tx"),
    interrupts=INTERRUPTS,
    changeable=NAMES,
    active=st.none() | NAMES,
    wanted=NAMES,
    stalls=st.integers(0, 1),
)
# Mostly what is wanted is in use.
CARDS |= CARDS.map(lambda card: replace(card, wanted=card.active or frozenset()))
MACHINES = st.builds(
    Machine,
    cpus=MASKS,
    isolated=MASKS,
    contained=st.booleans(),
    balances_interrupts=st.booleans(),
    clocks=st.lists(
        st.sampled_from(["ondemand", "performance", "schedutil", "powersave"]), max_size=3
    ).map(lambda each: tuple(Clock(f"policy{n}", name) for n, name in enumerate(each))),
    throttled=st.just(()) | st.just(("it is too hot now",)),
    huge_pages=st.none() | st.sampled_from(["always", "madvise", "never"]),
    swappiness=st.none() | st.integers(0, 200),
    flow_table=st.none() | st.sampled_from([0, 128]),
    backlog=st.none() | st.integers(0, 9000),
    backlog_lost=st.integers(0, 1),
    storage=st.just(()) | st.just((Storage("mmcblk0", 0, has_swap=True),)),
    cards=st.lists(CARDS, max_size=2, unique_by=lambda card: card.name).map(tuple),
)
USES = st.builds(Use, st.booleans(), st.booleans())
# Of each write: done, refused, half done with an error or without, in turn.
FATES = st.lists(st.sampled_from(["done", "done", "refused", "half", "rounded"]), max_size=30)


@dataclass
class FakeKernel:
    """Values by place, and the fates of the next writes."""

    values: dict[Place, str]
    fates: list[str] = field(default_factory=list)

    def read(self, place: Place) -> str:
        if place not in self.values:
            raise OSError(errno.ENOENT, "No such file or directory")
        return self.values[place]

    def write(self, place: Place, value: str) -> None:
        fate = self.fates.pop() if self.fates else "done"
        if fate == "done":
            self.values[place] = value
        elif fate != "refused":
            self.values[place] = "9"
        if fate in ("refused", "half"):
            raise OSError(errno.EIO, "Input/output error")


@dataclass
class FakeBook:
    """A record in memory."""

    record: Record = field(default_factory=Record)

    def load(self) -> Record:
        return self.record

    def save(self, record: Record) -> None:
        self.record = record


@given(MACHINES, USES, FATES, st.integers(1, 3))
def test_what_was_made_is_taken_back_whatever_failed(
    machine: Machine, use: Use, fates: list[str], times: int
) -> None:
    settings = advise(machine, use)
    # A card's features are off or on by its own word.
    before = {each.place: each.now for each in settings}
    kernel, book = FakeKernel(dict(before), list(fates)), FakeBook()
    for _ in range(times):
        make(settings, kernel, book, "boot")
    changed = {place for place in before if kernel.values[place] != before[place]}
    assert changed <= set(book.record.entries)
    kernel.fates.clear()
    assert all(step.done for step in take_back(kernel, book))
    assert kernel.values == before
    assert book.record.entries == {}


@given(MACHINES, USES, FATES)
def test_taking_back_that_fails_is_finished_by_the_next(
    machine: Machine, use: Use, fates: list[str]
) -> None:
    settings = advise(machine, use)
    before = {each.place: each.now for each in settings}
    kernel, book = FakeKernel(dict(before)), FakeBook()
    make(settings, kernel, book, "boot")
    kernel.fates = list(fates)
    while kernel.fates and book.record.entries:
        take_back(kernel, book)
    take_back(kernel, book)
    assert kernel.values == before
    assert book.record.entries == {}


@given(MACHINES, USES, FATES)
def test_a_boot_in_between_changes_nothing_of_that(
    machine: Machine, use: Use, fates: list[str]
) -> None:
    settings = advise(machine, use)
    before = {each.place: each.now for each in settings}
    kernel, book = FakeKernel(dict(before)), FakeBook()
    make(settings, kernel, book, "boot")
    kernel.values = dict(before)
    kernel.fates = list(fates)
    make_again(kernel, book, "later")
    kernel.fates.clear()
    make_again(kernel, book, "later")
    made = dict(kernel.values)
    make_again(kernel, book, "later")
    assert kernel.values == made == {each.place: each.better for each in settings}
    take_back(kernel, book)
    assert kernel.values == before


@given(MACHINES, USES)
def test_every_setting_is_a_known_place_with_known_values_once(machine: Machine, use: Use) -> None:
    settings = advise(machine, use)
    assert [fault_of(each.place, each.now, each.better) for each in settings] == [None] * len(
        settings
    )
    assert len({each.place for each in settings}) == len(settings)
    assert all(each.better != "0" for each in settings if not each.is_right)
    # On a line of 80 columns, below its setting.
    assert all(0 < len(each.why) <= 74 and "\n" not in each.why for each in settings)
