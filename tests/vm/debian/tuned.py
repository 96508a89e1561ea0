"""Settings of a real card and of the machine around it, over a boot; in this order."""

from __future__ import annotations

import json
from typing import Any

from tests.support.debian import Debian

UNIT = "esp-gw-tune.service"
RECORD = "/var/lib/esp-gw-tune/made.json"
_ETHTOOL = """
import sys
from esp_gw.tune.ethtool import Ethtool
ethtool, card = Ethtool(), sys.argv[1]
if len(sys.argv) > 2:
    ethtool.set_feature(card, "rx-gro", sys.argv[2] == "on")
print("rx-gro" in ethtool.features(card).active)
"""


def card_of(machine: Debian) -> str:
    """Return the card of the default route, once a boot has come that far."""
    route = ("ip", "-4", "-o", "route", "show", "default")
    machine.wait_for(lambda: " dev " in machine.ok(*route))
    return machine.ok(*route).partition(" dev ")[2].split()[0]


def has_gro(machine: Debian, card: str, *state: str) -> bool:
    """Switch GRO of a card on or off, if a state is given; return True if it is on."""
    python = "/opt/esp-gw/bin/python3"
    return machine.ok(python, "-I", "-c", _ETHTOOL, card, *state) == "True\n"


def values(machine: Debian, card: str) -> list[str]:
    """Return what of the kernel is to change: steering, and the tables of all cards."""
    queue = f"/sys/class/net/{card}/queues/rx-0"
    files = (f"{queue}/rps_cpus", f"{queue}/rps_flow_cnt")
    core = "/proc/sys/net/core"
    return machine.ok(
        "cat", *files, f"{core}/rps_sock_flow_entries", f"{core}/netdev_max_backlog"
    ).split()


def shown(machine: Debian) -> dict[str, dict[str, Any]]:
    document = json.loads(machine.ok("esp-gw", "tune", "--json"))
    return {each["place"]: each for each in document["settings"]}


BEFORE, MADE = ["0", "0", "0", "1000"], ["3", "4096", "4096", "4096"]


class Tuned:
    def test_the_unit_is_installed_without_a_fault_and_not_enabled(self, machine: Debian) -> None:
        assert machine.run("systemctl", "is-enabled", UNIT).stdout == "disabled\n"
        verdict = machine.run("systemd-analyze", "verify", "--man=no", UNIT)
        assert (verdict.status, verdict.stdout, verdict.stderr) == (0, "", "")

    def test_settings_of_the_card_are_made_and_the_unit_is_enabled(self, machine: Debian) -> None:
        card = card_of(machine)
        assert not has_gro(machine, card, "off")
        assert values(machine, card) == BEFORE
        assert shown(machine)[f"{card} rx-gro feature"]["better"] == "on"
        text = machine.ok("esp-gw", "tune", "--apply")
        assert text.endswith(f"5 settings made; {UNIT} makes them at each boot\n"), text
        assert has_gro(machine, card)
        assert values(machine, card) == MADE
        assert machine.run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
        found = machine.ok("stat", "-c", "%U %a", RECORD, RECORD.rpartition("/")[0])
        assert found.splitlines() == ["root 600", "root 700"]

    def test_a_boot_makes_them_again(self, machine: Debian) -> None:
        machine.power_off()
        machine.boot()
        # Waits for the start that the boot has begun.
        machine.ok("systemctl", "start", UNIT)
        assert machine.show(UNIT)["Result"] == "success"
        card = card_of(machine)
        assert values(machine, card) == MADE, machine.tail()
        assert shown(machine)["netdev_max_backlog"]["former"] == "1000"
        # Nothing that the unit did was denied.
        log = machine.ok("journalctl", "-b", "-q", "-o", "cat", "-k").splitlines()
        pids = machine.ok("journalctl", "-b", "-q", "-o", "export", "-u", UNIT)
        ours = {line.partition("=")[2] for line in pids.splitlines() if line.startswith("_PID=")}
        assert [line for line in log if "type=1326" in line and ours & _pids(line)] == []

    def test_taken_back_they_are_those_of_the_boot_and_the_unit_is_disabled(
        self, machine: Debian
    ) -> None:
        card = card_of(machine)
        machine.shell("echo 2000 >/proc/sys/net/core/netdev_max_backlog")
        text = machine.ok("esp-gw", "tune", "--undo")
        assert "left at 2000: somebody else has set it" in text
        assert text.endswith(f"; {UNIT} is disabled\n")
        assert values(machine, card) == [*BEFORE[:3], "2000"]
        assert machine.run("systemctl", "is-enabled", UNIT).stdout == "disabled\n"
        machine.ok("test", "!", "-e", RECORD)
        assert machine.ok("systemctl", "--failed", "--plain", "--no-legend") == ""


def _pids(line: str) -> set[str]:
    return {word.removeprefix("pid=") for word in line.split() if word.startswith("pid=")}
