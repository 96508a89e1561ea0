"""As whom `check` and `doctor` look, where they need no other user for it."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from esp_gw.cli import viewpoint as viewpoint_module
from esp_gw.cli.viewpoint import Viewpoint, viewpoint
from tests.support.fake_systemd import install

UNIT = "[Service]\nExecStart=/opt/esp-gw/bin/esp-gw run --config {}\nUser={}\n"


@pytest.fixture
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def who(config: Path) -> str:
    with viewpoint(config) as view:
        assert view.identity is None
        return view.who


def test_a_user_looks_as_that_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, UNIT.format(tmp_path, "nobody"))
    nobody = pwd.getpwnam("nobody").pw_uid
    for uid, name in ((nobody, "nobody"), (987654, "987654")):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert who(tmp_path) == f"as the user {name}"


@pytest.mark.usefixtures("as_root")
def test_without_systemd_root_looks_as_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, UNIT.format(tmp_path, "nobody"))
    monkeypatch.setattr(viewpoint_module, "SYSTEMD_RUNS", tmp_path / "none")
    assert who(tmp_path) == "as root: systemd does not run here"


@pytest.mark.usefixtures("as_root")
def test_without_the_unit_root_looks_as_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, None)
    assert who(tmp_path) == "as root: esp-gw.service is not installed"


@pytest.mark.usefixtures("as_root")
def test_what_the_service_does_not_read_is_looked_at_as_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, UNIT.format(tmp_path / "etc", "nobody"))
    assert who(tmp_path / "new") == f"as root: esp-gw.service reads {tmp_path / 'etc'}"


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("setting", ["User=no-such-user", "Group=no-such-group"])
def test_a_user_that_is_missing_is_a_fault_of_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    install(tmp_path, monkeypatch, UNIT.format(tmp_path, "nobody") + setting + "\n")
    with viewpoint(tmp_path) as view:
        (fault,) = view.faults
    assert setting.partition("=")[2] in str(fault)
    assert "systemd-sysusers" in str(fault)


@pytest.mark.usefixtures("as_root")
def test_a_systemd_that_does_not_answer_is_a_fault_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, UNIT.format(tmp_path, "nobody"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with viewpoint(tmp_path) as view:
        assert view.who == "as root"
    assert "systemctl can't be asked" in str(view.faults[0])


def test_a_look_as_oneself_needs_no_process() -> None:
    assert Viewpoint("as me").look(lambda: [os.getpid()]) == [os.getpid()]
