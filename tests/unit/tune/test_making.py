"""Making, taking back, and making again: exact, whatever fails and whoever else sets values."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.errors import EspGwError
from esp_gw.tune.advice import Setting, advise
from esp_gw.tune.knobs import Place
from esp_gw.tune.look import look
from esp_gw.tune.machine import Use
from esp_gw.tune.making import Record, make, make_again, take_back
from esp_gw.tune.record import RecordFile
from tests.support.fake_machine import FakeMachine, container, pc, pi4, pi5

BOOT, LATER = "boot-1", "boot-2"
RPS = "sys/class/net/eth0/queues/rx-0/rps_cpus"
GOVERNOR = "sys/devices/system/cpu/cpufreq/policy0/scaling_governor"


class Rig:
    """A machine, its record, and what `esp-gw tune` does to it."""

    def __init__(self, machine: FakeMachine, folder: Path, card: str = "eth0") -> None:
        self.machine = machine
        self.book = RecordFile(folder / "record")
        self.book.create()
        self.card = card

    def settings(self) -> list[Setting]:
        return advise(look([self.card], self.machine.places, self.machine.root), Use())

    def make(self, boot: str = BOOT) -> dict[str, str]:
        steps = make(self.settings(), self.machine.places, self.book, boot)
        return {str(step.place): step.text for step in steps}

    def undo(self) -> dict[str, tuple[bool, str]]:
        steps = take_back(self.machine.places, self.book)
        return {str(step.place): (step.done, step.text) for step in steps}

    def again(self, boot: str) -> dict[str, tuple[bool, str]]:
        steps = make_again(self.machine.places, self.book, boot)
        return {str(step.place): (step.done, step.text) for step in steps}

    def state(self) -> dict[str, str]:
        """Every value of the machine that can be changed."""
        values = {str(each.place): self.machine.places.read(each.place) for each in self.settings()}
        cards = self.machine.ethtool.cards.items()
        return values | {name: f"{sorted(card.wanted)}" for name, card in cards}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(pi4(tmp_path / "root"), tmp_path)


@pytest.mark.parametrize(
    ("kind", "card"), [(pi4, "eth0"), (pi5, "eth0"), (pc, "ens3"), (container, "eth0")]
)
def test_what_is_made_is_taken_back_to_the_last_value(
    tmp_path: Path, kind: type[FakeMachine], card: str
) -> None:
    rig = Rig(kind(tmp_path / "root"), tmp_path, card)
    before = rig.state()
    made = rig.make()
    assert made
    assert rig.state() != before
    rig.undo()
    assert rig.state() == before
    assert rig.book.load() == Record()
    assert not rig.book.path.exists()


def test_made_twice_it_keeps_the_first_former_values(rig: Rig) -> None:
    before = rig.state()
    rig.make()
    record = rig.book.load()
    assert rig.make() == {}
    assert rig.book.load() == record
    rig.undo()
    assert rig.state() == before


def test_the_record_is_on_disk_before_the_first_write(rig: Rig) -> None:
    before = rig.state()

    class Crash(BaseException):
        pass

    places = rig.machine.places
    written = []

    def write(place: Place, value: str) -> None:
        if len(written) == 2:
            raise Crash
        written.append(place)
        type(places).write(places, place, value)

    places.write = write  # type: ignore[method-assign]
    with pytest.raises(Crash):
        make(rig.settings(), places, rig.book, BOOT)
    assert rig.state() != before
    rig.undo()
    assert rig.state() == before


def test_without_a_record_nothing_is_written(rig: Rig) -> None:
    before = rig.state()
    rig.book.path.parent.rmdir()
    with pytest.raises(EspGwError, match=r"made\.json: No such file.*; make room"):
        rig.make()
    assert rig.state() == before


def test_what_somebody_else_set_meanwhile_stays(rig: Rig) -> None:
    rig.make()
    rig.machine.write(RPS, "3")
    rig.machine.write(GOVERNOR, "ondemand")
    told = rig.undo()
    assert told["eth0 rx-0 rps_cpus"] == (
        True,
        "left at 3: somebody else has set it since it was made e",
    )
    assert "policy0 governor" not in told
    assert rig.machine.read(RPS) == "3"
    assert rig.machine.read(GOVERNOR) == "ondemand"
    assert rig.undo() == {}


def test_what_somebody_else_set_is_former_for_what_is_made_then(rig: Rig) -> None:
    rig.make()
    rig.machine.write(GOVERNOR, "powersave")
    assert rig.make() == {"policy0 governor": "powersave -> performance"}
    rig.undo()
    assert rig.machine.read(GOVERNOR) == "powersave"
    assert int(rig.machine.read(RPS), 16) == 0


def test_a_write_that_fails_is_told_and_leaves_nothing_to_take_back(tmp_path: Path) -> None:
    rig = Rig(container(tmp_path / "root"), tmp_path)
    before = rig.state()
    assert rig.make()["eth0 rx-gro feature"] == "stays off, not on: Operation not supported"
    rig.undo()
    assert rig.state() == before


def test_a_feature_that_the_card_does_not_take_is_told_and_no_longer_wanted(tmp_path: Path) -> None:
    rig = Rig(container(tmp_path / "root"), tmp_path)
    rig.machine.ethtool.refuses.clear()
    rig.machine.ethtool.cards["eth0"].stuck = frozenset({"rx-gro"})
    before = rig.state()
    told = {
        str(each.place): each for each in make(rig.settings(), rig.machine.places, rig.book, BOOT)
    }
    step = told["eth0 rx-gro feature"]
    assert (step.done, step.text) == (False, "stays off, not on: the card did not take it")
    rig.undo()
    assert rig.state() == before


def test_a_value_that_the_kernel_rounds_is_taken_back(rig: Rig) -> None:
    places = rig.machine.places
    plain = places.write

    def write(place: Place, value: str) -> None:
        plain(place, "2048" if place.knob == "rps_flow_cnt" and value != "0" else value)

    places.write = write  # type: ignore[method-assign]
    told = {str(step.place): step for step in make(rig.settings(), places, rig.book, BOOT)}
    step = told["eth0 rx-0 rps_flow_cnt"]
    assert (step.done, step.text) == (False, "stays 2048, not 4096: the kernel kept it")
    rig.undo()
    assert rig.machine.read("sys/class/net/eth0/queues/rx-0/rps_flow_cnt") == "0"


def test_what_can_not_be_taken_back_stays_on_record(tmp_path: Path) -> None:
    rig = Rig(pi5(tmp_path / "root"), tmp_path)
    before = rig.state()
    rig.make()
    rig.machine.ethtool.refuses = {"tx-tcp-segmentation"}
    place = "eth0 tx-tcp-segmentation feature"
    done, text = rig.undo()[place]
    assert (done, text) == (False, "not taken back, stays off: Operation not supported")
    assert [str(each) for each in rig.book.load().entries] == [place]
    rig.machine.ethtool.refuses.clear()
    rig.undo()
    assert rig.state() == before


def test_a_card_that_was_taken_out_is_told_and_forgotten(tmp_path: Path) -> None:
    rig = Rig(pi5(tmp_path / "root"), tmp_path)
    rig.make()
    del rig.machine.ethtool.cards["eth0"]
    (rig.machine.root / RPS).unlink()
    told = rig.undo()
    assert told["eth0 rx-0 rps_cpus"] == (True, "forgotten: No such file or directory")
    assert told["eth0 tx-tcp-segmentation feature"] == (True, "forgotten: No such device")
    assert rig.book.load() == Record()


def test_a_card_that_is_down_keeps_its_interrupts_on_record(tmp_path: Path) -> None:
    """Its interrupts have no number then; they come back as the card is up again."""
    rig = Rig(pc(tmp_path / "root"), tmp_path, "ens3")
    before = rig.state()
    rig.make()
    interrupts = rig.machine.read("proc/interrupts")
    rig.machine.write("proc/interrupts", "           CPU0\n")
    rig.machine.write("sys/class/net/ens3/flags", "0x1002")
    place = "ens3 virtio0-input.1#0 irq_cpus"
    assert rig.again(BOOT)[place] == (
        True,
        "left out, as it is not there: the card has no interrupts while it is down",
    )
    assert rig.undo()[place] == (
        False,
        "can't be read: the card has no interrupts while it is down",
    )
    rig.machine.write("proc/interrupts", interrupts)
    rig.machine.write("sys/class/net/ens3/flags", "0x1003")
    assert rig.undo()[place] == (True, "2 -> f")
    assert rig.state() == before
    assert rig.book.load() == Record()


def test_an_interrupt_that_a_card_that_is_up_lacks_is_forgotten(tmp_path: Path) -> None:
    rig = Rig(pc(tmp_path / "root"), tmp_path, "ens3")
    rig.make()
    rig.machine.write("sys/class/net/ens3/flags", "0x1003")
    text = rig.machine.read("proc/interrupts")
    rig.machine.write("proc/interrupts", text.replace("virtio0-input.1", "other"))
    place = "ens3 virtio0-input.1#0 irq_cpus"
    assert rig.undo()[place] == (True, "forgotten: No such file or directory")
    assert rig.book.load() == Record()


def reboot(rig: Rig, kind: type[FakeMachine], folder: Path) -> None:
    """Give the rig the machine as it is after a boot."""
    rig.machine = kind(folder)


def test_a_boot_makes_again_what_is_on_record(rig: Rig, tmp_path: Path) -> None:
    rig.make()
    made = rig.state()
    reboot(rig, pi4, tmp_path / "rebooted")  # type: ignore[arg-type]
    fresh = rig.state()
    told = rig.again(LATER)
    assert told["eth0 rx-0 rps_cpus"] == (True, "0 -> e")
    assert rig.state() == made
    assert rig.again(LATER) == {}
    rig.undo()
    assert rig.state() == fresh


def test_after_a_boot_the_value_that_it_set_is_given_back(rig: Rig, tmp_path: Path) -> None:
    rig.make()
    reboot(rig, pi4, tmp_path / "rebooted")  # type: ignore[arg-type]
    rig.machine.write(GOVERNOR, "schedutil")
    assert rig.again(LATER)["policy0 governor"] == (True, "schedutil -> performance")
    # In this boot somebody else's value stays.
    rig.machine.write(RPS, "3")
    assert rig.again(LATER)["eth0 rx-0 rps_cpus"] == (True, "left at 3: somebody else has set it")
    rig.undo()
    assert rig.machine.read(GOVERNOR) == "schedutil"
    assert rig.machine.read(RPS) == "3"


def test_a_boot_that_sets_the_made_value_itself_leaves_nothing_to_take_back(
    rig: Rig, tmp_path: Path
) -> None:
    rig.make()
    reboot(rig, pi4, tmp_path / "rebooted")  # type: ignore[arg-type]
    rig.machine.write(GOVERNOR, "performance")
    assert "policy0 governor" not in rig.again(LATER)
    assert "policy0 governor" not in rig.undo()
    assert rig.machine.read(GOVERNOR) == "performance"


def test_a_boot_without_a_card_makes_the_rest(rig: Rig, tmp_path: Path) -> None:
    rig.make()
    rig.machine = FakeMachine(tmp_path / "bare")
    rig.machine.governor("policy0", "ondemand")
    told = rig.again(LATER)
    assert told["policy0 governor"] == (True, "ondemand -> performance")
    assert told["eth0 rx-0 rps_cpus"][0]
    assert told["eth0 rx-0 rps_cpus"][1].startswith("left out, as it is not there")
    # The card may come back.
    reboot(rig, pi4, tmp_path / "rebooted")  # type: ignore[arg-type]
    assert rig.again("boot-3")["eth0 rx-0 rps_cpus"] == (True, "0 -> e")


def test_interrupts_are_found_by_name_when_their_numbers_differ(tmp_path: Path) -> None:
    rig = Rig(pc(tmp_path / "root"), tmp_path, "ens3")
    rig.make()
    machine = FakeMachine(tmp_path / "rebooted")
    card = rig.machine.ethtool.cards["ens3"]
    machine.card("ens3", "virtio_net", "pci/virtio0", card, receive=2, send=2)
    for number, name in enumerate(("input.1", "output.1", "input.0", "output.0"), 70):
        machine.interrupt(number, f"virtio0-{name}")
    rig.machine = machine
    rig.again(LATER)
    masks = {number: machine.read(f"proc/irq/{number}/smp_affinity") for number in (70, 72)}
    assert masks == {70: "00000002", 72: "00000001"}


def test_nothing_on_record_is_nothing_to_do(rig: Rig) -> None:
    assert rig.undo() == {}
    assert rig.again(LATER) == {}
    assert not rig.book.path.exists()
