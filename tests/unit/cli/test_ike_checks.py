"""`esp-gw doctor` on charon: findings on machines whose charon lacks one thing or another."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from esp_gw.cli import apparmor, ike_checks
from esp_gw.cli.finding import Finding, State
from esp_gw.cli.ike_checks import ike_findings
from esp_gw.desired import GatewaySettings

FWMARK = GatewaySettings().fwmark
SOCKET = Path(GatewaySettings().control_socket)
CONF = """\
charon {
  load_modular = yes
  plugins {
    include strongswan.d/charon/*.conf
  }
}
include strongswan.d/*.conf
"""
STATS = "uptime: 3 seconds\nloaded plugins: charon-systemd nonce openssl {plugins}\nIKE_SAs: 0\n"
REFUSED = (
    "connecting to 'unix:///var/run/charon.vici' failed: {why}\n"
    "Error: connecting to 'default' URI failed: {why}\nstrongSwan 5.9.8 swanctl\nusage:\n"
)


class Machine:
    """A machine where charon and the plugin are installed, from which tests remove something."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.charon = folder / "charon-systemd"
        self.plugins = folder / "plugins"
        self.conf = folder / "strongswan.conf"
        self.details = folder / "strongswan.d/charon"
        self.version = "installed 5.9.8-5+deb12u6\n"
        self.loaded: str | None = "kernel-esp-gw vici kernel-netlink"
        self.refusal = "No such file or directory"
        self.profile = apparmor.Profile(self.charon)
        self.plugins.mkdir()
        self.details.mkdir(parents=True)
        self.charon.touch()
        self.build("kernel-esp-gw", "5.9.8")
        self.conf.write_text(CONF)
        self.write("charon/kernel-esp-gw", "kernel-esp-gw { load = 10\n }")
        self.write("charon/socket-default", "socket-default { load = yes\n }")
        self.write("charon/kernel-netlink", "kernel-netlink { load = yes\n }")
        self.write("esp-gw", "charon { plugins { socket-default { load = no\n } } }")
        monkeypatch.setattr(ike_checks, "CHARONS", (self.charon, folder / "charon"))
        monkeypatch.setattr(ike_checks, "PLUGINS", self.plugins)
        monkeypatch.setattr(ike_checks, "CONF", self.conf)
        monkeypatch.setattr(ike_checks, "_run", self.run)
        monkeypatch.setattr(apparmor, "FOLDER", folder / "apparmor.d")
        monkeypatch.setattr(apparmor, "LOADED", folder / "loaded")
        monkeypatch.setattr(apparmor, "KERNEL_LOG", folder / "kmsg")
        monkeypatch.setattr(apparmor, "FEATURES", folder / "features")
        monkeypatch.setattr(apparmor, "ENABLED", folder / "enabled")

    def build(self, plugin: str, version: str) -> None:
        """Write a plugin as a build leaves it."""
        note = f"esp_gw: {plugin} for charon {version}, sources 0123456789abcdef\0"
        content = b"\x7fELF\xff" + note.encode() + b"\xfe"
        (self.plugins / f"libstrongswan-{plugin}.so").write_bytes(content)

    def write(self, name: str, text: str) -> None:
        """Write a file of strongswan.d."""
        (self.details.parent / f"{name}.conf").write_text(text)

    def confine(self, mode: str, rule: str = "") -> None:
        """Let AppArmor have a profile of charon."""
        self.profile.local.parent.mkdir(parents=True)
        self.profile.file.write_text(f"{self.charon} {{\n  network,\n}}\n")
        self.profile.local.write_text(rule)
        apparmor.ENABLED.write_text("Y\n")
        if mode != "unknown":
            apparmor.LOADED.write_text(f"{self.charon} ({mode})\n")

    def run(self, *command: str) -> subprocess.CompletedProcess[str] | None:
        """Stand for the programs that are asked."""
        if command[0] == "dpkg-query":
            return subprocess.CompletedProcess(command, 0, self.version, "")
        assert command == ("swanctl", "--stats")
        if self.loaded is None:
            refusal = REFUSED.format(why=self.refusal)
            return subprocess.CompletedProcess(command, 1, "", refusal)
        return subprocess.CompletedProcess(command, 0, STATS.format(plugins=self.loaded), "")

    def findings(self, socket: Path = SOCKET, fwmark: int | None = FWMARK) -> list[Finding]:
        return list(ike_findings(socket, fwmark))

    def only(self, socket: Path = SOCKET, fwmark: int | None = FWMARK) -> Finding:
        """Return the only finding that is not OK."""
        (found,) = [each for each in self.findings(socket, fwmark) if each.state is not State.OK]
        return found


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_healthy_machine_has_no_findings_but_ok(machine: Machine) -> None:
    findings = machine.findings()
    assert {each.state for each in findings} == {State.OK}, findings
    assert [each.what for each in findings] == ["charon", "ike plugin", "ike settings", "ike"]
    assert findings[0].found == "charon 5.9.8"
    assert findings[1].found.endswith("libstrongswan-kernel-esp-gw.so is built for charon 5.9.8")
    assert findings[-1].found == "charon runs with kernel-esp-gw"


def test_a_machine_without_charon_has_no_findings(machine: Machine) -> None:
    machine.charon.unlink()
    assert machine.findings() == []


def test_a_charon_that_has_nothing_to_do_with_the_gateway_is_one_finding(machine: Machine) -> None:
    (machine.plugins / "libstrongswan-kernel-esp-gw.so").unlink()
    (machine.details / "kernel-esp-gw.conf").unlink()
    machine.confine("enforce")
    (finding,) = machine.findings()
    assert (finding.state, finding.what) == (State.OK, "charon")
    assert finding.found == "charon 5.9.8, without the plugin kernel-esp-gw"


def test_a_plugin_that_is_configured_and_missing_is_a_fault(machine: Machine) -> None:
    (machine.plugins / "libstrongswan-kernel-esp-gw.so").unlink()
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ike plugin")
    assert finding.todo == "run 'scripts/install-ike'"


@pytest.mark.parametrize("plugin", ["kernel-esp-gw", "ml"])
def test_a_plugin_for_another_charon_is_a_fault(machine: Machine, plugin: str) -> None:
    machine.build(plugin, "6.0.1")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ike plugin")
    assert finding.found.endswith("is built for charon 6.0.1, and 5.9.8 is installed: it may crash")


@pytest.mark.parametrize(
    "version", ["installed 6.0.1-6+deb13u2", "installed 1:6.0.1-6", "installed 6.0.1"]
)
def test_versions_of_packages_are_compared_by_what_is_upstreams(
    machine: Machine, version: str
) -> None:
    machine.version = f"config-files 5.9.8-5\n{version}\n"
    machine.build("kernel-esp-gw", "6.0.1")
    machine.build("ml", "6.0.1")
    assert [each.what for each in machine.findings()].count("ike plugin") == 2
    assert {each.state for each in machine.findings()} == {State.OK}


def test_a_ml_of_another_origin_is_left_alone(machine: Machine) -> None:
    (machine.plugins / "libstrongswan-ml.so").write_bytes(b"\x7fELF")
    assert [each.what for each in machine.findings()].count("ike plugin") == 1


def test_a_charon_of_no_package_is_named_so(machine: Machine) -> None:
    machine.version = ""
    assert "no package" in machine.findings()[0].found
    assert {each.state for each in machine.findings()} == {State.OK}


def test_a_plugin_that_does_not_say_for_which_charon_it_is_is_a_warning(machine: Machine) -> None:
    (machine.plugins / "libstrongswan-kernel-esp-gw.so").write_bytes(b"\x7fELF")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "ike plugin")


@pytest.mark.parametrize("text", ["", "kernel-esp-gw { load = no\n }", "kernel-esp-gw { }"])
def test_a_plugin_that_charon_does_not_load_is_a_fault(machine: Machine, text: str) -> None:
    machine.write("charon/kernel-esp-gw", text)
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ike settings")
    assert "'load = 10'" in finding.todo and "kernel-esp-gw.conf" in finding.todo


def test_plugins_by_a_list_have_a_remedy_of_their_own(machine: Machine) -> None:
    machine.conf.write_text(CONF.replace("load_modular = yes", "load = nonce socket-default"))
    (first, second) = [each for each in machine.findings() if each.state is State.FAULT]
    assert "load_modular = yes" in first.todo
    assert "socket-default" in second.found


@pytest.mark.parametrize("backend", ["kernel-netlink", "kernel-libipsec"])
def test_another_backend_in_front_is_a_fault(machine: Machine, backend: str) -> None:
    machine.write(f"charon/{backend}", f"{backend} {{ load = 11\n }}")
    finding = machine.only()
    assert finding.found == f"charon prefers {backend} to kernel-esp-gw"
    machine.write("charon/kernel-esp-gw", "kernel-esp-gw { load = yes\n }")
    machine.write(f"charon/{backend}", f"{backend} {{ load = yes\n }}")
    assert {each.state for each in machine.findings()} == {State.OK}


@pytest.mark.parametrize("how", ["gone", "later"])
def test_another_socket_is_a_fault(machine: Machine, how: str) -> None:
    if how == "gone":
        (machine.details.parent / "esp-gw.conf").unlink()
    else:
        machine.write("later", "charon-systemd { plugins { socket-default { load = 1\n } } }")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ike settings")
    assert "charon loads socket-default" in finding.found


def test_settings_that_charon_cannot_read_are_a_fault_with_their_line(machine: Machine) -> None:
    machine.write("charon/kernel-esp-gw", "kernel-esp-gw {\n")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ike settings")
    assert "kernel-esp-gw.conf:2: charon can't read this" in finding.found


def test_a_plugin_that_looks_for_the_gateway_elsewhere_is_a_fault(machine: Machine) -> None:
    finding = machine.only(Path("/run/other/control.sock"))
    assert finding.found == f"charon looks for the gateway at {SOCKET}"
    assert "'socket = /run/other/control.sock'" in finding.todo
    text = "kernel-esp-gw { load = 10\n socket = /run/other/control.sock\n }"
    machine.write("charon/kernel-esp-gw", text)
    assert {each.state for each in machine.findings(Path("/run/other/control.sock"))} == {State.OK}


@pytest.mark.parametrize(
    ("mark", "is_fault"), [("7", False), ("0x7", False), ("0xe5b", True), ("x", True), ("", True)]
)
def test_another_mark_than_the_gateways_is_a_fault(
    machine: Machine, mark: str, is_fault: bool
) -> None:
    machine.write("charon/kernel-esp-gw", f"kernel-esp-gw {{ load = 10\n fwmark = {mark}\n }}")
    states = {each.state for each in machine.findings(fwmark=7)}
    assert (State.FAULT in states) is is_fault
    if is_fault:
        assert "'fwmark = 0x7'" in machine.only(fwmark=7).todo
    assert {each.state for each in machine.findings(fwmark=None)} == {State.OK}


@pytest.mark.parametrize("asks", [True, False])
@pytest.mark.parametrize("mode", ["enforce", "unknown", "complain"])
def test_a_profile_without_the_rule_counts_where_the_kernel_asks(
    machine: Machine, mode: str, asks: bool
) -> None:
    machine.confine(mode)
    feature = apparmor.FEATURES / "network_v9/af_unix"
    feature.parent.mkdir(parents=True)
    feature.write_text("yes\n" if asks else "no\n")
    (finding,) = [each for each in machine.findings() if each.what == "apparmor"]
    assert f"has no rule for {SOCKET}" in finding.found
    is_warned = asks and mode != "complain"
    assert finding.state is (State.WARNING if is_warned else State.OK)
    assert (f"add '{SOCKET} rw,' to {machine.profile.local}" in finding.todo) is is_warned


def test_a_profile_with_the_rule_is_no_fault(machine: Machine) -> None:
    machine.confine("enforce", f"{SOCKET} rw,\n")
    (finding,) = [each for each in machine.findings() if each.what == "apparmor"]
    assert (finding.state, finding.found.endswith(f"allows {SOCKET}")) == (State.OK, True)


@pytest.mark.parametrize("rule", ["", f"{SOCKET} rw,\n"])
@pytest.mark.parametrize(("seconds", "state"), [(10, State.FAULT), (-10, State.OK)])
def test_a_denial_since_the_last_change_is_a_fault(
    machine: Machine, seconds: int, state: State, rule: str
) -> None:
    machine.confine("enforce", rule)
    changed = machine.profile.changed()
    apparmor.KERNEL_LOG.write_text(
        f'5,1,2,-;audit: type=1400 audit({changed + seconds:.3f}:9): apparmor="DENIED" '
        f'operation="connect" profile="{machine.charon}" name="{SOCKET}" pid=1\n'
    )
    (finding,) = [each for each in machine.findings() if each.what == "apparmor"]
    assert finding.state is state
    assert ("apparmor_parser --replace" in finding.todo) is (state is State.FAULT)
    if state is State.FAULT:
        assert finding.todo.startswith("run 'apparmor" if rule else "add '")


def test_apparmor_is_no_subject_where_it_does_not_run(machine: Machine) -> None:
    machine.confine("enforce")
    apparmor.ENABLED.write_text("N\n")
    assert "apparmor" not in [each.what for each in machine.findings()]


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        ("kernel-netlink socket-default", "charon runs without kernel-esp-gw"),
        ("kernel-esp-gw socket-default", "charon runs with socket-default"),
        ("", "charon runs without kernel-esp-gw"),
    ],
)
def test_a_charon_that_runs_with_other_plugins_is_a_fault(
    machine: Machine, loaded: str, found: str
) -> None:
    machine.loaded = loaded
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ike")
    assert finding.found.startswith(found)
    assert "systemctl restart strongswan" in finding.todo


@pytest.mark.parametrize("why", ["No such file or directory", "Permission denied"])
def test_a_charon_that_does_not_answer_is_no_fault(machine: Machine, why: str) -> None:
    machine.loaded, machine.refusal = None, why
    (finding,) = [each for each in machine.findings() if each.what == "ike"]
    assert finding.state is State.OK
    assert why in finding.found and "\n" not in finding.found


def test_missing_programs_are_no_fault(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(ike_checks, "CHARONS", (machine.charon,))
    monkeypatch.setattr(ike_checks, "PLUGINS", machine.plugins)
    monkeypatch.setattr(ike_checks, "CONF", machine.conf)
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = [each for each in machine.findings() if each.what != "apparmor"]
    assert {each.state for each in findings} == {State.OK}
    assert "swanctl is missing" in findings[-1].found


def test_a_program_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ike_checks, "ANSWER_TIMEOUT", 0.2)
    program = tmp_path / "swanctl"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ike_checks._run("swanctl", "--stats") is None


def test_a_profile_that_is_not_loaded_is_no_subject(machine: Machine) -> None:
    machine.confine("enforce")
    apparmor.LOADED.write_text("man_filter (enforce)\n")
    assert "apparmor" not in [each.what for each in machine.findings()]
