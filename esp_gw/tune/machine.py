"""A machine as `esp-gw tune` and `esp-gw doctor` see it, without I/O: values, and what they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Interrupt:
    """An interrupt of a card: its label among the card's, the processors that it may go to, a bit
    for each, and those that it goes to.
    """

    label: str
    cpus: int
    at: int


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue of a card: `rx-0`, `tx-0`.

    `cpus` are the processors that the kernel hands its packets to (RPS), or that send by it (XPS),
    `flows` the entries of its flow table (RFS). None is what the kernel doesn't have.
    """

    name: str
    cpus: int | None = None
    flows: int | None = None


@dataclass(frozen=True, slots=True)
class Card:
    """A network card.

    Its features are by their names in the kernel: those that can be changed, those that
    somebody wants, and those in use.
    `adaptive` is True if the pause between its interrupts follows the load, `ring` the size and the
    greatest size of the receive ring. `overruns` and `stalls` count since the boot: packets that
    found no room on their way into memory, and times at which sending stopped. `aspm` is the file
    that lets its PCI link sleep, if it may. `near` are the processors of its part of the memory, a
    bit for each, or 0. None is unknown.
    """

    name: str
    driver: str = ""
    receive: tuple[Queue, ...] = ()
    send: tuple[Queue, ...] = ()
    interrupts: tuple[Interrupt, ...] = ()
    changeable: frozenset[str] = frozenset()
    wanted: frozenset[str] = frozenset()
    active: frozenset[str] | None = None
    adaptive: bool | None = None
    ring: tuple[int, int] = (0, 0)
    eee: bool | None = None
    overruns: int = 0
    stalls: int = 0
    aspm: str = ""
    near: int = 0


@dataclass(frozen=True, slots=True)
class Clock:
    """The governor of some processors' clock, and the driver that it speaks to."""

    policy: str
    governor: str
    driver: str = ""
    available: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Storage:
    """An SD card or eMMC: bytes written since the boot, and if swap is on it."""

    name: str
    written: int
    has_swap: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything that advice is given on; None is what this kernel doesn't have.

    `cpus` are the processors online, in a container (`contained`) those that it may use, `isolated`
    those that the scheduler leaves alone, a bit for each. `throttled` says in words what has slowed
    the processors down. `uptime` is in seconds. `datagrams` and `datagrams_lost` count those
    received, and those that found a socket's buffer full; `backlog_lost` packets that found a
    processor's queue full. Swap in zram `swaps_in_memory`.
    """

    cpus: int = 1
    isolated: int = 0
    contained: bool = False
    release: str = ""
    traces_interrupts: bool = False
    balances_interrupts: bool = False
    clocks: tuple[Clock, ...] = ()
    throttled: tuple[str, ...] = ()
    huge_pages: str | None = None
    swappiness: int | None = None
    swaps_in_memory: bool = False
    flow_table: int | None = None
    backlog: int | None = None
    backlog_lost: int = 0
    datagrams: int = 0
    datagrams_lost: int = 0
    uptime: float = 0.0
    storage: tuple[Storage, ...] = ()
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True, slots=True)
class Use:
    """How the gateway uses the machine: workers that are pinned, and one outer flow for several.

    Packets of several SAs in UDP look like one flow to the kernel.
    """

    pinned: bool = False
    shares_flows: bool = False


def listed(mask: int) -> list[int]:
    """Return the processors of a mask."""
    return [number for number in range(mask.bit_length()) if mask >> number & 1]


def parse_mask(text: str) -> int:
    """Return a mask of processors as sysfs has it: `f`, `00000000,0000000f`. Raises ValueError."""
    return int(text.strip().replace(",", "") or "0", 16)


def parse_list(text: str) -> int:
    """Return the mask of a list of processors: `0-3,5`. Raises ValueError."""
    mask = 0
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1):
                mask |= 1 << number
    return mask
