"""Advice on a machine that a person has to follow: known faults of cards, and their evidence.

Without I/O. Each has the command or the line of a file that mends it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from esp_gw.tune.advice import CARD, STALLING
from esp_gw.tune.machine import Card, Machine, Use, listed

KERNEL, THROTTLING, BUFFERS, WRITES, PROCESSORS = (
    *("kernel", "throttling", "buffers", "writes", "processors"),
)
DAY, HOUR = 86_400, 3_600
_SAVES_ENERGY = ("macb", "bcmgenet")
"""Drivers whose PHY is known to lose packets as it wakes up."""
_VIRTUAL = ("", "veth", "virtio_net", "vmxnet3", "xen-netfront", "hv_netvsc")
"""Drivers without a card of their own: the host decides when it interrupts."""
_LOST_SHARE = 1000
"""One datagram of this many lost is worth a word."""
_MUCH_A_DAY = 5 << 30
_MANY = 4


@dataclass(frozen=True, slots=True)
class Hint:
    """A fault, or its likely cause, in one sentence, and what to do."""

    topic: str
    found: str
    todo: str


def hints(machine: Machine, use: Use) -> list[Hint]:
    """Return what a person can do for the gateway on this machine."""
    return [
        *_kernel(machine),
        *(Hint(THROTTLING, text, _remedy(text)) for text in machine.throttled),
        *(hint for card in machine.cards for hint in _card(card)),
        *_buffers(machine),
        *_processors(machine, use),
        *_writes(machine),
    ]


def written_a_day(machine: Machine, written: int) -> int | None:
    """Return bytes a day from those since the boot; None where that is too short ago."""
    return int(written * DAY / machine.uptime) if machine.uptime >= HOUR else None


def _kernel(machine: Machine) -> Iterator[Hint]:
    if machine.traces_interrupts:
        found = (
            "this kernel is built with CONFIG_IRQSOFF_TRACER: each change of the interrupts' state "
            "is traced, which takes a third and more of a small board's throughput"
        )
        yield Hint(KERNEL, found, "update it: newer ones of Raspberry Pi OS are built without")


def _remedy(text: str) -> str:
    if "voltage" in text:
        return "use a stronger power supply: the processors are slowed down meanwhile"
    return "cool it: the processors are slowed down meanwhile"


def _card(card: Card) -> Iterator[Hint]:
    name = card.name
    if card.active is not None and not any(each.startswith("tx-checksum") for each in card.active):
        found = f"{name} computes no checksums: the kernel refuses batches, and sends one by one"
        yield Hint(
            CARD, found, f"try 'ethtool -K {name} tx on', unless it was switched off for a fault"
        )
    if card.eee and card.driver in _SAVES_ENERGY:
        found = f"{name} saves energy between packets (EEE), and {card.driver} may lose some by it"
        todo = f"try 'ethtool --set-eee {name} eee off'; dtparam=eee=off in config.txt keeps it"
        yield Hint(CARD, found, todo)
    if card.adaptive is False and card.driver not in _VIRTUAL:
        # No setting: some drivers then store what they adapt as if somebody had set it.
        found = f"{name} interrupts for each packet, also under load"
        todo = f"try 'ethtool -C {name} adaptive-rx on': it may change the times that "
        yield Hint(CARD, found, f"{todo}'ethtool -c {name}' shows now")
    if card.stalls:
        times = "once" if card.stalls == 1 else f"{card.stalls} times"
        found = f"{name} has stopped sending {times} since the boot"
        yield Hint(CARD, found, "update the kernel, and see 'dmesg'")
    if card.overruns:
        yield _overrun(card)


def _overrun(card: Card) -> Hint:
    found = f"{card.name} had no room for {card.overruns} received packets since the boot"
    size, greatest = card.ring
    if card.aspm:
        found += ", and its PCI link may sleep (ASPM)"
        return Hint(CARD, found, f"try 'echo 0 | sudo tee {card.aspm}', until the next boot")
    if size < greatest:
        todo = f"try 'ethtool -G {card.name} rx {greatest}': the link may be down for a second"
        return Hint(CARD, found, todo)
    if card.driver in STALLING:
        return Hint(CARD, found, "update the kernel; the switch's flow control may help")
    return Hint(CARD, found, "see 'esp-gw tune' for its interrupts")


def _buffers(machine: Machine) -> Iterator[Hint]:
    if machine.datagrams_lost * _LOST_SHARE > machine.datagrams:
        found = (
            f"{machine.datagrams_lost} datagrams of all programs found a full buffer since the boot"
        )
        yield Hint(BUFFERS, found, "'esp-gw explain --drops' says how many were the gateway's")


def _processors(machine: Machine, use: Use) -> Iterator[Hint]:
    cpus = listed(machine.cpus)
    if use.pinned and not machine.isolated and len(cpus) >= _MANY:
        own = f"1-{cpus[-1]}"
        found = "workers are pinned, and other programs run on their processors, too"
        todo = (
            f"on a machine for the gateway alone add 'isolcpus={own}' to the kernel's command "
            f"line, and 'CPUAffinity={own}' to the unit ('systemctl edit esp-gw')"
        )
        yield Hint(PROCESSORS, found, todo)


def _writes(machine: Machine) -> Iterator[Hint]:
    for each in machine.storage:
        daily = written_a_day(machine, each.written)
        if daily is not None and daily > _MUCH_A_DAY:
            found = (
                f"{each.name} gets {daily / 2**30:.1f} GiB of writes a day, and wears out by them"
            )
            todo = "see 'sudo iotop -aoP' for whose they are; 'Storage=volatile' in journald.conf"
            yield Hint(WRITES, found, todo)
