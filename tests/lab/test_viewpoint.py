"""`check` and `doctor` of root see what the service sees: its user, and its credentials."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import yaml

from esp_gw.cli import credentials as credentials_module
from esp_gw.cli import viewpoint as viewpoint_module
from esp_gw.cli.diagnosis import examine
from esp_gw.cli.finding import Finding, State
from esp_gw.cli.main import main
from esp_gw.cli.viewpoint import Identity, Viewpoint
from esp_gw.config.provision import make_pair
from esp_gw.errors import EspGwError
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import LEDGER_NAME, Ledger
from tests.support.commands import Capture, fail, run
from tests.support.fake_systemd import drop_in, install

USER = "nobody"
WHO = f"looked as the user {USER}, as esp-gw.service does"


class Machine:
    """A machine with the unit installed and its files in order; the service's user is nobody."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Folders of pytest are closed to others, the service's user among them.
        for each in (folder, *folder.parents):
            if not each.stat().st_mode & 0o001:
                each.chmod(each.stat().st_mode | 0o011)
        self.folder = folder
        self.state = folder / "state"
        self.config = folder / "etc"
        made = make_pair(
            folder / "init",
            local=ip_address("192.0.2.1"),
            remote=ip_address("192.0.2.2"),
            local_nets=(ip_network("10.1.0.0/32"),),
            remote_nets=(ip_network("10.2.0.0/24"),),
            local_settings={
                "state_dir": str(self.state),
                "control_socket": str(folder / "control.sock"),
                "engine": "python",
            },
        )
        made.local.parent.rename(self.config)
        self.yaml = self.config / "gateway.yaml"
        self.key = self.config / "keys" / "pi-b.out.key"
        self.unit = install(
            folder,
            monkeypatch,
            f"[Service]\nExecStart=/x/esp-gw run --config {self.config}\nUser={USER}\n",
        )
        self.state.mkdir(mode=0o700)
        Ledger.create(self.state / LEDGER_NAME, machine_identity())
        user = pwd.getpwnam(USER)
        for path in (self.config, self.state, *self.config.rglob("*"), *self.state.rglob("*")):
            os.chown(path, user.pw_uid, user.pw_gid)
        run_folder = folder / "run"
        run_folder.mkdir(mode=0o755)
        monkeypatch.setattr(viewpoint_module, "RUN", run_folder)
        monkeypatch.setattr(credentials_module, "STORES", ())
        monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
        self.run = run_folder

    def by_credential(self, name: str) -> Path:
        """Have the outbound key come by a credential; return a file of root that holds it."""
        document = yaml.safe_load(self.yaml.read_text())
        document["tunnels"]["pi-b"]["outbound"]["key"] = {"credential": name}
        self.yaml.write_text(yaml.safe_dump(document))
        secret = self.folder / "root-only.key"
        self.key.rename(secret)
        os.chown(secret, 0, 0)
        return secret

    def findings(self) -> dict[str, Finding]:
        return {f.what: f for f in examine(self.config, self.folder / "none")}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_check_says_as_whom_it_looked(machine: Machine, capsys: Capture) -> None:
    assert run(capsys, "config", "check", str(machine.config)).splitlines() == [
        f"{machine.config}: ok, 1 tunnel, 2 SAs",
        WHO,
    ]
    (entry,) = json.loads(run(capsys, "config", "check", "--json", str(machine.yaml)))["files"]
    assert f"looked {entry['as']}" == WHO


def of_root(path: Path) -> None:
    """As a key that root copied there: nobody else can read it."""
    os.chown(path, 0, 0)


def in_a_folder_of_root(path: Path) -> None:
    os.chown(path.parent, 0, 0)
    path.parent.chmod(0o700)


def of_another_user(path: Path) -> None:
    os.chown(path, 1, 1)


@pytest.mark.parametrize("spoil", [of_root, in_a_folder_of_root, of_another_user])
def test_a_key_that_the_service_may_not_read_is_a_fault(
    machine: Machine, capsys: Capture, spoil: Callable[[Path], None]
) -> None:
    spoil(machine.key)
    line, *_, whom = fail(capsys, "config", "check", str(machine.config)).splitlines()
    assert line.startswith(f"{machine.yaml}:")
    assert f"{machine.key}: the key file can't be opened: permission denied" in line
    assert whom == WHO
    finding = machine.findings()["config"]
    assert finding.state is State.FAULT
    assert "permission denied" in finding.found


def test_a_configuration_that_the_service_may_not_read_is_a_fault(
    machine: Machine, capsys: Capture
) -> None:
    machine.yaml.chmod(0o600)
    of_root(machine.yaml)
    assert fail(capsys, "config", "check", str(machine.config)).startswith(
        f"{machine.yaml}: Permission denied\n"
    )


def test_a_credential_of_the_unit_is_there_and_gone_afterwards(
    machine: Machine, capsys: Capture
) -> None:
    secret = machine.by_credential("b-out")
    err = fail(capsys, "config", "check", str(machine.config))
    assert "credential b-out: there are no credentials here" in err
    drop_in(machine.unit, "keys.conf", f"[Service]\nLoadCredential=b-out:{secret}\n")
    assert run(capsys, "config", "check", str(machine.config)).splitlines() == [
        f"{machine.config}: ok, 1 tunnel, 2 SAs",
        f"{WHO}, with the credentials b-out",
    ]
    findings = machine.findings()
    assert findings["config"].state is State.OK
    assert findings["looked"].found.endswith("with the credentials b-out")
    assert list(machine.run.iterdir()) == []
    assert "CREDENTIALS_DIRECTORY" not in os.environ


def test_what_is_in_a_credential_is_checked(machine: Machine, capsys: Capture) -> None:
    secret = machine.by_credential("b-out")
    key = secret.read_text().splitlines()[-1]
    secret.write_text(f"b-out {key[:20]}\n")
    drop_in(machine.unit, "keys.conf", f"[Service]\nLoadCredentialEncrypted=b-out:{secret}\n")
    err = fail(capsys, "config", "check", str(machine.config))
    assert "the key has 20 hex digits" in err
    assert key[:8] not in err
    secret.write_text(f"b-out {key}\n")
    run(capsys, "config", "check", str(machine.config))


def test_a_credential_that_can_not_be_loaded_is_a_fault_of_the_unit(
    machine: Machine, capsys: Capture
) -> None:
    secret = machine.folder / "none"
    drop_in(machine.unit, "keys.conf", f"[Service]\nLoadCredential=b-out:{secret}\n")
    text = f"esp-gw.service: credential b-out: {secret}: No such file or directory"
    assert fail(capsys, "config", "check", str(machine.config)).splitlines() == [text, WHO]
    assert machine.findings()["unit"] == Finding(State.FAULT, "unit", text)


def test_a_ledger_that_the_service_may_not_open_is_a_fault(machine: Machine) -> None:
    assert machine.findings()["ledger"].state is State.OK
    of_root(machine.state / LEDGER_NAME)
    finding = machine.findings()["ledger"]
    assert finding.state is State.FAULT
    of_root(machine.state)
    finding = machine.findings()["ledger"]
    assert (finding.state, "root" in finding.todo) == (State.FAULT, True)


def test_a_unit_without_a_user_looks_as_root_with_its_credentials(
    machine: Machine, capsys: Capture
) -> None:
    secret = machine.by_credential("b-out")
    drop_in(machine.unit, "x.conf", f"[Service]\nUser=\nLoadCredential=b-out:{secret}\n")
    assert "as the user root, as esp-gw.service does" in run(
        capsys, "config", "check", str(machine.config)
    )


def test_the_other_user_has_nothing_of_root() -> None:
    user = pwd.getpwnam(USER)
    view = Viewpoint("as nobody", Identity(user.pw_uid, user.pw_gid, (user.pw_gid,)))

    def seen() -> dict[str, object]:
        lines = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return {
            "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
            "capabilities": [int(lines[f"Cap{name}"], 16) for name in ("Prm", "Eff", "Inh", "Amb")],
        }

    assert view.look(seen) == {
        "ids": [[user.pw_uid] * 3, [user.pw_gid] * 3, [user.pw_gid]],
        "capabilities": [0, 0, 0, 0],
    }
    assert os.geteuid() == 0


def test_a_look_that_fails_is_one_line_and_no_verdict(
    machine: Machine, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = Viewpoint("as nobody", Identity(*[pwd.getpwnam(USER).pw_uid] * 2, ()))

    def broken() -> object:
        raise ValueError("a fault of ours")

    with pytest.raises(EspGwError, match="can't look as nobody: ValueError: a fault of ours"):
        view.look(broken)
    with pytest.raises(EspGwError, match="can't look as nobody: its process ended"):
        view.look(lambda: os._exit(1))
    monkeypatch.setattr(Identity, "take", lambda _: broken())
    assert "can't look" in fail(capsys, "config", "check", str(machine.config))
    assert main(["config", "check", str(machine.folder / "none.yaml")]) == 1
