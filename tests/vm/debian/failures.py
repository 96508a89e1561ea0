"""Reactions of systemd to a gateway that dies, hangs, or can't start; in this order."""

from __future__ import annotations

import json

from lab.vm.disk import CLONE
from tests.support.debian import CONFIG, DROP_INS, MISTAKE, PLAIN, STATE, Debian


class Restarted:
    def test_a_killed_gateway_comes_back_with_the_drop_ins_that_are_there_then(
        self, running: Debian
    ) -> None:
        # As the comments of af-alg.conf have it.
        script = 'install -D -m 644 "$1/systemd/af-alg.conf" "$2/af-alg.conf"'
        running.shell(script, CLONE, DROP_INS)
        running.drop_in("watchdog", "WatchdogSec=10")
        pid = running.show()["MainPID"]
        running.ok("systemctl", "kill", "--signal=KILL", "esp-gw")
        running.wait_active(than=pid)
        shown = running.show()
        assert (shown["NRestarts"], shown["WatchdogUSec"]) == ("1", "10s")

    def test_the_drop_in_for_af_alg_lets_it_be_used(self, running: Debian) -> None:
        status = json.loads(running.run("esp-gw", "status", "--json").stdout)
        reasons = [entry["why"] for entry in status["af_alg"].values()]
        assert reasons
        assert not any("EAFNOSUPPORT" in why for why in reasons), reasons

    def test_a_hanging_gateway_is_restarted_by_the_watchdog(self, running: Debian) -> None:
        pid = running.show()["MainPID"]
        running.ok("systemctl", "kill", "--signal=STOP", "--kill-whom=main", "esp-gw")
        running.wait_active(than=pid)
        told = running.ok("journalctl", "-b", "-o", "cat", "_PID=1", "UNIT=esp-gw.service")
        assert "Watchdog timeout" in told
        running.remove_drop_in("watchdog")


class Refused:
    def test_a_restart_with_a_bad_file_fails_for_good_and_stays_closed(
        self, running: Debian
    ) -> None:
        running.ok("systemctl", "reset-failed", "esp-gw")
        running.misconfigure()
        assert running.run("systemctl", "restart", "esp-gw").status == 1
        shown = running.show()
        assert (shown["ActiveState"], shown["ExecMainStatus"]) == ("failed", "78")
        assert shown["NRestarts"] == "0"
        assert "esp-gw.service" in running.ok("systemctl", "--failed", "--plain", "--no-legend")
        first = running.journal("-p", "err", f"_PID={shown['ExecMainPID']}")[0]
        assert first.startswith(f"{CONFIG}:"), first
        assert MISTAKE in first
        running.assert_closed()


class TriedAgain:
    def test_a_missing_file_is_waited_for_slower_and_slower_and_closed(
        self, machine: Debian
    ) -> None:
        machine.configure(machine.config)
        machine.ok("systemctl", "stop", "esp-gw")
        machine.ok("mv", CONFIG, f"{CONFIG}.away")
        since = machine.ok("date", "+%s").strip()
        machine.ok("systemctl", "start", "--no-block", "esp-gw")
        machine.wait_for_journal("waiting before the next try", "--since", f"@{since}")
        assert machine.show()["ActiveState"] == "activating"
        machine.assert_closed()
        machine.ok("mv", f"{CONFIG}.away", CONFIG)
        machine.wait_active()
        # From then on a failure is the first one again.
        assert machine.run("test", "-e", "/run/esp-gw/starts").status == 1

    def test_a_missing_credential_is_waited_for_and_closed(self, machine: Debian) -> None:
        """systemd itself fails then, before there is a gateway."""
        machine.ok("mv", PLAIN, f"{PLAIN}.away")
        machine.ok("systemctl", "restart", "--no-block", "esp-gw")
        machine.wait_for(lambda: int(machine.show()["NRestarts"]) >= 2, pause=2)
        machine.assert_closed()
        machine.ok("mv", f"{PLAIN}.away", PLAIN)
        machine.wait_active()
        machine.assert_carries()


class GivenAway:
    def test_a_state_directory_of_another_user_is_taken_back_at_the_start(
        self, running: Debian
    ) -> None:
        running.ok("systemctl", "stop", "esp-gw")
        # Not nobody, whose files systemd 257 leaves as they are and maps to the unit's user.
        running.ok("chown", "-R", "daemon:daemon", STATE)
        running.assert_closed()
        running.ok("systemctl", "start", "esp-gw")
        running.assert_carries()
        owners = set(running.shell(f"stat -c %U:%G {STATE} {STATE}/*").split())
        assert owners == {"esp-gw:esp-gw"}


class Stopped:
    def test_a_stop_is_clean_and_leaves_the_prefixes_closed(self, running: Debian) -> None:
        running.ok("systemctl", "stop", "esp-gw")
        shown = running.show()
        assert (shown["ActiveState"], shown["Result"]) == ("inactive", "success")
        assert running.run("ip", "link", "show", "esp0").status == 1
        assert running.show("esp-gw-guard")["ActiveState"] == "active"
        running.assert_closed()
