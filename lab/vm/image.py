"""Debian's kernel for a machine: packages fetched and unpacked once, verified at each start."""

from __future__ import annotations

import lzma
import platform
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
# Only drivers for hardware that qemu emulates.
_WANTED = re.compile(
    r"boot/vmlinuz-.*|bin/busybox|lib/modules/[^/]+/(modules\..*|kernel/(?!drivers/|sound/).*"
    r"|kernel/drivers/(virtio|char|crypto)/.*|kernel/drivers/block/virtio_blk.*"
    r"|kernel/drivers/net/[^/]+)"
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """Parameters of an architecture; `name` is its name in the kernel and in qemu.

    `debian` is its name in Debian, `qemu` the start of qemu's command line, `cpu` the default
    processor, `boot` options on the kernel's command line.
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
        # On a busy host the timer fails the kernel's self-test by being late: a panic.
        "console=ttyS0 no_timer_check",
    ),
    # The default processor is the core of a Raspberry Pi 5.
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
        """The kernel image."""
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


def kernel_image(
    cache: Path,
    architecture: Architecture,
    say: Callable[[str], None],
    release: str | None = None,
) -> Image:
    """Return the kernel of a release, by default the host's; fetch it if missing or outdated.

    Raises LabError if the packages can't be fetched.
    """
    name = architecture.name
    if release not in (None, _host_release()):
        name = f"{name}-{release}"

    def make(folder: Path, work: Path) -> dict[str, str]:
        version = _fetch(folder, Apt(work, architecture.debian, release), architecture)
        return {"version": version, **wanted}

    wanted = {"selection": _WANTED.pattern}
    recipe = Recipe(name, f"Debian's kernel for {name}", make, ("version",), wanted)
    folder, facts = cached(cache, recipe, say)
    return Image(folder, facts["version"])


def _host_release() -> str | None:
    return platform.freedesktop_os_release().get("VERSION_CODENAME")


def _fetch(folder: Path, apt: Apt, architecture: Architecture) -> str:
    """Unpack the kernel into `folder`; return its version."""
    meta = f"linux-image-{architecture.debian}"
    found = re.search(r"^Depends:.*\blinux-image-(\d[^ ,]*)", apt.show(meta), re.MULTILINE)
    if found is None:
        raise LabError(f"the package {meta} names no kernel", hint="use Debian's own sources")
    version = found.group(1)
    for package in apt.download(f"linux-image-{version}", "busybox-static"):
        _unpack(package, folder)
    run_program("depmod", "-b", str(folder), version, hint="check the kernel package")
    return version


def _unpack(package: Path, image: Path) -> None:
    """Extract the wanted files of a package into `image`."""
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
