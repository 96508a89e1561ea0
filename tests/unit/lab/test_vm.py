"""Virtual machines without starting one: protocol, initramfs, command line, cache."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from esp_gw.errors import LabError
from lab.vm import agent
from lab.vm.__main__ import Printer
from lab.vm.image import _WANTED, ARCHITECTURES, Image, kernel_image
from lab.vm.initramfs import BLACKLIST, archive, blacklist_file, init_script, load_order
from lab.vm.machine import Machine, VmError
from lab.vm.protocol import PAYLOAD_MAX, Command, Frame, FrameReader, Kind, encode_frame
from lab.vm.qemu import Setup, command_line

X86 = ARCHITECTURES["x86_64"]


class TestFrames:
    def test_are_reassembled_from_any_pieces(self) -> None:
        sent = [Frame(Kind.STDOUT, b"x" * 300), Frame(Kind.STDERR, b""), Frame(Kind.EXIT, b"abcd")]
        data = b"".join(encode_frame(frame.kind, frame.payload) for frame in sent)
        for size in (1, 2, 7, len(data)):
            reader = FrameReader()
            pieces = [data[at : at + size] for at in range(0, len(data), size)]
            assert [frame for piece in pieces for frame in reader.feed(piece)] == sent

    @pytest.mark.parametrize("data", [b"\x09\0\0\0\0", b"\x01\xff\xff\xff\xff", b"Segmentation"])
    def test_malformed_are_an_error(self, data: bytes) -> None:
        with pytest.raises(LabError, match="malformed frame"):
            list(FrameReader().feed(data))

    def test_of_the_maximum_length_are_read(self) -> None:
        (frame,) = FrameReader().feed(encode_frame(Kind.STDOUT, bytes(PAYLOAD_MAX)))
        assert len(frame.payload) == PAYLOAD_MAX


class Host:
    """The host's end of a real agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader()

    def run(self, *arguments: str) -> tuple[int, bytes, bytes]:
        command = Command(arguments, "/", {"PATH": "/usr/bin:/bin", "WORD": "seen"})
        self._sock.sendall(command.encode())
        output = {Kind.STDOUT: b"", Kind.STDERR: b""}
        while True:
            for frame in self._reader.feed(self._sock.recv(65536)):
                if frame.kind is Kind.EXIT:
                    return frame.status, output[Kind.STDOUT], output[Kind.STDERR]
                output[frame.kind] += frame.payload


@pytest.fixture
def host() -> Iterator[Host]:
    ours, theirs = socket.socketpair()
    with theirs, theirs.makefile("rwb", buffering=0) as port:
        thread = threading.Thread(target=agent.serve, args=(port,))
        thread.start()
        with ours:
            yield Host(ours)
        thread.join(10)
        assert not thread.is_alive(), "the agent outlived its host"


class TestAgent:
    def test_sends_back_both_outputs_and_the_status(self, host: Host) -> None:
        assert host.run("sh", "-c", "echo $WORD; pwd; echo no >&2; exit 7") == (
            7,
            b"seen\n/\n",
            b"no\n",
        )

    def test_runs_one_command_after_the_other(self, host: Host) -> None:
        assert [host.run("sh", "-c", f"exit {number}")[0] for number in range(3)] == [0, 1, 2]

    def test_sends_all_of_a_long_output(self, host: Host) -> None:
        status, output, _ = host.run("seq", "200000")
        assert status == 0
        assert output == b"".join(b"%d\n" % number for number in range(1, 200001))

    def test_reports_a_signal_as_a_shell_does(self, host: Host) -> None:
        assert host.run("sh", "-c", "kill -9 $$")[0] == 137

    def test_a_missing_command_has_status_127(self, host: Host) -> None:
        assert host.run("/no/such") == (127, b"", b"/no/such: No such file or directory\n")

    def test_does_not_wait_for_background_processes_of_a_command(self, host: Host) -> None:
        status, output, _ = host.run("sh", "-c", "sleep 60 & echo $!; exit 3")
        os.kill(int(output), signal.SIGKILL)  # it still runs
        assert status == 3


DEP = """\
kernel/fs/9p/9p.ko: kernel/fs/netfs/netfs.ko kernel/net/9p/9pnet.ko
kernel/fs/netfs/netfs.ko:
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/drivers/virtio/virtio.ko kernel/net/9p/9pnet.ko
kernel/drivers/virtio/virtio.ko:
kernel/crypto/aes-generic.ko:
"""


class TestLoadOrder:
    def test_puts_each_module_once_after_what_it_depends_on(self) -> None:
        order = load_order(DEP, "", ["9pnet_virtio", "9p", "aes_generic"])
        assert sorted(order) == sorted(line.partition(":")[0] for line in DEP.splitlines())
        for line in DEP.splitlines():
            path, _, needs = line.partition(":")
            assert all(order.index(other) < order.index(path) for other in needs.split())

    def test_omits_built_in_modules(self) -> None:
        assert load_order(DEP, "kernel/fs/overlayfs/overlay.ko\n", ["overlay"]) == []

    def test_a_missing_module_is_an_error(self) -> None:
        with pytest.raises(LabError, match="no module overlay"):
            load_order(DEP, "", ["overlay"])


def test_the_init_script_is_valid_shell() -> None:
    script = init_script(
        ["kernel/net/9p/9pnet.ko.xz"],
        "6.1",
        "/it's/here",
        ["/a b/python", "-m", "x"],
        {BLACKLIST: blacklist_file(["esp4"]), "/it's/a file": "it's\n"},
        "/a checkout's",
        True,
    )
    assert b"@" not in script
    assert b"/lib/modules/9pnet.ko" in script
    subprocess.run(["sh", "-n"], input=script, check=True)


def test_an_archive_holds_the_folders_of_its_files_and_the_trailer() -> None:
    data = archive({"/bin/busybox": b"12345", "/init": b"#!"})
    assert len(data) % 4 == 0
    assert data.startswith(b"070701")
    for name in (b"bin\0", b"dev\0", b"bin/busybox\0", b"init\0", b"TRAILER!!!\0"):
        assert name in data


def test_commas_in_folders_are_escaped_for_qemu(tmp_path: Path) -> None:
    image = Image(tmp_path / "a,b", "6.1")
    setup = Setup(X86, image, Path(sys.executable), out=tmp_path / "c,d", cpu="cortex,x=off")
    line = command_line(setup, tmp_path, 3, 4)
    assert f"local,id=out,path={tmp_path}/c,,d,security_model=none,multidevs=remap" in line
    assert f"{tmp_path}/a,b/boot/vmlinuz-6.1" in line
    assert line[line.index("-cpu") + 1] == "cortex,x=off"
    assert "-netdev" not in line


def test_a_missing_qemu_is_an_error_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    setup = Setup(X86, Image(tmp_path, "6.1"), Path(sys.executable))
    with pytest.raises(VmError, match=r"qemu-system-x86_64 is not installed; run \./scripts/vm"):
        Machine(setup)


def test_two_machines_on_one_wire_have_different_mac_addresses(tmp_path: Path) -> None:
    setup = Setup(X86, Image(tmp_path, "6.1"), Path(sys.executable))
    macs = {command_line(setup, tmp_path, 3, 4, 5)[-1].partition("mac=")[2] for _ in range(2)}
    assert len(macs) == 2


def test_output_of_several_machines_is_prefixed_line_by_line(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    printers = Printer(b"a: "), Printer(b"b: ")
    printers[0](Kind.STDOUT, b"one\ntw")
    printers[1](Kind.STDOUT, b"\n\xff")
    printers[0](Kind.STDERR, b"error\n")
    printers[0](Kind.STDOUT, b"o\n")
    for printer in printers:
        printer.finish()
    assert capfdbinary.readouterr() == (b"a: one\nb: \na: two\nb: \xff\n", b"a: error\n")


class TestCachedKernel:
    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "x86_64"
        files = {"boot/vmlinuz-6.1": b"kernel", "lib/modules/6.1/modules.dep": b"dep"}
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True)
            (folder / path).write_bytes(data)
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
        manifest = {"version": "6.1", "selection": _WANTED.pattern, "files": digests}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get: nothing is fetched here
        return tmp_path

    def test_is_used_unchanged(self, cache: Path) -> None:
        messages: list[str] = []
        image = kernel_image(cache, X86, messages.append)
        assert image.kernel.read_bytes() == b"kernel"
        assert image.tree == cache / "x86_64/lib/modules/6.1"
        assert messages == []

    @pytest.mark.parametrize("path", ["boot/vmlinuz-6.1", "lib/modules/6.1/modules.dep"])
    @pytest.mark.parametrize("data", [b"", b"Kernel", None])
    def test_that_is_damaged_is_fetched_again(
        self, cache: Path, path: str, data: bytes | None
    ) -> None:
        file = cache / "x86_64" / path
        if data is None:
            file.unlink()
        else:
            file.write_bytes(data)
        messages: list[str] = []
        with pytest.raises(LabError, match="apt-get"):
            kernel_image(cache, X86, messages.append)
        assert "damaged" in messages[0]

    @pytest.mark.parametrize("text", ["", "[]", '{"files": {}}', '{"files": 1, "version": 2}'])
    def test_without_a_valid_manifest_is_fetched_again(self, cache: Path, text: str) -> None:
        (cache / "x86_64/manifest.json").write_text(text)
        messages: list[str] = []
        with pytest.raises(LabError, match="apt-get"):
            kernel_image(cache, X86, messages.append)
        assert messages[0].endswith("(manifest.json); fetching it again")

    def test_that_cannot_be_fetched_leaves_nothing_that_looks_complete(self, cache: Path) -> None:
        (cache / "empty").mkdir()
        for _ in range(2):
            with pytest.raises(LabError, match="apt-get"):
                kernel_image(cache / "empty", X86, lambda text: None)
        assert not (cache / "empty/x86_64").exists()
