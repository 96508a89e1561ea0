"""Machines with a disk, without starting one: command line, init script, monitor, wheels."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from esp_gw.errors import LabError
from lab.vm import disk
from lab.vm.__main__ import CHECKOUT
from lab.vm.debian import sources
from lab.vm.image import ARCHITECTURES, Image
from lab.vm.initramfs import disk_init_script
from lab.vm.monitor import Monitor
from lab.vm.qemu import Setup, Tap, command_line

X86 = ARCHITECTURES["x86_64"]


class TestCommandLine:
    @pytest.fixture
    def setup(self, tmp_path: Path) -> Setup:
        return Setup(
            X86,
            Image(tmp_path, "6.1"),
            Path("/usr/bin/python3"),
            checkout=CHECKOUT,
            disk=tmp_path / "a,b.img",
            options=("quiet", "NAME=value"),
        )

    def test_boots_from_the_disk_and_shares_only_modules_and_checkout(
        self, setup: Setup, tmp_path: Path
    ) -> None:
        line = command_line(setup, tmp_path, 3, 4)
        assert any(f"file={tmp_path}/a,,b.img," in word for word in line)
        assert line[line.index("-append") + 1].endswith(" quiet NAME=value")
        shared = [word.split("=")[-1] for word in line if "mount_tag=" in word]
        assert shared == ["modules", "checkout"]
        assert "-netdev" not in line

    def test_has_its_card_in_a_namespace_and_captures_all_of_its_frames(
        self, setup: Setup, tmp_path: Path
    ) -> None:
        tap = Tap("there", "wan", "52:54:00:00:00:01", tmp_path / "wire.pcap")
        line = command_line(replace(setup, tap=tap), tmp_path, 3, 4)
        assert "--net=/run/netns/there" in line[: line.index("qemu-system-x86_64")]
        assert any("ifname=wan" in word and "vnet_hdr=off" in word for word in line)
        assert any(word.endswith("mac=52:54:00:00:00:01") for word in line)
        assert any(word.endswith(f"file={tmp_path}/wire.pcap") for word in line)


def test_the_init_script_of_a_disk_is_valid_shell_and_starts_its_init() -> None:
    agent = ["/usr/bin/python3", "-m", "lab.vm.agent"]
    script = disk_init_script(["kernel/fs/ext4/ext4.ko.xz"], "6.1", agent, "/a checkout's")
    subprocess.run(["sh", "-n"], input=script, check=True)
    assert b"@" not in script
    assert b"/lib/modules/ext4.ko" in script
    assert script.rstrip().endswith(b"exec switch_root /root /sbin/init")


def test_the_sources_of_a_release_have_its_updates() -> None:
    suites = [line.split()[3] for line in sources("trixie").splitlines()]
    assert suites == ["trixie", "trixie-updates", "trixie-security"]


class TestMonitor:
    @pytest.fixture
    def ends(self) -> Iterator[tuple[Monitor, socket.socket]]:
        ours, theirs = socket.socketpair()
        with theirs:
            monitor = Monitor(ours)
            yield monitor, theirs
            monitor.close()

    @staticmethod
    def answer(end: socket.socket, *last: object) -> list[dict[str, object]]:
        """Play qemu for two commands in a thread; return what it was told."""
        told: list[dict[str, object]] = []

        def play() -> None:
            for messages in (({"return": {}},), last):
                told.append(json.loads(end.recv(4096)))
                for message in messages:
                    end.sendall(json.dumps(message).encode() + b"\r\n")

        end.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        threading.Thread(target=play).start()
        return told

    def test_pulls_the_cable_after_the_greeting(self, ends: tuple[Monitor, socket.socket]) -> None:
        monitor, theirs = ends
        told = self.answer(theirs, {"event": "STOP", "timestamp": {}}, {"return": {}})
        monitor.set_link("wire", up=False)
        assert [command["execute"] for command in told] == ["qmp_capabilities", "set_link"]
        assert told[1]["arguments"] == {"name": "wire", "up": False}

    def test_reports_a_refusal(self, ends: tuple[Monitor, socket.socket]) -> None:
        monitor, theirs = ends
        self.answer(theirs, {"error": {"class": "DeviceNotFound", "desc": "no 'wire'"}})
        with pytest.raises(LabError, match="qemu: no 'wire'"):
            monitor.set_link("wire", up=True)

    def test_reports_the_end_of_qemu(self, ends: tuple[Monitor, socket.socket]) -> None:
        monitor, theirs = ends
        theirs.close()
        with pytest.raises(LabError, match="monitor"):
            monitor.set_link("wire", up=True)


class TestNativeWheel:
    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder of Python packages, where one is installed."""
        info = tmp_path / "site/some_core-1.2.dist-info"
        (tmp_path / "site/some_core/__pycache__").mkdir(parents=True)
        info.mkdir()
        metadata = "Metadata-Version: 2.1\nName: some-core\nVersion: 1.2\n"
        files = {
            "some_core/__init__.py": "VALUE = 7\n",
            "some_core/__pycache__/__init__.cpython-311.pyc": "",
            "some_core-1.2.dist-info/METADATA": metadata,
            "some_core-1.2.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
        }
        for name, text in files.items():
            (tmp_path / "site" / name).write_text(text)
        (info / "RECORD").write_text(
            "".join(f"{name},,\n" for name in (*files, f"{info.name}/RECORD"))
        )
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.setattr(disk, "_NATIVE", "some-core")
        return tmp_path / "site"

    def test_is_packed_from_the_installed_files(self, site: Path, tmp_path: Path) -> None:
        disk.pack_native_wheel(tmp_path)
        wheel = tmp_path / "some_core-1.2-py3-none-any.whl"
        names = zipfile.ZipFile(wheel).namelist()
        assert "some_core/__init__.py" in names
        assert not [name for name in names if name.endswith(".pyc")]
        options = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, "--target", tmp_path / "new", wheel],
            check=True,
        )
        assert (tmp_path / "new/some_core/__init__.py").read_text() == "VALUE = 7\n"

    def test_is_left_out_where_it_is_not_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(disk, "_NATIVE", "no-such-core")
        disk.pack_native_wheel(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_that_says_nothing_of_its_origin_is_an_error(self, site: Path, tmp_path: Path) -> None:
        (site / "some_core-1.2.dist-info/WHEEL").unlink()
        with pytest.raises(LabError, match="some-core is not installed from a wheel"):
            disk.pack_native_wheel(tmp_path)
