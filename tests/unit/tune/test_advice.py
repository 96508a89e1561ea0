"""The better settings of four machines, and what is left as a person has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.tune.advice import advise
from esp_gw.tune.look import look
from esp_gw.tune.machine import Card, Interrupt, Machine, Queue, Use
from tests.support.fake_machine import FakeCard, FakeMachine, container, pc, pi4, pi5


def changes(machine: FakeMachine, card: str = "eth0", use: Use = Use()) -> dict[str, str]:  # noqa: B008 - it is frozen
    found = look([card], machine.places, machine.root)
    return {
        str(each.place): f"{each.now} -> {each.better}"
        for each in advise(found, use)
        if not each.is_right
    }


PI_4 = {
    "policy0 governor": "ondemand -> performance",
    "eth0 rx-0 rps_cpus": "0 -> e",
    "eth0 rx-0 rps_flow_cnt": "0 -> 4096",
    "rps_sock_flow_entries": "0 -> 4096",
    "netdev_max_backlog": "1000 -> 4096",
}


def test_a_pi_4_hands_packets_from_the_processor_of_the_interrupt_to_the_others(
    tmp_path: Path,
) -> None:
    assert changes(pi4(tmp_path)) == PI_4


def test_a_pi_5_leaves_tcp_segmentation_that_stops_its_card(tmp_path: Path) -> None:
    assert changes(pi5(tmp_path)) == {
        "eth0 rx-0 rps_cpus": "0 -> e",
        "eth0 rx-0 rps_flow_cnt": "0 -> 4096",
        "eth0 tx-tcp-segmentation feature": "on -> off",
        "eth0 tx-tcp6-segmentation feature": "on -> off",
        "rps_sock_flow_entries": "0 -> 4096",
        "netdev_max_backlog": "1000 -> 4096",
    }


def test_the_interrupts_of_several_queues_are_spread_each_pair_on_one_processor(
    tmp_path: Path,
) -> None:
    found = changes(pc(tmp_path), "ens3")
    assert {place: told for place, told in found.items() if "irq" in place} == {
        "ens3 virtio0-input.0#0 irq_cpus": "f -> 1",
        "ens3 virtio0-output.0#0 irq_cpus": "f -> 1",
        "ens3 virtio0-input.1#0 irq_cpus": "f -> 2",
        "ens3 virtio0-output.1#0 irq_cpus": "f -> 2",
    }
    # The other two processors take over.
    assert found["ens3 rx-0 rps_cpus"] == "0 -> c"
    # This driver's governor follows the load by itself.
    assert "policy0 governor" not in found


def test_a_balancer_of_interrupts_is_left_alone(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    machine.write("run/irqbalance/irqbalance1.sock", "")
    assert not any("irq" in place for place in changes(machine, "ens3"))


IN_CONTAINER = {"eth0 rx-gro feature": "off -> on", "eth0 rx-0 rps_cpus": "0 -> 3"}


def test_a_container_has_what_a_veth_can_on_its_processors(tmp_path: Path) -> None:
    machine = container(tmp_path)
    assert changes(machine) == IN_CONTAINER
    # The table is the host's, and without it those of the queues are of no use.
    machine.write("proc/sys/net/core/rps_sock_flow_entries", "32768")
    assert changes(machine) == IN_CONTAINER | {"eth0 rx-0 rps_flow_cnt": "0 -> 4096"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("run/systemd/container", "systemd-nspawn"),
        (".dockerenv", ""),
        ("proc/1/environ", "PATH=/bin\0container=podman\0"),
    ],
)
def test_a_container_leaves_what_is_the_whole_machines(
    tmp_path: Path, path: str, text: str
) -> None:
    machine = pc(tmp_path)
    machine.governor("policy1", "ondemand")
    machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    machine.write("proc/swaps", "Filename\n/dev/mmcblk0p3 partition 1 0 -2\n")
    machine.write("sys/block/mmcblk0/stat", "10 0 100 5 20 0 2048 9 0 0 0")
    shared = ("policy1 governor", "huge_pages", "swappiness", "netdev_max_backlog")
    irq = "ens3 virtio0-input.1#0 irq_cpus"
    assert changes(machine, "ens3").keys() > {*shared, irq}
    machine.write(path, text)
    found = changes(machine, "ens3")
    assert found
    assert all(place.startswith("ens3") for place in found)
    assert not any("irq" in place for place in found)


def test_other_words_in_the_environment_make_no_container(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    machine.write("proc/1/environ", "PATH=/bin\0mycontainer=x\0A=container=y\0")
    assert changes(machine) == PI_4


def test_what_was_made_is_right(tmp_path: Path) -> None:
    """Advice follows from what a machine is, not from how it was set: it would go to and fro."""
    for make, card in ((pi4, "eth0"), (pi5, "eth0"), (pc, "ens3"), (container, "eth0")):
        machine = make(tmp_path / make.__name__)
        machine.ethtool.refuses.clear()
        found = look([card], machine.places, machine.root)
        for each in advise(found, Use()):
            machine.places.write(each.place, each.better)
            if "irq" in each.place.knob:
                for folder in (machine.root / "proc/irq").iterdir():
                    allowed = (folder / "smp_affinity").read_text()
                    (folder / "effective_affinity").write_text(allowed)
        assert changes(machine, card) == {}, make.__name__


@pytest.mark.parametrize(
    ("path", "value", "place"),
    [
        ("sys/class/net/eth0/queues/rx-0/rps_cpus", "2", "eth0 rx-0 rps_cpus"),
        ("sys/class/net/eth0/queues/rx-0/rps_flow_cnt", "64", "eth0 rx-0 rps_flow_cnt"),
        ("proc/sys/net/core/netdev_max_backlog", "9000", "netdev_max_backlog"),
        ("proc/sys/net/core/rps_sock_flow_entries", "128", "rps_sock_flow_entries"),
        (
            "sys/devices/system/cpu/cpufreq/policy0/scaling_governor",
            "userspace",
            "policy0 governor",
        ),
    ],
)
def test_what_a_person_has_chosen_stays(tmp_path: Path, path: str, value: str, place: str) -> None:
    machine = pi4(tmp_path)
    machine.write(path, value)
    assert place not in changes(machine)
    assert place in PI_4


def test_a_throttled_machine_keeps_its_clock(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", "4")
    assert "policy0 governor" in changes(machine)
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", "80000")
    assert "policy0 governor" not in changes(machine)


def test_a_governor_that_the_driver_lacks_is_not_asked_for(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    folder = "sys/devices/system/cpu/cpufreq/policy0"
    machine.write(f"{folder}/scaling_available_governors", "ondemand powersave")
    assert "policy0 governor" not in changes(machine)


def test_one_outer_flow_of_several_readers_is_steered_by_none_of_them(tmp_path: Path) -> None:
    found = changes(pi4(tmp_path), use=Use(shares_flows=True))
    assert "eth0 rx-0 rps_flow_cnt" not in found
    assert "rps_sock_flow_entries" not in found
    assert found["eth0 rx-0 rps_cpus"] == "0 -> e"


def test_a_card_that_has_stopped_sending_loses_tcp_segmentation(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    assert "ens3 tx-tcp-segmentation feature" not in changes(machine, "ens3")
    machine.write("sys/class/net/ens3/queues/tx-1/tx_timeout", "2")
    assert changes(machine, "ens3")["ens3 tx-tcp-segmentation feature"] == "on -> off"


def test_a_feature_that_is_wanted_and_still_not_in_use_is_left(tmp_path: Path) -> None:
    machine = container(tmp_path)
    card = machine.ethtool.cards["eth0"]
    assert "eth0 rx-gro feature" in changes(machine)
    card.wanted, card.stuck = card.wanted | {"rx-gro"}, frozenset({"rx-gro"})
    assert "eth0 rx-gro feature" not in changes(machine)


def test_isolated_processors_get_nothing_to_do(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    machine.write("sys/devices/system/cpu/isolated", "2-3")
    found = changes(machine)
    assert found["eth0 rx-0 rps_cpus"] == "0 -> 3"
    machine.write("sys/devices/system/cpu/isolated", "0-3")
    assert not any(place.startswith("eth0") for place in changes(machine))


def test_memory_has_two_settings(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    machine.write("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]")
    machine.write("proc/swaps", "Filename\n/dev/mmcblk0p3 partition 1 0 -2\n")
    found = changes(machine)
    assert found["huge_pages"] == "never -> madvise"
    assert found["swappiness"] == "60 -> 10"


@pytest.mark.parametrize(
    ("swappiness", "swaps"),
    [
        ("100", "/dev/mmcblk0p3 partition 1 0 -2\n"),
        ("30", "/dev/mmcblk0p3 partition 1 0 -2\n"),
        ("60", "/dev/zram0 partition 1 0 100\n/dev/mmcblk0p3 partition 1 0 -2\n"),
    ],
)
def test_swappiness_that_somebody_chose_or_that_is_for_swap_in_memory_stays(
    tmp_path: Path, swappiness: str, swaps: str
) -> None:
    machine = pi4(tmp_path)
    machine.write("proc/sys/vm/swappiness", swappiness)
    machine.write("proc/swaps", f"Filename\n{swaps}")
    assert "swappiness" not in changes(machine)


def test_the_queues_of_bcmgenet_are_left_to_its_driver(tmp_path: Path) -> None:
    """They are not alike: four are for a few packets each, the last one is for all others."""
    assert not any("xps" in place for place in changes(pi4(tmp_path)))
    machine = pi4(tmp_path / "other")
    machine.card("eth1", "igb", "pci/1", FakeCard(), receive=1, send=4)
    assert changes(machine, "eth1")["eth1 tx-3 xps_cpus"] == "0 -> 8"
    # A person's choice stays.
    machine.write("sys/class/net/eth1/queues/tx-2/xps_cpus", "f")
    assert "eth1 tx-3 xps_cpus" not in changes(machine, "eth1")


@pytest.mark.parametrize(
    ("local", "mask"),
    [("00000000,00000003", "2"), ("c", "c"), ("1", "e"), ("0", "e"), ("nonsense", "e")],
)
def test_packets_are_handed_to_processors_that_are_near_the_card(
    tmp_path: Path, local: str, mask: str
) -> None:
    machine = pi4(tmp_path)
    machine.write("sys/class/net/eth0/device/local_cpus", local)
    assert changes(machine)["eth0 rx-0 rps_cpus"] == f"0 -> {mask}"


def test_a_flow_table_is_divided_among_queues_and_no_less_than_one() -> None:
    for count in (1, 3, 4, 5000):
        queues = tuple(Queue(f"rx-{number}", 0, 0) for number in range(count))
        card = Card("eth0", receive=queues, interrupts=(Interrupt("eth0#0", 1, 1),))
        shares = {
            int(each.better)
            for each in advise(Machine(cpus=0xF, cards=(card,)), Use())
            if each.place.knob == "rps_flow_cnt"
        }
        (share,) = shares
        assert share & (share - 1) == 0
        assert share == 1 or share * count <= 4096


def test_one_processor_has_nobody_to_hand_packets_to(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    machine.write("sys/devices/system/cpu/online", "0")
    assert not any("rps" in place or "xps" in place for place in changes(machine))
