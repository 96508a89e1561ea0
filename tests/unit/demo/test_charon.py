"""Requirements of the demo on charon, and its errors where one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from esp_gw.demo import charon
from esp_gw.demo.charon import PLUGIN, copy_plugins, write_section
from esp_gw.errors import LabError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A charon with one plugin, which is not the gateway's; its folder of plugins."""
    plugins = tmp_path / "installed"
    plugins.mkdir()
    (plugins / "libstrongswan-random.so").write_bytes(b"random")
    for name in ("CHARON", "SWANCTL"):
        program = tmp_path / name.lower()
        program.write_bytes(b"")
        monkeypatch.setattr(charon, name, program)
    monkeypatch.setattr(charon, "PLUGINS", plugins)
    return plugins


def test_a_missing_charon_is_named_with_its_packages(tmp_path: Path, installed: Path) -> None:
    charon.CHARON.unlink()
    with pytest.raises(LabError, match="not installed: charon") as caught:
        copy_plugins(tmp_path, None)
    assert "apt-get install charon-systemd strongswan-swanctl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_plugin_is_named_with_what_brings_it(tmp_path: Path, installed: Path) -> None:
    with pytest.raises(LabError, match=f"{installed}/{PLUGIN}") as caught:
        copy_plugins(tmp_path, None)
    assert "install-ike" in str(caught.value)
    with pytest.raises(LabError, match="is not there: /nowhere"):
        copy_plugins(tmp_path, Path("/nowhere"))


def test_a_plugin_that_cannot_be_read_is_told_in_one_line(tmp_path: Path, installed: Path) -> None:
    with pytest.raises(LabError) as caught:
        copy_plugins(tmp_path, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_given_plugin_stands_beside_those_of_charon(tmp_path: Path, installed: Path) -> None:
    given = tmp_path / "mine.so"
    given.write_bytes(b"mine")
    (installed / PLUGIN).write_bytes(b"the installed one")
    (tmp_path / "one").mkdir()
    copied = copy_plugins(tmp_path / "one", given)
    assert (copied / PLUGIN).read_bytes() == b"mine"
    assert (copied / "libstrongswan-random.so").read_bytes() == b"random"
    (tmp_path / "two").mkdir()
    assert (copy_plugins(tmp_path / "two", None) / PLUGIN).read_bytes() == b"the installed one"


def test_settings_are_written_in_sections() -> None:
    written = write_section({"charon": {"load": "a b", "plugins": {"vici": {"socket": "x"}}}})
    assert written.splitlines() == [
        *("charon {", "  load = a b", "  plugins {", "    vici {"),
        *("      socket = x", "    }", "  }", "}"),
    ]
