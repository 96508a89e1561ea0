"""The look at a machine: what `esp-gw tune` and `esp-gw doctor` know of it, from /sys and /proc.

All of it may be read by an ordinary user. What isn't there, or can't be read, is left out.

Sources: Documentation/ABI/testing/sysfs-class-net-queues, sysfs-devices-system-cpu,
sysfs-bus-pci of Linux; Documentation/block/stat.rst, Documentation/networking/scaling.rst.
"""

from __future__ import annotations

import contextlib
import gzip
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from esp_gw.tune.ethtool import Features
from esp_gw.tune.knobs import BACKLOG, FLOW_TABLE, HUGE_PAGES, SWAPPINESS, Place
from esp_gw.tune.machine import (
    Card,
    Clock,
    Interrupt,
    Machine,
    Queue,
    Storage,
    parse_list,
    parse_mask,
)
from esp_gw.tune.places import ROOT, Places, interrupts_of

Value = TypeVar("Value")

_SECTOR = 512
_TRACER = "CONFIG_IRQSOFF_TRACER=y"
_VCGENCMD = "/usr/bin/vcgencmd"
_VCGENCMD_TIMEOUT = 2
_THROTTLED = {
    0: "the voltage is too low now",
    3: "it is too hot now",
    16: "the voltage was too low since the boot",
    19: "it was too hot since the boot",
}
"""Bits of the Raspberry Pi's firmware; those between say what follows from these."""


def look(cards: Iterable[str], places: Places, root: Path = ROOT) -> Machine:
    """Look at the machine below `root` and at some of its cards."""
    files = _Files(root)
    lost = [line.split()[1] for line in files.lines("proc/net/softnet_stat") if line.strip()]
    datagrams = _datagrams(files.lines("proc/net/snmp"))
    release = files.text("proc/sys/kernel/osrelease") or ""
    contained = _is_contained(files)
    online = _cpus(files.text("sys/devices/system/cpu/online")) or 1
    return Machine(
        cpus=(online & _allowed(files) or online) if contained else online,
        isolated=_cpus(files.text("sys/devices/system/cpu/isolated")),
        contained=contained,
        release=release,
        traces_interrupts=_traces_interrupts(root, release),
        balances_interrupts=any((root / "run/irqbalance").glob("*")),
        clocks=tuple(_clocks(files)),
        throttled=tuple(_throttled(files)),
        huge_pages=_or_none(lambda: places.read(Place(HUGE_PAGES))),
        swappiness=_or_none(lambda: int(places.read(Place(SWAPPINESS)))),
        swaps_in_memory=any(line.startswith("/dev/zram") for line in files.lines("proc/swaps")),
        flow_table=_or_none(lambda: int(places.read(Place(FLOW_TABLE)))),
        backlog=_or_none(lambda: int(places.read(Place(BACKLOG)))),
        backlog_lost=sum(_hexadecimal(each) for each in lost),
        datagrams=datagrams.get("InDatagrams", 0),
        datagrams_lost=datagrams.get("RcvbufErrors", 0),
        uptime=_or_none(lambda: float((files.text("proc/uptime") or "0").split()[0])) or 0.0,
        storage=tuple(_storage(files)),
        cards=tuple(_card(files, places, name) for name in cards),
    )


class _Files:
    """Small files below a root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def text(self, path: str) -> str | None:
        return _or_none(lambda: (self.root / path).read_text(errors="replace").strip())

    def number(self, path: str) -> int | None:
        return _or_none(lambda: int(self.text(path) or ""))

    def lines(self, path: str) -> list[str]:
        return (self.text(path) or "").splitlines()

    def glob(self, pattern: str) -> list[Path]:
        return sorted(self.root.glob(pattern))

    def name(self, link: Path) -> str:
        return link.resolve().name if link.exists() else ""


def _or_none(read: Callable[[], Value]) -> Value | None:
    try:
        return read()
    except (OSError, ValueError):
        return None


def _cpus(text: str | None) -> int:
    return _or_none(lambda: parse_list(text or "")) or 0


def _mask(text: str | None) -> int:
    return _or_none(lambda: parse_mask(text or "")) or 0


def _hexadecimal(text: str) -> int:
    return _or_none(lambda: int(text, 16)) or 0


def _is_contained(files: _Files) -> bool:
    """Return True in a container: systemd.exec(5), `container=` of the first process, Docker."""
    words = (files.text("proc/1/environ") or "").split("\0")
    return any(word.startswith("container=") for word in words) or any(
        (files.root / path).exists() for path in ("run/systemd/container", ".dockerenv")
    )


def _allowed(files: _Files) -> int:
    """Return the processors that this process may use (proc(5), status)."""
    for line in files.lines("proc/self/status"):
        name, _, value = line.partition(":")
        if name == "Cpus_allowed":
            return _mask(value)
    return 0


def _traces_interrupts(root: Path, release: str) -> bool:
    """Return True if the kernel is built with the tracer that slows each change of interrupts."""
    config = root / f"boot/config-{release}"
    if release and config.exists():
        return _TRACER in (_or_none(lambda: config.read_text(errors="replace")) or "")
    packed = root / "proc/config.gz"
    return packed.exists() and _TRACER.encode() in (
        _or_none(lambda: gzip.decompress(packed.read_bytes())) or b""
    )


def _clocks(files: _Files) -> Iterator[Clock]:
    for folder in files.glob("sys/devices/system/cpu/cpufreq/policy*"):
        place = folder.relative_to(files.root)
        governor = files.text(f"{place}/scaling_governor")
        if governor:
            available = files.text(f"{place}/scaling_available_governors") or ""
            driver = files.text(f"{place}/scaling_driver") or ""
            yield Clock(folder.name, governor, driver, tuple(available.split()))


def _throttled(files: _Files) -> Iterator[str]:
    told = _firmware(files)
    for bit, text in _THROTTLED.items():
        if told is not None and told >> bit & 1:
            yield text
    if told is None:
        for hwmon in files.glob("sys/class/hwmon/hwmon*"):
            place = hwmon.relative_to(files.root)
            is_alarm = files.number(f"{place}/in0_lcrit_alarm")
            if files.text(f"{place}/name") == "rpi_volt" and is_alarm:
                yield _THROTTLED[16]
    counters = files.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
    if any(files.number(str(each.relative_to(files.root))) for each in counters):
        yield _THROTTLED[19]


def _firmware(files: _Files) -> int | None:
    """Return what the firmware of a Raspberry Pi has seen; None on other machines."""
    for path in files.glob("sys/devices/platform/soc*/soc*firmware/get_throttled"):
        found = files.text(str(path.relative_to(files.root)))
        return None if found is None else _hexadecimal(found)
    if files.root != ROOT or not Path(_VCGENCMD).exists():
        return None
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        told = subprocess.run(
            [_VCGENCMD, "get_throttled"],
            capture_output=True,
            text=True,
            timeout=_VCGENCMD_TIMEOUT,
            check=True,
        ).stdout
        return int(told.partition("=")[2], 16)
    return None


def _datagrams(lines: list[str]) -> dict[str, int]:
    """Return the counters of UDP: a line of names, then one of numbers (proc(5))."""
    names, *numbers = [line.split()[1:] for line in lines if line.startswith("Udp:")] or [[]]
    values = numbers[0] if numbers else []
    return {
        name: int(value) for name, value in zip(names, values, strict=False) if value.isdecimal()
    }


def _storage(files: _Files) -> Iterator[Storage]:
    swaps = [line.split()[0] for line in files.lines("proc/swaps")[1:] if line.split()]
    # A file of swap is taken to be on the card if the root is.
    mounted = [line.split() for line in files.lines("proc/mounts")]
    roots = [words[0] for words in mounted if len(words) > 1 and words[1] == "/"]
    for folder in files.glob("sys/block/mmcblk*"):
        name = folder.name
        if "boot" in name or "rpmb" in name:
            continue
        stat = (files.text(f"sys/block/{name}/stat") or "").split()
        has_root = any(each.startswith(f"/dev/{name}") for each in roots)
        has_swap = any(
            swap.startswith(f"/dev/{name}") or (has_root and not swap.startswith("/dev/"))
            for swap in swaps
        )
        # Field 7 has the sectors written.
        if len(stat) > 6 and stat[6].isdecimal():
            yield Storage(name, int(stat[6]) * _SECTOR, has_swap)


def _card(files: _Files, places: Places, name: str) -> Card:
    place = f"sys/class/net/{name}"
    errors = ("rx_over_errors", "rx_fifo_errors", "rx_missed_errors")
    # Drivers count one loss in several of them.
    overruns = max(files.number(f"{place}/statistics/{each}") or 0 for each in errors)
    send = _queues(files, f"{place}/queues", "tx", "xps_cpus")
    stalls = [files.number(f"{place}/queues/{queue.name}/tx_timeout") or 0 for queue in send]
    features = _or_none(lambda: places.ethtool.features(name))
    known = features or Features()
    return Card(
        name,
        driver=files.name(files.root / place / "device/driver"),
        receive=_queues(files, f"{place}/queues", "rx", "rps_cpus"),
        send=send,
        interrupts=tuple(_interrupts(files, name)),
        changeable=known.changeable,
        wanted=known.wanted,
        active=None if features is None else known.active,
        adaptive=_or_none(lambda: places.ethtool.is_adaptive(name)),
        ring=_or_none(lambda: places.ethtool.receive_ring(name)) or (0, 0),
        eee=_or_none(lambda: places.ethtool.has_eee(name)),
        overruns=overruns,
        stalls=sum(stalls),
        aspm=_aspm(files, name),
        near=_mask(files.text(f"{place}/device/local_cpus")),
    )


def _queues(files: _Files, folder: str, kind: str, mask: str) -> tuple[Queue, ...]:
    found = [path.name for path in files.glob(f"{folder}/{kind}-*")]
    return tuple(
        _queue(files, f"{folder}/{name}", mask)
        for name in sorted(found, key=lambda name: (len(name), name))
    )


def _queue(files: _Files, folder: str, mask: str) -> Queue:
    text = files.text(f"{folder}/{mask}")
    cpus = None if text is None else _mask(text)
    return Queue(folder.rpartition("/")[2], cpus, files.number(f"{folder}/rps_flow_cnt"))


def _interrupts(files: _Files, card: str) -> Iterator[Interrupt]:
    with contextlib.suppress(OSError):
        for label, number in interrupts_of(files.root, card):
            allowed = _mask(files.text(f"proc/irq/{number}/smp_affinity"))
            at = _mask(files.text(f"proc/irq/{number}/effective_affinity"))
            if allowed:
                yield Interrupt(label, allowed, at or allowed)


def _aspm(files: _Files, card: str) -> str:
    """Return the file that lets the PCI link of a card sleep, if it may now; or nothing.

    The card of a Raspberry Pi 5 is a part of the chip behind the link.
    """
    device = files.root / "sys/class/net" / card / "device"
    if not device.exists():
        return ""
    for folder in (device.resolve(), *device.resolve().parents):
        path = folder / "link/l1_aspm"
        if path.exists() and path.is_relative_to(files.root.resolve()):
            place = str(path.relative_to(files.root.resolve()))
            return f"/{place}" if files.number(place) else ""
    return ""
