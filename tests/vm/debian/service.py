"""The service as it is installed, started, asked and reloaded; in this order."""

from __future__ import annotations

import json

from esp_gw.daemon.priority import CONTROL_NICE
from esp_gw.engine.refusals import LATENCY_DEVICE
from lab.vm.disk import CLONE
from tests.support.debian import CONFIG, ETC, MISTAKE, STATE, Debian

UNITS = ("esp-gw.service", "esp-gw-guard.service")


class Installed:
    """Files and units after scripts/install."""

    def test_its_user_owns_the_state_and_reads_the_configuration(self, machine: Debian) -> None:
        found = machine.ok("stat", "-c", "%n %U:%G %a", STATE, ETC, f"{ETC}/keys")
        assert found.splitlines() == [
            f"{STATE} esp-gw:esp-gw 700",
            f"{ETC} root:esp-gw 750",
            f"{ETC}/keys root:esp-gw 750",
        ]

    def test_its_group_may_keep_processors_awake(self, machine: Debian) -> None:
        found = ("stat", "-c", "%U:%G %a", LATENCY_DEVICE)
        # udev follows its rules while the machine boots on.
        machine.wait_for(lambda: machine.ok(*found) == "root:esp-gw 660\n")

    def test_it_has_started_and_enabled_nothing(self, machine: Debian) -> None:
        for command, state in (("is-enabled", "disabled\n"), ("is-active", "inactive\n")):
            assert machine.run("systemctl", command, *UNITS).stdout == state * 2

    def test_systemd_finds_no_fault_in_the_units(self, machine: Debian) -> None:
        verdict = machine.run("systemd-analyze", "verify", "--man=no", *UNITS)
        assert (verdict.status, verdict.stdout, verdict.stderr) == (0, "", "")


class StartedTooEarly:
    def test_it_starts_by_itself_once_it_is_configured(self, machine: Debian, engine: str) -> None:
        machine.ok("systemctl", "enable", "esp-gw")
        machine.ok("systemctl", "start", "--no-block", "esp-gw")
        machine.wait_for_journal("waiting before the next try")
        machine.set_up(engine)
        machine.wait_active()
        machine.ok("systemctl", "stop", "esp-gw")


class Started:
    def test_a_start_returns_once_packets_are_carried(self, machine: Debian, engine: str) -> None:
        machine.set_up(engine)
        machine.ok("systemctl", "enable", "esp-gw")
        machine.shell("systemctl start esp-gw && ping -c 1 -W 20 10.2.0.1")
        machine.assert_carries()
        assert machine.show()["StatusText"] == f"2 SAs, engine {engine}"

    def test_the_unit_lets_it_keep_processors_awake(self, machine: Debian) -> None:
        latency = json.loads(machine.run("esp-gw", "status", "--json").stdout)["latency"]
        assert (latency["setting"], latency["why"]) == ("low", "")

    def test_the_control_plane_runs_before_the_workers(self, machine: Debian, engine: str) -> None:
        tasks = machine.shell(f"cat /proc/{machine.show()['MainPID']}/task/*/stat").splitlines()
        # proc_pid_stat(5): field 19 is the nice value, and field 2 the name in parentheses.
        found: dict[bool, set[int]] = {True: set(), False: set()}
        for stat in tasks:
            found["(esp-worker" in stat].add(int(stat.rpartition(")")[2].split()[16]))
        native = engine == "native"
        assert found == {True: {0} if native else set(), False: {CONTROL_NICE if native else 0}}

    def test_enabling_it_has_enabled_the_guard(self, machine: Debian) -> None:
        for command, state in (("is-enabled", "enabled\n"), ("is-active", "active\n")):
            assert machine.ok("systemctl", command, *UNITS) == state * 2

    def test_the_group_may_ask_and_others_may_not(self, machine: Debian, engine: str) -> None:
        machine.ok("useradd", "--groups", "esp-gw", "alice")
        # Its own status is that of a gateway with a warning.
        answer = machine.run("runuser", "-u", "alice", "--", "esp-gw", "status", "--json")
        status = json.loads(answer.stdout)
        assert status["engine"] == engine
        # Only the drop-in lets the service reach AF_ALG.
        assert all("EAFNOSUPPORT" in entry["why"] for entry in status["af_alg"].values()), status
        refused = machine.run("runuser", "-u", "nobody", "--", "esp-gw", "status")
        assert refused.status == 4
        assert refused.stderr.count("\n") == 1
        assert "/run/esp-gw/control.sock" in refused.stderr


class Reloaded:
    def test_a_bad_file_fails_the_reload_and_the_old_state_runs_on(
        self, running: Debian, engine: str
    ) -> None:
        pid = running.show()["MainPID"]
        running.misconfigure()
        assert running.run("systemctl", "reload", "esp-gw").status == 1
        shown = running.show()
        assert (shown["ActiveState"], shown["MainPID"]) == ("active", pid)
        assert shown["StatusText"].startswith(f"2 SAs, engine {engine}; ")
        assert MISTAKE in shown["StatusText"]
        running.assert_carries()
        assert any(CONFIG in line and MISTAKE in line for line in running.journal("-p", "err"))

    def test_a_good_file_is_applied_and_the_tunnel_goes_on(
        self, running: Debian, engine: str
    ) -> None:
        pid = running.show()["MainPID"]
        running.config["policies"] = [{"action": "discard", "remote_ts": ["198.18.0.0/15"]}]
        running.configure(running.config)
        running.ok("systemctl", "reload", "esp-gw")
        shown = running.show()
        assert (shown["MainPID"], shown["StatusText"]) == (pid, f"2 SAs, engine {engine}")
        assert "198.18.0.0/15" in running.ok("ip", "route", "show", "table", "4500")
        running.assert_carries()


class InstalledAgain:
    """Last of all: it takes minutes in an emulator."""

    def test_over_a_running_gateway_which_goes_on(self, running: Debian) -> None:
        pid = running.show()["MainPID"]
        running.shell(
            'cd "$1" && PIP_NO_INDEX=1 PIP_FIND_LINKS="$1/wheels" ./scripts/install', CLONE
        )
        assert running.show()["MainPID"] == pid
        running.assert_carries()
        running.ok("systemctl", "restart", "esp-gw")
        running.assert_carries()
