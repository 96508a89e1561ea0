"""`esp-gw doctor`: findings on machines that lack one thing or another."""

from __future__ import annotations

import errno
import json
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from esp_gw.cli import diagnosis as doctor
from esp_gw.cli import ike_checks
from esp_gw.cli.diagnosis import examine
from esp_gw.cli.finding import Finding, State
from esp_gw.cli.main import main
from esp_gw.config.provision import make_pair
from esp_gw.crypto import processor
from esp_gw.crypto.measure import Sealer
from esp_gw.desired import Desired, GatewaySettings
from esp_gw.errors import ControlError
from esp_gw.ledger.identity import MachineIdentity, machine_identity
from esp_gw.ledger.ledger import Ledger
from esp_gw.model import Action, Origin, Policy
from esp_gw.network.plan_file import PlanFile
from tests.support.builders import selector
from tests.support.commands import Capture
from tests.support.fake_af_alg import GCM, install

HEALTHY_CPU = "flags : aes pclmulqdq avx2\n"


class Machine:
    """A healthy machine, from which tests remove something."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.config = folder / "etc"
        self.units = folder / "systemd"
        self.tun = folder / "tun"
        self.status = folder / "status"
        self.cpuinfo = folder / "cpuinfo"
        self.kernel = install(monkeypatch)
        make_pair(
            folder / "init",
            local=ip_address("192.0.2.1"),
            remote=ip_address("192.0.2.2"),
            local_nets=(ip_network("10.1.0.0/32"),),
            remote_nets=(ip_network("10.2.0.0/24"),),
            local_settings={
                "state_dir": str(folder / "state"),
                "control_socket": str(folder / "control.sock"),
                "engine": "python",
            },
        )
        (folder / "init/pi-a").rename(self.config)
        (folder / "state").mkdir()
        Ledger.create(folder / "state/ledger.db", machine_identity(folder / "state"))
        self.units.mkdir()
        (self.units / "esp-gw.service").write_text("RestrictAddressFamilies=AF_UNIX AF_INET\n")
        (self.units / "esp-gw-guard.service").touch()
        self.wanted = self.units / "sysinit.target.wants/esp-gw-guard.service"
        self.wanted.parent.mkdir()
        self.wanted.touch()
        self.tun.touch()
        self.status.write_text("Name:\tpython\nCapEff:\t0000000000003000\n")
        self.cpuinfo.write_text(HEALTHY_CPU)
        monkeypatch.setattr(doctor, "TUN_DEVICE", str(self.tun))
        monkeypatch.setattr(doctor, "UNIT_FOLDERS", (self.units, folder / "other"))
        monkeypatch.setattr(doctor, "PROC_STATUS", self.status)
        monkeypatch.setattr(ike_checks, "CHARONS", ())
        monkeypatch.setattr(doctor, "network_warnings", lambda *_: [])
        monkeypatch.setattr(doctor, "machine_findings", lambda *_: [])
        self.filter_fault: str | None = None
        monkeypatch.setattr(doctor, "firewall_fault", lambda: self.filter_fault)
        monkeypatch.setattr(processor, "_CPUINFO", self.cpuinfo)

    def edit(self, **sections: object) -> None:
        """Set sections of the configuration."""
        path = self.config / "gateway.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **sections}))

    def gateway(self) -> dict[str, object]:
        """Return the section `gateway` of the configuration."""
        section: dict[str, object] = yaml.safe_load((self.config / "gateway.yaml").read_text())[
            "gateway"
        ]
        return section

    def findings(self) -> dict[str, Finding]:
        return {f.what: f for f in examine(self.config, self.folder / "none")}

    def only(self) -> Finding:
        """Return the only finding that is not OK."""
        (finding,) = [f for f in self.findings().values() if f.state is not State.OK]
        return finding


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_forward_chain_that_drops_is_named_with_the_rules_to_add(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"family": "ip", "table": "filter", "name": "FORWARD"}
    kind = {"type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}
    monkeypatch.setattr(doctor, "list_ruleset", lambda: [{"chain": names | kind}])
    # A single address has no network behind it.
    assert {f.state for f in machine.findings().values()} == {State.OK}
    path = machine.config / "gateway.yaml"
    path.write_text(path.read_text().replace("10.1.0.0/32", "10.1.0.0/24"))
    finding = machine.only()
    assert (finding.what, finding.state) == ("network", State.WARNING)
    assert finding.found.startswith("chain FORWARD of table ip filter drops what it has no rule")
    assert "'iptables -I FORWARD -i esp0 -j ACCEPT'" in finding.todo


def test_a_healthy_machine_has_no_findings_but_ok(machine: Machine) -> None:
    findings = machine.findings()
    assert {f.state for f in findings.values()} == {State.OK}, findings
    assert list(findings) == [
        *("kernel", "tun", "udp offload", "capabilities", "aes", "engine", "af_alg"),
        *("looked", "config", "firewall", "ledger", "systemd", "guard", "gateway"),
    ]
    assert findings["af_alg"].found.count("AF_ALG takes ") == 1
    assert "1 tunnel, 2 SAs" in findings["config"].found
    assert "0 keys" in findings["ledger"].found
    assert "is not running" in findings["gateway"].found
    assert machine.kernel.open == 0


def test_a_latency_device_is_looked_at_where_low_latency_is_wanted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = machine.folder / "cpu_dma_latency"
    monkeypatch.setattr(doctor, "LATENCY_DEVICE", str(device))
    assert "latency" not in machine.findings()
    machine.edit(gateway={**machine.gateway(), "latency": "low"})
    finding = machine.only()
    assert (finding.what, finding.state) == ("latency", State.WARNING)
    assert "low has no effect: /dev/cpu_dma_latency: No such file" in finding.found
    assert "set 'latency: normal'" in finding.todo
    device.touch()
    assert machine.findings()["latency"].state is State.OK


def test_a_missing_tun_device_is_a_fault(machine: Machine) -> None:
    machine.tun.unlink()
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "tun")
    assert "modprobe tun" in finding.todo


def test_a_machine_without_a_packet_filter_is_told_what_is_not_closed(machine: Machine) -> None:
    machine.filter_fault = "gateway.firewall: the program nft is missing; install nftables"
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "firewall")
    assert "routes alone" in finding.found
    assert finding.todo == "install nftables"
    machine.edit(gateway={**machine.gateway(), "firewall": "off"})
    assert machine.findings()["firewall"].state is State.OK


def test_a_guard_that_no_boot_starts_is_a_warning(machine: Machine) -> None:
    machine.wanted.unlink()
    assert "systemctl enable esp-gw-guard.service" in machine.only().todo
    (machine.units / "esp-gw-guard.service").unlink()
    assert "scripts/install" in machine.only().todo


def test_prefixes_that_wait_for_charon_are_named(machine: Machine) -> None:
    trap = Policy(
        "ike:p1",
        Action.PROTECT,
        (selector("10.1.0.0/24", "10.9.0.0/16"),),
        origin=Origin.IKE,
        standing=True,
    )
    plan = PlanFile(machine.folder / "state")
    plan.write(Desired(GatewaySettings(), policies=(trap,)))
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "closed for ike")
    assert "10.9.0.0/16" in finding.found
    assert "esp-gw guard down" in finding.todo
    for path in (machine.folder / "state").glob("guard*.json"):
        path.write_bytes(b"{")
    assert {f.state for f in machine.findings().values()} == {State.OK}


def test_missing_capabilities_are_named(machine: Machine) -> None:
    machine.status.write_text("CapEff:\t0000000000001000\n")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "capabilities")
    assert "CAP_NET_RAW" in finding.found
    assert "CAP_NET_ADMIN" not in finding.found
    assert "sudo" in finding.todo


def test_a_processor_without_aes_instructions_is_a_warning_with_a_hint(machine: Machine) -> None:
    machine.cpuinfo.write_text("Features : fp asimd\n")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "aes")
    assert "bench crypto" in finding.todo


@pytest.mark.parametrize("wanted", ["auto", "on"])
@pytest.mark.parametrize("code", [errno.EAFNOSUPPORT, errno.EPERM])
def test_unavailable_af_alg_is_a_fault_only_if_required(
    machine: Machine, wanted: str, code: int
) -> None:
    machine.kernel.refuses["socket"] = code
    machine.edit(crypto={"offload": wanted})
    finding = machine.findings()["af_alg"]
    assert finding.state is (State.FAULT if wanted == "on" else State.OK)
    assert errno.errorcode[code] in finding.found
    assert ("offload: auto" in finding.todo) is (wanted == "on")


def test_af_alg_is_checked_only_for_the_suites_of_the_tunnels(machine: Machine) -> None:
    machine.kernel.offers = {GCM}
    machine.edit(crypto={"offload": "on"})
    assert machine.findings()["af_alg"].state is State.OK


def test_af_alg_that_is_switched_off_is_not_probed(machine: Machine) -> None:
    machine.kernel.refuses["socket"] = errno.EDOM
    machine.edit(crypto={"offload": "off"})
    assert machine.findings()["af_alg"] == Finding(State.OK, "af_alg", "switched off")


def test_a_unit_that_denies_required_af_alg_is_a_fault(
    machine: Machine,
) -> None:
    machine.edit(crypto={"offload": "on"})
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "systemd")
    assert "systemd/af-alg.conf" in finding.todo
    drop_ins = machine.units / "esp-gw.service.d"
    drop_ins.mkdir()
    (drop_ins / "mine.conf").write_text("[Service]\nRestrictAddressFamilies=AF_ALG\n")
    assert machine.findings()["systemd"].state is State.OK


@pytest.mark.parametrize(("times_as_fast", "state"), [(2, State.WARNING), (0.5, State.OK)])
def test_a_unit_that_denies_faster_af_alg_is_a_warning(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, times_as_fast: float, state: State
) -> None:
    def measure(provider: str, suite: str, size: int, packets: int) -> float:
        return size / times_as_fast if provider == "af-alg" else size

    monkeypatch.setattr(Sealer, "measure", lambda _: measure)
    findings = machine.findings()
    assert findings["af_alg"].state is State.OK
    assert findings["af_alg"].found.startswith("used" if times_as_fast > 1 else "not used")
    assert findings["systemd"].state is state
    assert ("af-alg.conf" in findings["systemd"].todo) is (times_as_fast > 1)


def test_a_missing_unit_is_a_warning_that_says_how_to_install_it(machine: Machine) -> None:
    (machine.units / "esp-gw.service").unlink()
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "systemd")
    assert "scripts/install" in finding.todo


def test_a_mistake_in_the_configuration_is_a_fault_with_its_line(machine: Machine) -> None:
    machine.edit(colour="blue", taste="sweet")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "config")
    assert "gateway.yaml:" in finding.found
    assert "(and 1 more)" in finding.found
    assert "esp-gw config check" in finding.todo


def test_a_machine_that_is_not_configured_yet_is_no_fault(machine: Machine) -> None:
    machine.config.rename(machine.folder / "elsewhere")
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "config")
    assert "esp-gw init" in finding.todo


def test_a_folder_without_a_file_is_no_configuration_yet(machine: Machine) -> None:
    machine.config.rename(machine.folder / "elsewhere")
    machine.config.mkdir()
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "config")
    assert "contains no *.yaml file" in finding.found
    assert "esp-gw init" in finding.todo
    (machine.config / "gateway.yml").touch()
    finding = machine.only()
    assert (finding.state, "esp-gw config check" in finding.todo) == (State.FAULT, True)


@pytest.mark.parametrize("hides_uuid", [False, True])
def test_the_finding_of_the_ledger_names_the_components_that_count(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, hides_uuid: bool
) -> None:
    path = machine.folder / "state/ledger.db"
    path.unlink()
    here = MachineIdentity("a" * 64, "b" * 64, None if hides_uuid else "c" * 64, "", hides_uuid)
    monkeypatch.setattr(doctor, "machine_identity", lambda _: here)
    Ledger.create(path, here)
    found = machine.findings()["ledger"].found
    assert "0 keys; bound to the machine id and serial number of the board" in found
    assert ("the board and product UUID" in found) is not hides_uuid
    assert ("but not to the product UUID, which the gateway may not read" in found) is hides_uuid


def test_a_missing_ledger_is_a_fault_with_a_hint(machine: Machine) -> None:
    (machine.folder / "state/ledger.db").unlink()
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ledger")
    assert "esp-gw ledger create" in finding.todo


def test_a_ledger_in_use_is_left_alone(machine: Machine) -> None:
    with closing(Ledger.open(machine.folder / "state/ledger.db", machine_identity())):
        finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "ledger")
    assert "another esp-gw" in finding.found


@pytest.mark.parametrize(("warnings", "state"), [([], State.OK), (["a", "b"], State.WARNING)])
def test_a_running_gateway_is_queried_and_keeps_its_ledger(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, warnings: list[str], state: State
) -> None:
    asked: list[Path] = []

    def call(path: Path, method: str, parameters: object) -> dict[str, object]:
        asked.append(path)
        return {"pid": 7, "engine": "native", "warnings": warnings}

    monkeypatch.setattr(doctor, "call", call)
    with closing(Ledger.open(machine.folder / "state/ledger.db", machine_identity())):
        findings = machine.findings()
    assert asked == [machine.folder / "control.sock"]
    assert findings["gateway"].state is state
    assert "pid 7, engine native" in findings["gateway"].found
    assert ("esp-gw status" in findings["gateway"].todo) is bool(warnings)
    assert findings["ledger"].state is State.OK
    assert "in use" in findings["ledger"].found


def test_a_gateway_that_refuses_this_user_counts_as_running(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*_: object) -> dict[str, object]:
        raise ControlError("PermissionDenied", "no permission", hint="use sudo")

    monkeypatch.setattr(doctor, "call", call)
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "gateway")
    assert finding.todo == "use sudo"


def test_unsuitable_kernel_settings_are_warnings(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "net.ipv4.ip_forward is 0: only this host reaches it; run 'sysctl'"
    monkeypatch.setattr(doctor, "network_warnings", lambda *_: [text])
    finding = machine.only()
    assert (finding.state, finding.todo) == (State.WARNING, "run 'sysctl'")


def test_a_required_engine_that_is_not_installed_is_a_fault(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esp_gw.engine.choose.find_spec", lambda _: None)
    gateway = yaml.safe_load((machine.config / "gateway.yaml").read_text())["gateway"]
    machine.edit(gateway={**gateway, "engine": "native"})
    finding = machine.only()
    assert (finding.state, finding.what) == (State.FAULT, "engine")
    machine.edit(gateway={**gateway, "engine": "auto"})
    finding = machine.only()
    assert (finding.state, finding.what) == (State.WARNING, "engine")
    assert "esp-gw[native]" in finding.todo


def test_the_command_prints_a_line_per_finding_and_fails_on_a_fault(
    machine: Machine, capsys: Capture
) -> None:
    words = ["--socket", str(machine.folder / "none"), "doctor", "--config", str(machine.config)]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(machine.findings()) + 1
    assert all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1] == "0 faults, 0 warnings"
    machine.tun.unlink()
    machine.cpuinfo.write_text("")
    assert main([*words, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["faults"], report["warnings"]) == (1, 1)
    states = {entry["what"]: entry["state"] for entry in report["findings"]}
    assert (states["tun"], states["aes"], states["kernel"]) == ("fault", "warning", "ok")
