"""The settings of a machine that are better for a gateway, each with its reason; without I/O.

A value that a person may have chosen is left: what isn't the kernel's default, or does no harm.

Sources: Documentation/networking/scaling.rst, Documentation/admin-guide/pm/cpufreq.rst and
Documentation/admin-guide/mm/transhuge.rst of Linux.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from esp_gw.tune.knobs import (
    BACKLOG,
    FEATURE,
    FLOW_TABLE,
    FLOWS,
    GOVERNOR,
    HUGE_PAGES,
    INTERRUPT,
    OFF,
    ON,
    RPS,
    SWAPPINESS,
    XPS,
    Place,
)
from esp_gw.tune.machine import Card, Interrupt, Machine, Use, listed

CARD, CLOCK, INTERRUPTS, STEERING, MEMORY = "card", "clock", "interrupts", "steering", "memory"
TOPICS = (CLOCK, INTERRUPTS, STEERING, CARD, MEMORY)

_SLOW_GOVERNORS = ("conservative", "ondemand", "powersave")
_FAST = "performance"
_SELF_CLOCKED = ("intel_pstate", "amd-pstate", "amd-pstate-epp")
"""Drivers of processors that choose their clock themselves, within microseconds."""
_MANY = 4
"""Processors from which on those that get the interrupts have enough to do with them."""
_TABLE = 4096
_BACKLOG = 4096
_DEFAULT_SWAPPINESS, _SWAPPINESS = 60, 10
STALLING = ("macb",)
"""Drivers that are known to stop sending with TCP segmentation in the card."""
_UNLIKE_QUEUES = ("bcmgenet",)
"""Drivers some of whose queues are for few packets: they choose by priority."""
_TCP = ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation")


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting: what it is now, what is better, and why, in one sentence."""

    topic: str
    place: Place
    now: str
    better: str
    why: str

    @property
    def is_right(self) -> bool:
        """True if there is nothing to change."""
        return self.now == self.better


def advise(machine: Machine, use: Use) -> list[Setting]:
    """Return all settings that matter here, those that are right among them."""
    found = [] if machine.contained else [*_clocks(machine)]
    for card in machine.cards:
        found += [*_interrupts(machine, card), *_steering(machine, card, use)]
        found += [*_sending(machine, card), *_features(card)]
    if machine.contained:
        # The rest is the host's, and its other containers'.
        return [each for each in found if each.place.knob != INTERRUPT]
    return [*found, *_shared(machine, found), *_memory(machine)]


def _clocks(machine: Machine) -> Iterator[Setting]:
    why = "it raises the clock only some time after the load: first packets are late"
    for clock in machine.clocks:
        is_slow = clock.governor in _SLOW_GOVERNORS and clock.driver not in _SELF_CLOCKED
        has_fast = not clock.available or _FAST in clock.available
        # A machine that is short of power or too hot would be slowed down all the more.
        better = _FAST if is_slow and has_fast and not machine.throttled else clock.governor
        yield Setting(CLOCK, Place(GOVERNOR, part=clock.policy), clock.governor, better, why)


def _interrupts(machine: Machine, card: Card) -> Iterator[Setting]:
    spread = _spread(machine, card)
    why = "one processor receives everything: all queues interrupt it"
    for each in card.interrupts:
        better = spread.get(each.label, each.cpus)
        place = Place(INTERRUPT, card.name, each.label)
        yield Setting(INTERRUPTS, place, f"{each.cpus:x}", f"{better:x}", why)


def _spread(machine: Machine, card: Card) -> dict[str, int]:
    """Return where the interrupts of a card's queues belong, if one processor has all of them."""
    cpus = listed(_usable(machine))
    if (
        machine.balances_interrupts
        or machine.contained
        or len(card.receive) < 2
        or len(card.interrupts) < 2
        or len(cpus) < 2
        or len({each.at for each in card.interrupts}) > 1
    ):
        return {}
    return {
        each.label: 1 << cpus[_queue_of(card, each, index) % len(cpus)]
        for index, each in enumerate(card.interrupts)
    }


def _queue_of(card: Card, interrupt: Interrupt, index: int) -> int:
    """Return the number of the queue in the name of an interrupt: 1 in eth0-TxRx-1."""
    name = interrupt.label.rpartition("#")[0].removeprefix(card.name)
    number = re.search(r"[.-](?:\w+-)?(\d+)$", name)
    return int(number[1]) if number else index


def _receives(interrupt: Interrupt) -> bool:
    """Return False for an interrupt that is named for packets sent, and not for both ways."""
    name = interrupt.label.lower()
    return "rx" in name or not ("tx" in name or "output" in name)


def _usable(machine: Machine) -> int:
    return machine.cpus & ~machine.isolated


def _steering(machine: Machine, card: Card, use: Use) -> Iterator[Setting]:
    usable, spread = _usable(machine), _spread(machine, card)
    at = [spread.get(each.label, each.at) for each in card.interrupts if _receives(each)]
    receiving = len(set(at)) if at else len(card.receive)
    if receiving >= len(listed(usable)):
        return
    busy = 0
    for mask in at:
        busy |= mask
    # scaling.rst: where there are many interrupts, without the processors that get them.
    others = (usable & ~busy if len(listed(usable)) >= _MANY else 0) or usable
    others = others & card.near or others
    why = f"{card.name} interrupts {receiving} of {len(listed(usable))} processors: others help it"
    for queue in card.receive:
        if queue.cpus is not None:
            better = queue.cpus or others
            place = Place(RPS, card.name, queue.name)
            yield Setting(STEERING, place, f"{queue.cpus:x}", f"{better:x}", why)
    why = "a packet is handled on the processor of the thread that reads it"
    share = _TABLE
    while share * len(card.receive) > _TABLE and share > 1:
        share //= 2
    for queue in card.receive:
        if queue.flows is not None and (machine.flow_table or not machine.contained):
            # One flow of several readers would be moved by each of them.
            better = queue.flows if use.shares_flows else queue.flows or share
            place = Place(FLOWS, card.name, queue.name)
            yield Setting(STEERING, place, str(queue.flows), str(better), why)


def _sending(machine: Machine, card: Card) -> Iterator[Setting]:
    cpus = listed(_usable(machine))
    why = "each processor has a queue of its own, and waits for no other's lock"
    is_unset = all(queue.cpus == 0 for queue in card.send)
    if len(cpus) < 2 or len(card.send) < len(cpus) or card.driver in _UNLIKE_QUEUES:
        return
    for index, queue in enumerate(card.send):
        if queue.cpus is not None:
            better = 1 << cpus[index % len(cpus)] if is_unset else queue.cpus
            place = Place(XPS, card.name, queue.name)
            yield Setting(STEERING, place, f"{queue.cpus:x}", f"{better:x}", why)


def _features(card: Card) -> Iterator[Setting]:
    if card.active is None:
        return
    stalls = card.driver in STALLING or card.stalls > 0
    wanted = {"rx-gro": (ON, "packets of a batch are received as one")}
    if stalls:
        why = f"{card.driver or card.name} may stop sending with it; ESP never uses it"
        wanted |= dict.fromkeys(_TCP, (OFF, why))
    else:
        why = "a batch of ESP packets goes through the kernel as one"
        wanted["tx-generic-segmentation"] = (ON, why)
        wanted["tx-udp-segmentation"] = (ON, "the card cuts a batch of ESP packets into packets")
    for name, (better, why) in wanted.items():
        now = ON if name in card.active else OFF
        # Wanted and still not in use: something else stands in its way, and goes on to.
        if name in card.changeable and (name in card.wanted) == (now == ON):
            yield Setting(CARD, Place(FEATURE, card.name, name), now, better, why)


def _shared(machine: Machine, found: list[Setting]) -> Iterator[Setting]:
    """Yield the settings of all cards together that follow from those of each."""
    has_flows = any(each.place.knob == FLOWS and each.better != "0" for each in found)
    if machine.flow_table is not None and has_flows:
        why = "the table of the threads that read flows, for all cards"
        better = str(machine.flow_table or _TABLE)
        yield Setting(STEERING, Place(FLOW_TABLE), str(machine.flow_table), better, why)
    hands_over = any(each.place.knob == RPS and each.better != "0" for each in found)
    if machine.backlog is not None and (hands_over or machine.backlog_lost):
        why = "the queue of one processor for another has to hold a burst"
        better = str(max(machine.backlog, _BACKLOG))
        yield Setting(STEERING, Place(BACKLOG), str(machine.backlog), better, why)


def _memory(machine: Machine) -> Iterator[Setting]:
    if machine.huge_pages is not None:
        better = "madvise" if machine.huge_pages == "never" else machine.huge_pages
        why = "the native engine asks for huge pages: fewer misses of the TLB"
        yield Setting(MEMORY, Place(HUGE_PAGES), machine.huge_pages, better, why)
    is_worn = any(each.has_swap for each in machine.storage) and not machine.swaps_in_memory
    if machine.swappiness is not None and is_worn:
        is_default = machine.swappiness == _DEFAULT_SWAPPINESS
        better = str(_SWAPPINESS if is_default else machine.swappiness)
        why = "swap is on an SD card, which writes slowly and wears out"
        yield Setting(MEMORY, Place(SWAPPINESS), str(machine.swappiness), better, why)
