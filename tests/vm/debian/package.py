"""The Debian package under systemd: in place of a checkout's installation, upgraded, purged."""

from __future__ import annotations

from lab.vm.disk import CLONE
from lab.vm.packages import LATER
from tests.support.debian import ETC, STATE, Debian, leaked, sent_to
from tests.vm.debian.service import UNITS
from tests.vm.inside.talker import BOUND, ROUTED

PACKAGES = f"{CLONE}/packages"
INSTALL = "dpkg -i $1/esp-gw_*.deb"


class Packaged:
    def test_it_takes_the_place_of_the_checkouts_and_the_tunnel_goes_on(
        self, running: Debian
    ) -> None:
        before, pid = len(running.sent()), running.show()["MainPID"]
        assert "taking the place" in running.shell(INSTALL, PACKAGES)
        running.wait_active(than=pid)
        running.assert_carries()
        paths = running.ok("systemctl", "show", "-P", "FragmentPath", *UNITS).split()
        # Of the two names of one folder systemd 252 says the other.
        found = [path.removeprefix("/usr") for path in paths]
        assert found == [f"/lib/systemd/system/{unit}" for unit in UNITS]
        assert running.ok("systemctl", "is-enabled", *UNITS) == "enabled\n" * 2
        assert sent_to(running.sent()[before:], ROUTED) == []

    def test_an_upgrade_restarts_the_gateway_with_nothing_in_the_clear(
        self, running: Debian
    ) -> None:
        before, pid = len(running.sent()), running.show()["MainPID"]
        running.ok("dpkg", "-i", f"{PACKAGES}/{LATER}")
        running.wait_active(than=pid)
        running.assert_carries()
        assert leaked(running.sent()[before:]) == []

    def test_a_gateway_whose_configuration_is_refused_runs_on(self, running: Debian) -> None:
        pid = running.show()["MainPID"]
        running.misconfigure()
        said = running.shell("dpkg -i $1 2>&1", f"{PACKAGES}/{LATER}")
        running.configure(running.config)
        assert "esp-gw: not restarted" in said
        assert running.show()["MainPID"] == pid
        running.assert_carries()


class Purged:
    """Last of all, in a boot of its own."""

    def test_removed_it_stays_closed(self, machine: Debian) -> None:
        machine.boot()
        machine.wait_active()
        assert "closed until it is purged" in machine.ok("dpkg", "--remove", "esp-gw")
        machine.assert_closed()
        machine.ok("test", "-e", f"{ETC}/gateway.yaml")

    def test_purged_it_is_open_and_leaves_nothing(self, machine: Debian) -> None:
        machine.ok("dpkg", "--purge", "esp-gw")
        later = machine.later()
        for addresses in (ROUTED, BOUND):
            assert {str(packet.destination) for packet in sent_to(later, addresses)} == set(
                addresses
            )
        for path in (ETC, STATE, "/opt/esp-gw", "/usr/bin/esp-gw"):
            machine.ok("test", "!", "-e", path)
        assert machine.run("id", "esp-gw").status == 1
        assert machine.ok("systemctl", "list-unit-files", "--no-legend", *UNITS) == ""
        assert machine.ok("systemctl", "--failed", "--plain", "--no-legend") == ""
