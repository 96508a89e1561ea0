"""Machines as /sys, /proc and ethtool show them, in a folder: a Pi 4, a Pi 5, a PC, a container."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from esp_gw.tune.ethtool import Ethtool, Features
from esp_gw.tune.places import Places

SOFT = frozenset({"rx-gro", "tx-generic-segmentation", "tx-checksum-ip-generic"})
TCP = frozenset({"tx-tcp-segmentation", "tx-tcp6-segmentation"})


@dataclass
class FakeCard:
    """The part of a card that ethtool shows; `stuck` features stay off, though wanted."""

    changeable: frozenset[str] = SOFT
    wanted: frozenset[str] = SOFT
    stuck: frozenset[str] = frozenset()
    adaptive: bool | None = None
    ring: tuple[int, int] | None = None
    eee: bool | None = None


class FakeEthtool(Ethtool):
    """ethtool of some cards; `refuses` are parts whose change fails."""

    def __init__(self, cards: Mapping[str, FakeCard]) -> None:
        self.cards = dict(cards)
        self.refuses: set[str] = set()

    def close(self) -> None:
        pass

    def _card(self, name: str) -> FakeCard:
        if name not in self.cards:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return self.cards[name]

    def features(self, card: str) -> Features:
        found = self._card(card)
        return Features(found.changeable, found.wanted, (found.wanted | {"highdma"}) - found.stuck)

    def set_feature(self, card: str, name: str, value: bool) -> None:
        found = self._card(card)
        if name in self.refuses or name not in found.changeable:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        found.wanted = found.wanted | {name} if value else found.wanted - {name}

    def is_adaptive(self, card: str) -> bool | None:
        return self._card(card).adaptive

    def receive_ring(self, card: str) -> tuple[int, int]:
        ring = self._card(card).ring
        if ring is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return ring

    def has_eee(self, card: str) -> bool:
        eee = self._card(card).eee
        if eee is None:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return eee


class FakeMachine:
    """A machine in a folder; everything of it is a plain file."""

    def __init__(self, root: Path, cpus: str = "0-3") -> None:
        self.root = root
        self.ethtool = FakeEthtool({})
        self._interrupts = ["           CPU0       CPU1       CPU2       CPU3"]
        self.write("sys/devices/system/cpu/online", cpus)
        self.write("sys/devices/system/cpu/isolated", "")
        self.write("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never")
        self.write("proc/sys/kernel/osrelease", "6.12.1")
        self.write("proc/sys/net/core/rps_sock_flow_entries", "0")
        self.write("proc/sys/net/core/netdev_max_backlog", "1000")
        self.write("proc/sys/vm/swappiness", "60")
        self.write("proc/net/softnet_stat", "0000ff 00000000 00000001\n" * 4)
        self.write("proc/net/snmp", "Udp: InDatagrams NoPorts RcvbufErrors\nUdp: 1000000 1 2\n")
        self.write("proc/uptime", "172800.50 1000.0")
        self.write("proc/swaps", "Filename Type Size Used Priority\n")
        self.write("proc/mounts", "/dev/mmcblk0p2 / ext4 rw 0 0\n")

    @property
    def places(self) -> Places:
        return Places(self.root, lambda: self.ethtool)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def read(self, path: str) -> str:
        return (self.root / path).read_text().strip()

    def governor(self, policy: str, governor: str, driver: str = "cpufreq-dt") -> None:
        folder = f"sys/devices/system/cpu/cpufreq/{policy}"
        self.write(f"{folder}/scaling_governor", governor)
        self.write(f"{folder}/scaling_driver", driver)
        self.write(f"{folder}/scaling_available_governors", "ondemand performance schedutil")

    def interrupt(self, number: int, name: str, allowed: str = "f", at: str = "1") -> None:
        self._interrupts.append(f" {number}:   44535   0   0   0  GICv2 189 Level     {name}")
        self.write("proc/interrupts", "\n".join([*self._interrupts, "NMI:  0  0  interrupts"]))
        self.write(f"proc/irq/{number}/smp_affinity", allowed)
        self.write(f"proc/irq/{number}/effective_affinity", at)

    def card(
        self, name: str, driver: str, device: str, shown: FakeCard, *, receive: int, send: int
    ) -> None:
        """Add a card at a path below sys/devices."""
        folder = f"sys/class/net/{name}"
        for number in range(receive):
            self.write(f"{folder}/queues/rx-{number}/rps_cpus", "0")
            self.write(f"{folder}/queues/rx-{number}/rps_flow_cnt", "0")
        for number in range(send):
            self.write(f"{folder}/queues/tx-{number}/tx_timeout", "0")
            if send > 1:
                self.write(f"{folder}/queues/tx-{number}/xps_cpus", "0")
        self.write(f"{folder}/statistics/rx_over_errors", "0")
        place, drivers = self.root / "sys/devices" / device, self.root / "sys/bus/drivers" / driver
        place.mkdir(parents=True, exist_ok=True)
        drivers.mkdir(parents=True, exist_ok=True)
        (place / "driver").symlink_to(drivers)
        (self.root / folder / "device").symlink_to(place)
        self.ethtool.cards[name] = shown


def pi4(root: Path) -> FakeMachine:
    """A Raspberry Pi 4: bcmgenet with one interrupt for what it receives, on processor 0."""
    machine = FakeMachine(root)
    machine.governor("policy0", "ondemand")
    shown = FakeCard(adaptive=False, eee=True)
    machine.card("eth0", "bcmgenet", "platform/scb/fd580000.ethernet", shown, receive=1, send=5)
    machine.interrupt(29, "eth0")
    machine.interrupt(30, "eth0")
    machine.write("sys/block/mmcblk0/stat", "10 0 100 5 20 0 2097152 9 0 0 0")
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", "0")
    return machine


def pi5(root: Path) -> FakeMachine:
    """A Raspberry Pi 5: macb in RP1 behind a PCI link that may sleep, with TCP segmentation."""
    machine = FakeMachine(root)
    machine.governor("policy0", "schedutil")
    shown = FakeCard(SOFT | TCP, SOFT | TCP, ring=(512, 8192), eee=True)
    link = "platform/axi/1000120000.pcie/pci0002:00/0002:01:00.0"
    machine.card("eth0", "macb", f"{link}/1f00100000.ethernet", shown, receive=1, send=1)
    machine.write(f"sys/devices/{link}/link/l1_aspm", "1")
    machine.interrupt(104, "eth0")
    machine.write("sys/block/mmcblk0/stat", "10 0 100 5 20 0 2048 9 0 0 0")
    return machine


def pc(root: Path) -> FakeMachine:
    """A virtual PC of 4 processors: virtio with two queues, all of whose interrupts are on one."""
    machine = FakeMachine(root)
    machine.governor("policy0", "powersave", "intel_pstate")
    shown = FakeCard(SOFT | TCP, SOFT | TCP, adaptive=False, ring=(256, 256))
    machine.card("ens3", "virtio_net", "pci0000:00/0000:00:03.0/virtio0", shown, receive=2, send=2)
    for number, name in enumerate(("config", "input.0", "output.0", "input.1", "output.1"), 40):
        machine.interrupt(number, f"virtio0-{name}")
    return machine


def container(root: Path) -> FakeMachine:
    """A container of two processors of four: a veth whose features can't be changed."""
    machine = FakeMachine(root)
    folder = "sys/class/net/eth0"
    machine.write(f"{folder}/queues/rx-0/rps_cpus", "0")
    machine.write(f"{folder}/queues/rx-0/rps_flow_cnt", "0")
    machine.write("proc/interrupts", "           CPU0\n")
    machine.write("run/systemd/container", "lxc")
    machine.write("proc/self/status", "Name:\tpython\nCpus_allowed:\t00000003\n")
    machine.ethtool.cards["eth0"] = FakeCard(SOFT, SOFT - {"rx-gro"})
    machine.ethtool.refuses = {"rx-gro"}
    return machine
