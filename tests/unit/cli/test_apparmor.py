"""AppArmor's files and the kernel's log, as `esp-gw doctor` reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esp_gw.cli import apparmor
from esp_gw.cli.apparmor import Profile

PROGRAM = Path("/usr/sbin/charon-systemd")
SOCKET = Path("/run/esp-gw/control.sock")
DENIED = (
    '5,1,2,-;audit: type=1400 audit({time}:9): apparmor="DENIED" operation="connect" '
    'class="file" profile="{profile}" name="{name}" pid=1 comm="charon" requested_mask="wr"\n'
)


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Profile:
    monkeypatch.setattr(apparmor, "FOLDER", tmp_path / "apparmor.d")
    monkeypatch.setattr(apparmor, "LOADED", tmp_path / "profiles")
    monkeypatch.setattr(apparmor, "ENABLED", tmp_path / "enabled")
    monkeypatch.setattr(apparmor, "KERNEL_LOG", tmp_path / "kmsg")
    monkeypatch.setattr(apparmor, "FEATURES", tmp_path / "features")
    profile = Profile(PROGRAM)
    profile.local.parent.mkdir(parents=True)
    profile.file.write_text(
        "/usr/sbin/charon-systemd flags=(attach_disconnected) {\n"
        "  capability net_admin,\n  network,\n  /run/charon.* rw,\n  /etc/strongswan.d/** r,\n"
        "  #include <local/usr.sbin.charon-systemd>\n}\n"
    )
    profile.local.touch()
    return profile


def test_a_profile_without_a_rule_allows_nothing(profile: Profile) -> None:
    assert profile.name == "usr.sbin.charon-systemd"
    assert not profile.allows(SOCKET)
    assert profile.allows(Path("/run/charon.vici"))
    assert not profile.allows(Path("/etc/strongswan.d/charon.conf")), "to be read alone"


@pytest.mark.parametrize(
    "rule",
    [
        "/run/esp-gw/control.sock rw,",
        "  /run/esp-gw/control.sock wr, # a comment",
        "/{,var/}run/esp-gw/control.sock rw,",
        "/run/esp-gw/* rw,",
        "/run/** rwk,",
        "@{run}/esp-gw/control.sock rw,",
        "owner /run/esp-gw/control.s?ck rw,",
        "file rw /run/esp-gw/control.[a-z]ock,",
    ],
)
def test_a_local_rule_allows_its_files(profile: Profile, rule: str) -> None:
    profile.local.write_text(f"{rule}\n")
    assert profile.allows(SOCKET)


@pytest.mark.parametrize(
    "rule",
    [
        "# /run/esp-gw/control.sock rw,",
        "/run/esp-gw/control.sock r,",
        "deny /run/esp-gw/control.sock rw,",
        "/run/* rw,",
        "/run/esp-gw/controlXsock rw,",
        "/run/{esp-gw/control.sock rw,",
        "/run/esp-gw/[ rw,",
        "}{)( rw,",
    ],
)
def test_other_rules_do_not(profile: Profile, rule: str) -> None:
    profile.local.write_text(f"{rule}\n")
    assert not profile.allows(SOCKET)


def test_the_mode_is_that_of_the_loaded_profile(profile: Profile) -> None:
    assert profile.mode() is None, "not to be read"
    apparmor.LOADED.write_text("man_filter (enforce)\n/usr/sbin/charon-systemd (complain)\n")
    assert profile.mode() == "complain"
    apparmor.LOADED.write_text("charon-systemd (enforce)\n")
    assert profile.mode() == apparmor.ENFORCE
    apparmor.LOADED.write_text("/usr/lib/ipsec/charon (enforce)\n")
    assert profile.mode() == ""


@pytest.mark.parametrize(("text", "runs"), [("Y\n", True), ("N\n", False), (None, False)])
def test_it_runs_where_the_kernel_says_so(profile: Profile, text: str | None, runs: bool) -> None:
    if text is not None:
        apparmor.ENABLED.write_text(text)
    assert apparmor.runs() is runs


def test_the_last_denial_of_the_file_is_found_in_the_kernels_log(profile: Profile) -> None:
    assert profile.last_denial(SOCKET) is None
    # A FIFO gives records as the device does, as long as each is read before the next.
    os.mkfifo(apparmor.KERNEL_LOG)
    writer = os.open(apparmor.KERNEL_LOG, os.O_RDWR | os.O_NONBLOCK)
    lines = [
        "6,0,1,-;Linux version\n",
        DENIED.format(time="100.5", profile=PROGRAM, name=SOCKET),
        DENIED.format(time="200.5", profile=PROGRAM, name="/run/other"),
        DENIED.format(time="300.5", profile="/usr/bin/man", name=SOCKET),
    ]
    for line in lines:
        os.write(writer, line.encode())
        found = profile.last_denial(SOCKET)
        assert found == (100.5 if "100.5" in line else None)
    os.close(writer)


def test_the_time_of_change_is_that_of_the_newer_file(profile: Profile) -> None:
    os.utime(profile.file, (100, 100))
    os.utime(profile.local, (200, 200))
    assert profile.changed() == 200
    profile.local.unlink()
    assert profile.changed() == 100


@pytest.mark.parametrize(
    ("name", "text", "asks"),
    [
        ("network_v9/af_unix", "yes\n", True),
        ("network/af_unix", "yes\n", True),
        ("network_v9/af_unix", "no\n", False),
        ("network_v8/af_mask", "unix\n", False),
    ],
)
def test_a_kernel_says_if_it_asks_about_sockets(
    profile: Profile, name: str, text: str, asks: bool
) -> None:
    feature = apparmor.FEATURES / name
    feature.parent.mkdir(parents=True)
    feature.write_text(text)
    assert apparmor.confines_sockets() is asks
