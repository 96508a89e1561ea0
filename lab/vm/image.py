"""Debian's kernel for a machine: its packages fetched, unpacked once, checked at each start."""

from __future__ import annotations

import lzma
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esp_gw.errors import LabError
from lab.vm.cache import Recipe, cached
from lab.vm.debian import Apt, run_program

_BUSYBOX = "bin/busybox"
# Of the drivers, those for hardware that qemu has.
_WANTED = re.compile(
    r"boot/vmlinuz-.*|bin/busybox|lib/modules/[^/]+/(modules\..*|kernel/(?!drivers/|sound/).*"
    r"|kernel/drivers/(virtio|char|crypto)/.*|kernel/drivers/net/[^/]+)"
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs from one architecture to the next; `name` is the kernel's and qemu's for it.

    `boot` are options on the kernel's command line.
    """

    name: str
    debian: str
    qemu: tuple[str, ...]
    cpu: str
    boot: str


ARCHITECTURES = {
    "x86_64": Architecture(
        "x86_64",
        "amd64",
        ("qemu-system-x86_64", "-M", "q35"),
        "max",
        # Where the host is busy the timer is late for the kernel's test of it, which then panics.
        "console=ttyS0 no_timer_check",
    ),
    # By default the core of a Raspberry Pi 5.
    "aarch64": Architecture(
        "aarch64",
        "arm64",
        ("qemu-system-aarch64", "-M", "virt"),
        "cortex-a76",
        "console=ttyAMA0",
    ),
}


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked kernel: `folder` holds boot/, lib/modules/`version`/ and bin/busybox."""

    folder: Path
    version: str

    @property
    def kernel(self) -> Path:
        """The kernel's file."""
        return self.folder / "boot" / f"vmlinuz-{self.version}"

    @property
    def tree(self) -> Path:
        """The folder of the kernel's modules."""
        return self.folder / "lib/modules" / self.version

    def module(self, path: str) -> bytes:
        """Return a module of the tree, decompressed."""
        data = (self.tree / path).read_bytes()
        return lzma.decompress(data) if path.endswith(".xz") else data

    def busybox(self) -> bytes:
        """Return the static busybox."""
        return (self.folder / _BUSYBOX).read_bytes()


def kernel_image(cache: Path, architecture: Architecture, say: Callable[[str], None]) -> Image:
    """Return the kernel in `cache`; fetch it where it isn't there or isn't as it was unpacked.

    Raises LabError where the packages can't be had.
    """

    def make(folder: Path, work: Path) -> dict[str, str]:
        return _fetch(folder, work, architecture)

    what = f"Debian's kernel for {architecture.name}"
    folder, facts = cached(cache, Recipe(architecture.name, what, make, ("version",)), say)
    return Image(folder, facts["version"])


def _fetch(folder: Path, work: Path, architecture: Architecture) -> dict[str, str]:
    apt = Apt(work, architecture.debian)
    meta = f"linux-image-{architecture.debian}"
    found = re.search(r"^Depends:.*\blinux-image-(\d[^ ,]*)", apt.show(meta), re.MULTILINE)
    if found is None:
        raise LabError(f"the package {meta} names no kernel", hint="it takes Debian's own sources")
    version = found.group(1)
    for package in apt.download(f"linux-image-{version}", "busybox-static"):
        _unpack(package, folder)
    run_program("depmod", "-b", str(folder), version, hint="is the kernel's package whole?")
    return {"version": version}


def _unpack(package: Path, image: Path) -> None:
    """Write the wanted files of a package below `image`."""
    with (
        subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
        ) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as tar,
    ):
        for member in tar:
            path = member.name.removeprefix("./").removeprefix("usr/")
            content = tar.extractfile(member) if _WANTED.fullmatch(path) else None
            if content is not None:
                target = image / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
