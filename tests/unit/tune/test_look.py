"""The look at a machine: what of /sys, /proc and ethtool counts."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from esp_gw.tune.look import look
from esp_gw.tune.machine import Interrupt, Machine, Storage, listed, parse_list, parse_mask
from tests.support.fake_machine import FakeMachine, container, pc, pi4, pi5


def seen(machine: FakeMachine, card: str = "eth0") -> Machine:
    return look([card], machine.places, machine.root)


def test_a_pi_4_has_one_interrupt_for_two_directions_and_no_udp_segmentation(
    tmp_path: Path,
) -> None:
    found = seen(pi4(tmp_path))
    (card,) = found.cards
    assert (found.cpus, card.driver, len(card.receive), len(card.send)) == (0xF, "bcmgenet", 1, 5)
    assert card.interrupts == (Interrupt("eth0#0", 0xF, 1), Interrupt("eth0#1", 0xF, 1))
    assert card.active is not None
    assert "rx-gro" in card.active
    assert "tx-udp-segmentation" not in card.active | card.changeable
    assert (card.eee, card.aspm, card.adaptive) == (True, "", False)
    assert [clock.governor for clock in found.clocks] == ["ondemand"]
    assert found.storage == (Storage("mmcblk0", 2097152 * 512),)


def test_a_card_behind_a_pci_link_has_the_file_that_lets_the_link_sleep(tmp_path: Path) -> None:
    machine = pi5(tmp_path)
    (card,) = seen(machine).cards
    place = "sys/devices/platform/axi/1000120000.pcie/pci0002:00/0002:01:00.0/link/l1_aspm"
    assert (card.driver, card.aspm, card.ring) == ("macb", f"/{place}", (512, 8192))
    machine.write(place, "0")
    assert seen(machine).cards[0].aspm == ""


def test_interrupts_are_those_of_queues_by_the_names_of_card_and_device(tmp_path: Path) -> None:
    (card,) = seen(pc(tmp_path), "ens3").cards
    assert [each.label for each in card.interrupts] == [
        *("virtio0-input.0#0", "virtio0-output.0#0", "virtio0-input.1#0", "virtio0-output.1#0"),
    ]


def test_a_card_of_a_container_has_no_interrupt_and_no_driver(tmp_path: Path) -> None:
    found = seen(container(tmp_path))
    assert (found.clocks, found.storage, found.throttled) == ((), (), ())
    assert (found.cards[0].driver, found.cards[0].interrupts) == ("", ())
    assert found.cards[0].receive[0].cpus == 0


def test_an_empty_machine_is_no_error(tmp_path: Path) -> None:
    found = look(["eth0"], FakeMachine(tmp_path / "any").places, tmp_path / "none")
    assert found.cards[0].active is None
    assert (found.cpus, found.backlog_lost, found.uptime) == (1, 0, 0.0)


def test_unreadable_numbers_are_unknown_ones(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    for path in (
        *("proc/sys/vm/swappiness", "proc/sys/net/core/netdev_max_backlog", "proc/uptime"),
        *("sys/devices/system/cpu/online", "sys/block/mmcblk0/stat", "proc/net/softnet_stat"),
        *("proc/net/snmp", "proc/irq/29/smp_affinity", "proc/swaps", "proc/mounts"),
        *(
            "sys/class/net/eth0/queues/rx-0/rps_cpus",
            "sys/class/net/eth0/statistics/rx_over_errors",
        ),
    ):
        machine.write(path, "x y z\nUdp: a\nUdp: b c\n")
    found = seen(machine)
    assert (found.swappiness, found.backlog, found.cpus, found.storage) == (None, None, 1, ())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("0", ()),
        ("50005", ("the voltage is too low now", "the voltage was too low since the boot")),
        ("80008", ("it is too hot now", "it was too hot since the boot")),
    ],
)
def test_a_throttled_pi_says_why(tmp_path: Path, flags: str, told: tuple[str, ...]) -> None:
    machine = pi4(tmp_path)
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", flags)
    assert seen(machine).throttled == told


def test_the_sensor_of_the_voltage_stands_in_for_the_firmware(tmp_path: Path) -> None:
    machine = pi5(tmp_path)
    machine.write("sys/class/hwmon/hwmon1/name", "rpi_volt")
    machine.write("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1")
    assert seen(machine).throttled == ("the voltage was too low since the boot",)


def test_a_hot_pc_counts_its_throttling(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    machine.write("sys/devices/system/cpu/cpu2/thermal_throttle/core_throttle_count", "7")
    assert seen(machine).throttled == ("it was too hot since the boot",)


def test_a_tracer_of_interrupts_is_found_in_either_configuration(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    assert not seen(machine).traces_interrupts
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_IRQSOFF_TRACER=y\n"))
    assert seen(machine).traces_interrupts
    machine.write("boot/config-6.12.1", "# CONFIG_IRQSOFF_TRACER is not set")
    assert not seen(machine).traces_interrupts
    machine.write("boot/config-6.12.1", "CONFIG_IRQSOFF_TRACER=y")
    assert seen(machine).traces_interrupts
    (tmp_path / "boot/config-6.12.1").unlink()
    (tmp_path / "proc/config.gz").write_bytes(b"no gzip")
    assert not seen(machine).traces_interrupts


@pytest.mark.parametrize(
    ("swaps", "has_swap"),
    [
        ("", False),
        ("/dev/mmcblk0p3 partition 1 0 -2\n", True),
        ("/var/swap file 1 0 -2\n", True),
        ("/dev/zram0 partition 1 0 100\n", False),
    ],
)
def test_swap_on_the_card_is_told_from_swap_in_memory(
    tmp_path: Path, swaps: str, has_swap: bool
) -> None:
    machine = pi4(tmp_path)
    machine.write("proc/swaps", f"Filename Type Size Used Priority\n{swaps}")
    assert seen(machine).storage[0].has_swap is has_swap


def test_masks_and_lists_of_processors() -> None:
    assert parse_mask("00000001,80000000\n") == 1 << 32 | 1 << 31
    assert parse_list("0-2,5\n") == 0b100111
    assert parse_list("\n") == 0
    assert listed(0b1010) == [1, 3]
