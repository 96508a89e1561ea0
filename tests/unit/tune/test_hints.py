"""Advice that a person has to follow: known faults, each with evidence and a command."""

from __future__ import annotations

from pathlib import Path

from esp_gw.tune.hints import Hint, hints, written_a_day
from esp_gw.tune.look import look
from esp_gw.tune.machine import Machine, Use
from tests.support.fake_machine import FakeMachine, container, pc, pi4, pi5


def told(machine: FakeMachine, card: str = "eth0", use: Use = Use()) -> list[Hint]:  # noqa: B008 - it is frozen
    return hints(look([card], machine.places, machine.root), use)


def test_machines_without_a_fault_have_no_advice_but_on_saving_energy(tmp_path: Path) -> None:
    assert told(container(tmp_path / "container")) == []
    assert told(pc(tmp_path / "pc"), "ens3") == []
    for make, driver in ((pi4, "bcmgenet"), (pi5, "macb")):
        machine = make(tmp_path / driver)
        machine.ethtool.cards["eth0"].adaptive = None
        (hint,) = told(machine)
        assert (
            hint.found
            == f"eth0 saves energy between packets (EEE), and {driver} may lose some by it"
        )
        assert "'ethtool --set-eee eth0 eee off'" in hint.todo


def test_overruns_name_the_link_that_sleeps_then_the_ring_then_the_rest(tmp_path: Path) -> None:
    machine = pi5(tmp_path)
    machine.ethtool.cards["eth0"].eee = False
    assert told(machine) == []
    machine.write("sys/class/net/eth0/statistics/rx_over_errors", "1462")
    machine.write("sys/class/net/eth0/statistics/rx_fifo_errors", "1462")
    (hint,) = told(machine)
    assert "no room for 1462 received packets" in hint.found
    assert "/0002:01:00.0/link/l1_aspm'" in hint.todo
    assert "echo 0 | sudo tee /sys/devices/platform/axi" in hint.todo
    for path in machine.root.rglob("l1_aspm"):
        path.write_text("0\n")
    assert "'ethtool -G eth0 rx 8192'" in told(machine)[0].todo
    machine.ethtool.cards["eth0"].ring = (8192, 8192)
    assert "update the kernel" in told(machine)[0].todo


def test_an_adaptive_pause_between_interrupts_is_for_a_person_to_try(tmp_path: Path) -> None:
    """A driver may then store what it adapts: nobody could give the former times back."""
    machine = pi4(tmp_path / "pi4")
    machine.ethtool.cards["eth0"].eee = False
    (hint,) = told(machine)
    assert "'ethtool -C eth0 adaptive-rx on'" in hint.todo
    machine.ethtool.cards["eth0"].adaptive = True
    assert told(machine) == []
    # The host of a virtual card chooses its interrupts.
    machine = pc(tmp_path / "pc")
    assert machine.ethtool.cards["ens3"].adaptive is False
    assert told(machine, "ens3") == []


def test_a_card_that_has_stopped_sending_is_named(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    machine.write("sys/class/net/ens3/queues/tx-0/tx_timeout", "3")
    (hint,) = told(machine, "ens3")
    assert "ens3 has stopped sending 3 times" in hint.found


def test_a_card_without_checksums_sends_one_by_one(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    card = machine.ethtool.cards["ens3"]
    card.wanted = card.wanted - {"tx-checksum-ip-generic"}
    (hint,) = told(machine, "ens3")
    assert "'ethtool -K ens3 tx on'" in hint.todo


def test_a_traced_kernel_power_and_heat(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    machine.write("boot/config-6.12.1", "CONFIG_IRQSOFF_TRACER=y")
    machine.write("sys/devices/platform/soc/soc:firmware/get_throttled", "90000")
    tracer, voltage, heat = told(machine, "ens3")
    assert "CONFIG_IRQSOFF_TRACER" in tracer.found
    assert "power supply" in voltage.todo
    assert "cool it" in heat.todo


def test_lost_datagrams_count_from_one_in_a_thousand(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    machine.write("proc/net/snmp", "Udp: InDatagrams RcvbufErrors\nUdp: 1000000 1000\n")
    assert told(machine, "ens3") == []
    machine.write("proc/net/snmp", "Udp: InDatagrams RcvbufErrors\nUdp: 1000000 1001\n")
    (hint,) = told(machine, "ens3")
    assert "1001 datagrams" in hint.found
    assert "explain --drops" in hint.todo


def test_pinned_workers_want_processors_of_their_own(tmp_path: Path) -> None:
    machine = pc(tmp_path)
    (hint,) = told(machine, "ens3", Use(pinned=True))
    assert "isolcpus=1-3" in hint.todo
    assert "CPUAffinity=1-3" in hint.todo
    machine.write("sys/devices/system/cpu/isolated", "1-3")
    assert told(machine, "ens3", Use(pinned=True)) == []


def test_writes_count_by_the_day(tmp_path: Path) -> None:
    machine = pi4(tmp_path)
    machine.ethtool.cards["eth0"].eee = False
    machine.ethtool.cards["eth0"].adaptive = True
    # 2 days, so half of it each.
    machine.write("sys/block/mmcblk0/stat", f"0 0 0 0 0 0 {(10 << 30) // 512} 0")
    assert told(machine) == []
    machine.write("sys/block/mmcblk0/stat", f"0 0 0 0 0 0 {(11 << 30) // 512} 0")
    (hint,) = told(machine)
    assert "mmcblk0 gets 5.5 GiB of writes a day" in hint.found
    # Too short ago to tell.
    machine.write("proc/uptime", "60 60")
    assert told(machine) == []
    assert written_a_day(Machine(uptime=3599.0), 1 << 40) is None
