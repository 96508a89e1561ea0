"""An ordinary user who lacks a permission is told to use sudo, in one line, by every command."""

from __future__ import annotations

import codecs
import importlib
import json
import os
import pkgutil
import shlex
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

import esp_gw
from esp_gw.cli.main import main
from esp_gw.config.provision import make_pair
from esp_gw.errors import FAILED, WRONG_CONFIG
from esp_gw.ledger.identity import machine_identity
from esp_gw.ledger.ledger import LEDGER_NAME, Ledger

NOBODY = 65534
# Python's own files may be closed to this user.
for module in pkgutil.walk_packages(esp_gw.__path__, "esp_gw."):
    if module.name not in ("esp_gw.engine.native", "esp_gw.cli.main"):
        importlib.import_module(module.name)
for codec in ("utf-8-sig", "idna"):
    codecs.lookup(codec)

pytestmark = pytest.mark.either_engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of a gateway: `closed` and `state` are root's alone, `open` names `state`."""
    for each in (tmp_path, *tmp_path.parents):
        if not each.stat().st_mode & 0o001:
            each.chmod(each.stat().st_mode | 0o011)
    state = tmp_path / "state"
    settings = {"state_dir": str(state), "control_socket": str(tmp_path / "none.sock")}
    made = make_pair(
        tmp_path / "init",
        local=ip_address("192.0.2.1"),
        remote=ip_address("192.0.2.2"),
        local_nets=(ip_network("10.1.0.0/24"),),
        remote_nets=(ip_network("10.2.0.0/24"),),
        local_settings=settings,
        remote_settings=settings,
    )
    made.local.parent.rename(tmp_path / "closed")
    made.remote.parent.rename(tmp_path / "open")
    (tmp_path / "closed").chmod(0o700)
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "open" / "gateway.yaml").chmod(0o644)
    (tmp_path / "open" / "keys").chmod(0o755)
    state.mkdir(mode=0o700)
    Ledger.create(state / LEDGER_NAME, machine_identity())
    return tmp_path


def as_nobody(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a fork of this process that has become another user."""
    words = [word.replace("FOLDER", str(folder)) for word in shlex.split(command)]
    files = [folder / "stdout", folder / "stderr"]
    child = os.fork()
    if child == 0:
        status = 99
        try:
            for number, file in enumerate(files, 1):
                os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
            os.environ.update(environment)
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            status = main(words)
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    out, err = (file.read_text() for file in files)
    return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), out, err)


SA = "--direction outbound --spi 4096 --local 192.0.2.1 --remote 192.0.2.2"
NETS = "--local-net 10.1.0.0/24 --remote-net 10.2.0.0/24"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("run --config FOLDER/closed", WRONG_CONFIG),
        ("run --config FOLDER/open", WRONG_CONFIG),
        ("config check FOLDER/closed", FAILED),
        ("config check FOLDER/open", FAILED),
        ("guard status --config FOLDER/closed", FAILED),
        ("guard status --config FOLDER/closed/gateway.yaml", FAILED),
        ("guard status --config FOLDER/open", FAILED),
        ("guard down --config FOLDER/closed", FAILED),
        ("guard down --config FOLDER/open", FAILED),
        ("ledger create --config FOLDER/closed", WRONG_CONFIG),
        ("ledger create --config FOLDER/open", FAILED),
        ("ledger create --state-dir FOLDER/closed/state", FAILED),
        ("ledger create --replace --config FOLDER/open", FAILED),
        ("ledger show --config FOLDER/closed", WRONG_CONFIG),
        ("ledger show --config FOLDER/open", FAILED),
        ("ledger show --state-dir FOLDER/state", FAILED),
        ("sa export --output /none/b --config FOLDER/closed", WRONG_CONFIG),
        ("sa export --output /none/b --config FOLDER/open", WRONG_CONFIG),
        (f"sa add n {SA} --key-file FOLDER/closed/keys/pi-b.out.key", FAILED),
        ("sa import FOLDER/closed/gateway.yaml", FAILED),
        ("reload --config FOLDER/closed", WRONG_CONFIG),
        ("keygen --out FOLDER/closed/new.key", FAILED),
        ("keygen --out FOLDER/new.key", FAILED),
        (f"init --local 192.0.2.1 --remote 192.0.2.2 {NETS} --out FOLDER/state", FAILED),
        ("demo", FAILED),
        *((f"tune {option}", FAILED) for option in ("", "--apply", "--undo", "--json")),
    ],
)
def test_an_ordinary_user_is_told_to_use_sudo(folder: Path, command: str, status: int) -> None:
    done = as_nobody(folder, command)
    assert (done.returncode, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.endswith(("; use sudo", "; run it with sudo"))


def test_what_the_guard_protects_is_not_said_to_be_nothing(folder: Path) -> None:
    """A user who may not look has no answer, least of all that all is well."""
    done = as_nobody(folder, "guard status --json --config FOLDER/open")
    assert (done.returncode, done.stdout) == (1, "")


def test_doctor_names_what_to_run(folder: Path) -> None:
    found = json.loads(as_nobody(folder, "doctor --json --config FOLDER/closed").stdout)
    todo = {finding["what"]: finding["todo"] for finding in found["findings"]}
    assert todo["config"] == f"run 'sudo esp-gw config check {folder / 'closed'}'"


@pytest.mark.parametrize(
    "command",
    [
        *("status", "sa list", "tunnel list", "log", "reload", "explain 10.1.0.1 10.2.0.1"),
        *("explain --drops", "tunnel show t", "tunnel ping t", "monitor", "status --watch"),
    ],
)
def test_a_socket_that_is_closed_names_sudo_and_the_group(folder: Path, command: str) -> None:
    done = as_nobody(folder, f"--socket FOLDER/state/control.sock {command}")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.endswith("add yourself to the group esp-gw, or use sudo\n")


def test_a_missing_permission_of_the_service_is_none_that_sudo_mends(folder: Path) -> None:
    done = as_nobody(folder, "run --config FOLDER/closed", NOTIFY_SOCKET=f"{folder}/none")
    assert done.returncode == WRONG_CONFIG
    assert "sudo" not in done.stderr
