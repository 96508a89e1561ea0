"""Debian's kernel for a machine: its packages fetched by apt, unpacked once, checked at each start.

apt works in a folder of its own, with the host's sources and keys, so that neither root nor a
change of the host is needed, and the packages may be of another architecture than the host's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esp_gw.errors import LabError

FETCH_TIMEOUT = 300.0
_MANIFEST = "manifest.json"
_BUSYBOX = "bin/busybox"
_LOCK = "lock"
# Of the drivers, those for hardware that qemu has.
_WANTED = re.compile(
    r"boot/vmlinuz-.*|bin/busybox|lib/modules/[^/]+/(modules\..*|kernel/(?!drivers/|sound/).*"
    r"|kernel/drivers/(virtio|char|crypto)/.*|kernel/drivers/net/[^/]+)"
)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What differs from one architecture to the next; `name` is the kernel's and qemu's for it."""

    name: str
    debian: str
    qemu: tuple[str, ...]
    cpu: str
    console: str


ARCHITECTURES = {
    "x86_64": Architecture("x86_64", "amd64", ("qemu-system-x86_64", "-M", "q35"), "max", "ttyS0"),
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
    folder = cache / architecture.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                try:
                    return _checked(folder)
                except LabError as error:
                    say(f"{error}; fetching it again")
            say(f"fetching Debian's kernel for {architecture.name} into {cache}")
            # Beside its place until it is whole: a killed run leaves nothing that looks done.
            work = folder.with_suffix(".new")
            shutil.rmtree(work, ignore_errors=True)
            _fetch(work, architecture)
            shutil.rmtree(folder, ignore_errors=True)
            (work / "image").rename(folder)
            shutil.rmtree(work)
            return _checked(folder)
    except OSError as error:
        raise LabError(error.strerror or "failed", where=error.filename or str(cache)) from None


def _checked(folder: Path) -> Image:
    """Return the image of `folder`. Raises LabError where a file isn't as it was unpacked."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        files, image = manifest["files"], Image(folder, manifest["version"])
        damaged = [path for path, digest in files.items() if _digest(folder / path) != digest]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        damaged = [_MANIFEST]
    if damaged:
        raise LabError(f"the cached kernel is damaged ({damaged[0]})", where=str(folder))
    return image


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(work: Path, architecture: Architecture) -> None:
    """Put an image with its manifest into `work`/image."""
    for folder in ("image", "lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    options = _apt_options(work, architecture)
    _run("apt-get", *options, "-q", "-o", "APT::Update::Error-Mode=any", "update")
    meta = f"linux-image-{architecture.debian}"
    described = _run("apt-cache", *options, "show", "--no-all-versions", meta)
    found = re.search(r"^Depends:.*\blinux-image-(\d[^ ,]*)", described, re.MULTILINE)
    if found is None:
        raise LabError(f"the package {meta} names no kernel", hint="it takes Debian's own sources")
    version = found.group(1)
    wanted = (f"linux-image-{version}", "busybox-static")
    _run("apt-get", *options, "-q", "download", *wanted, folder=work)
    image = work / "image"
    for package in work.glob("*.deb"):
        _unpack(package, image)
    _run("depmod", "-b", str(image), version)
    files = sorted(path for path in image.rglob("*") if path.is_file())
    digests = {str(path.relative_to(image)): _digest(path) for path in files}
    (image / _MANIFEST).write_text(json.dumps({"version": version, "files": digests}))


def _apt_options(work: Path, architecture: Architecture) -> list[str]:
    status = work / "status"
    status.touch()  # nothing is installed
    settings = {
        "Dir::State": work,
        "Dir::State::status": status,
        "Dir::Cache": work,
        "APT::Architecture": architecture.debian,
        "APT::Architectures": architecture.debian,
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": 1,
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


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


def _run(*command: str, folder: Path | None = None) -> str:
    try:
        result = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{error.filename} is not installed") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"took longer than {FETCH_TIMEOUT:.0f} s", where=command[0]) from None
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("E:")]
        what = (lines or result.stderr.splitlines() or ["failed"])[0].removeprefix("E: ")
        raise LabError(what, where=command[0], hint="is the network there, and Debian's sources?")
    return result.stdout
