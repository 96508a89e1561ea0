"""The installed unit, as `systemctl cat` prints it: what systemd would make of each setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.cli.unit import Source, Unit, installed_unit
from esp_gw.errors import EspGwError
from tests.support.fake_systemd import drop_in, install

SHIPPED = Path(__file__).parents[3] / "systemd" / "esp-gw.service"


def test_the_shipped_unit_runs_as_its_user_and_reads_the_usual_configuration() -> None:
    unit = Unit.parse(SHIPPED.read_text())
    assert (unit.user, unit.group, unit.config) == ("esp-gw", "esp-gw", Path("/etc/esp-gw"))
    assert (unit.loaded, unit.literal, unit.imported) == ({}, {}, [])


def test_the_commented_credentials_of_the_shipped_unit_are_understood() -> None:
    text = SHIPPED.read_text().replace("#LoadCredential", "LoadCredential")
    assert Unit.parse(text).loaded == {
        "office-out.key": Source("/etc/credstore.encrypted/office-out.key", is_encrypted=True),
        "office-in.key": Source("/etc/credstore/office-in.key", is_encrypted=False),
    }


@pytest.mark.parametrize(
    ("text", "loaded"),
    [
        ("LoadCredential=a:/x/a.key", {"a": ("/x/a.key", False)}),
        ("LoadCredential=a", {"a": ("a", False)}),
        ("LoadCredentialEncrypted=a:/x:y", {"a": ("/x:y", True)}),
        ("LoadCredential=a:%E/esp-gw/100%%.key", {"a": ("/etc/esp-gw/100%.key", False)}),
        ("LoadCredential=a:/x/\\\n# between\n  a.key", {"a": ("/x/ a.key", False)}),
        ("LoadCredential=a:/1\nLoadCredential=a:/2", {"a": ("/2", False)}),
        ("LoadCredential=a:/1\nLoadCredential=\nLoadCredential=b:/2", {"b": ("/2", False)}),
        ("#LoadCredential=a:/1\n;LoadCredential=b:/2", {}),
        ("LoadCredential=../a:/1\nLoadCredential=:/2", {}),
        ("[Unit]\nLoadCredential=a:/1", {}),
        ("[Unit]\nAfter=x\n[Service]\nLoadCredential=a:/1", {"a": ("/1", False)}),
    ],
)
def test_credentials(text: str, loaded: dict[str, tuple[str, bool]]) -> None:
    assert Unit.parse(f"[Service]\n{text}\n").loaded == {
        name: Source(*fields) for name, fields in loaded.items()
    }


@pytest.mark.parametrize(
    ("command", "config"),
    [
        ("/opt/esp-gw/bin/esp-gw run --config /srv/gw.yaml", "/srv/gw.yaml"),
        ("/opt/esp-gw/bin/esp-gw run --config=/srv/gw.yaml --log-level debug", "/srv/gw.yaml"),
        ("-/opt/esp-gw/bin/esp-gw run --config '/srv/my gw.yaml'", "/srv/my gw.yaml"),
        ("/opt/esp-gw/bin/esp-gw run", "/etc/esp-gw"),
        ("/opt/esp-gw/bin/esp-gw run --config", "/etc/esp-gw"),
        ("/opt/esp-gw/bin/esp-gw run --config 'x", "/etc/esp-gw"),
    ],
)
def test_the_configuration_is_that_of_the_last_command(command: str, config: str) -> None:
    text = f"[Service]\nExecStart=/first --config /first\nExecStart=\nExecStart={command}\n"
    found = Unit.parse(text.replace("ExecStart=/first --config /first\n", "")).config
    assert found == Path(config)


def test_a_configuration_is_known_by_any_of_its_names(tmp_path: Path) -> None:
    folder, link = tmp_path / "etc", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    unit = Unit(config=folder)
    for ours in (folder, link, folder / "gw.yaml", link / "gw.yaml", folder / "x" / ".." / "gw"):
        assert unit.reads(ours)
    for other in (tmp_path, tmp_path / "etc2", Path("/etc/passwd")):
        assert not unit.reads(other)


def test_drop_ins_come_after_the_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install(tmp_path, monkeypatch, SHIPPED.read_text())
    drop_in(path, "50-user.conf", "[Service]\nUser=gw\nGroup=\nSupplementaryGroups=a b\n")
    drop_in(path, "60-keys.conf", "[Service]\nImportCredential=esp-gw.*\nSetCredential=a:x\\ny\n")
    unit = installed_unit()
    assert unit is not None
    assert (unit.user, unit.group, unit.supplementary_groups) == ("gw", "", ["a", "b"])
    assert (unit.imported, unit.literal) == (["esp-gw.*"], {"a": Source("x\\ny", False)})


def test_without_a_unit_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, None)
    assert installed_unit() is None


def test_a_systemd_that_can_not_be_asked_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EspGwError, match="systemctl can't be asked"):
        installed_unit()
