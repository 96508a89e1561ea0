"""A disk with Debian's userland, on which scripts/install has installed this checkout."""

from __future__ import annotations

import hashlib
import importlib.metadata
import shlex
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from esp_gw.errors import LabError
from lab.vm.cache import Recipe, cached
from lab.vm.debian import run_program
from lab.vm.userland import Release, in_memory, userland

CLONE = "/root/esp-gw"
"""The checkout inside, as far as scripts/install and the guide need it, with dist/,
wheels/ and packages/."""
_SIZE = "1200M"
_CLONED = (
    *("scripts", "systemd", "esp_gw", "pyproject.toml", "README.md"),
    *("LICENSE-APACHE", "LICENSE-MIT"),
)
_NATIVE = "esp-gw-core"
_INSTALL = """
set -eu
root=$TMPDIR
tar -x --numeric-owner --xattrs --xattrs-include=* -f "$tar" -C "$root"
# An installed system has an id. One without enables every unit at its first start.
tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
echo gateway >"$root/etc/hostname"
printf '127.0.0.1 localhost gateway\n::1 localhost\n' >"$root/etc/hosts"
mkdir -p "$root$clone"
for name in $cloned; do cp -r "$checkout/$name" "$root$clone"; done
cp -r "$dist" "$root$clone/dist"
cp -r "$wheels" "$root$clone/wheels"
cp -r "$packages" "$root$clone/packages"
mount -t proc proc "$root/proc"
mount -t devtmpfs dev "$root/dev"
inside() {
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@" >&2
}
# Here rather than in the machine: an emulator needs 20 times as long.
inside "PIP_FIND_LINKS=$clone/wheels" PIP_NO_INDEX=1 PIP_NO_CACHE_DIR=1 "$clone/scripts/install"
cp -r "$files/." "$root"
inside systemctl --quiet enable $enabled
umount "$root/dev" "$root/proc"
mkfs.ext4 -q -F -d "$root" "$disk" "$size"
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """Contents of a disk beside Debian and the gateway: files by their paths, enabled units."""

    files: Mapping[str, str]
    enabled: Sequence[str]


def make_disk(
    disk: Path,
    cache: Path,
    release: Release,
    checkout: Path,
    packages: Path,
    contents: Contents,
    say: Callable[[str], None],
) -> None:
    """Write an ext4 image to `disk`: a release of Debian, with the gateway installed.

    The installed engines are those of this Python's environment. `packages` is a folder for CLONE.
    `contents` are added afterwards.
    Needs root. Raises LabError.
    """
    with tempfile.TemporaryDirectory(prefix="esp-gw-disk-") as work:
        dist, files = Path(work, "dist"), Path(work, "files")
        for folder in (dist, files):
            folder.mkdir()
        pack_native_wheel(dist)
        for path, text in contents.files.items():
            file = files / path.removeprefix("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        variables = {
            "tar": userland(cache, release, say),
            "wheels": fetch_wheels(cache, release, checkout / "pyproject.toml", say),
            "clone": CLONE,
            "checkout": checkout,
            "cloned": " ".join(_CLONED),
            "dist": dist,
            "packages": packages,
            "files": files,
            "enabled": " ".join(contents.enabled),
            "disk": disk,
            "size": _SIZE,
        }
        values = "".join(f"{name}={shlex.quote(str(v))}\n" for name, v in variables.items())
        hint = "run scripts/install by hand to see more"
        in_memory("sh", "-c", values + _INSTALL, folder=Path(work, "root"), hint=hint)


def fetch_wheels(cache: Path, release: Release, project: Path, say: Callable[[str], None]) -> Path:
    """Return a folder with the wheels that the package's build and run need on a release.

    Raises LabError if they can't be fetched.
    """

    def make(folder: Path, work: Path) -> dict[str, str]:
        run_program(
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--dest", str(folder), "--only-binary=:all:"),
            *("--implementation", "cp", "--python-version", release.python),
            *("--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64"),
            *requirements,
            marks=("ERROR: ",),
            hint="check the network and PyPI",
        )
        return wanted

    described = tomllib.loads(project.read_text())
    requirements = [*described["build-system"]["requires"], *described["project"]["dependencies"]]
    wanted = {"contents": hashlib.sha256(repr(requirements).encode()).hexdigest()}
    what = f"wheels for Python {release.python}"
    recipe = Recipe(f"wheels-{release.name}", what, make, wanted=wanted)
    return cached(cache, recipe, say)[0]


def pack_native_wheel(folder: Path) -> None:
    """Write a wheel of the native engine into `folder`, if it is installed here.

    It is made of the installed files, so that nothing is built again, without their symbols, as
    scripts/build-wheels makes them. Raises LabError.
    """
    try:
        installed = importlib.metadata.distribution(_NATIVE)
    except importlib.metadata.PackageNotFoundError:
        return
    described = dict(
        line.split(": ", 1) for line in (installed.read_text("WHEEL") or "").splitlines() if line
    )
    if installed.files is None or "Tag" not in described:
        raise LabError(f"{_NATIVE} is not installed from a wheel", hint="install it with pip")
    name = f"{_NATIVE.replace('-', '_')}-{installed.version}-{described['Tag']}.whl"
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for file in installed.files:
            if file.suffix == ".so":
                stripped = folder / "stripped"
                run_program(
                    *("strip", "--strip-unneeded", "-o", str(stripped), str(file.locate())),
                    marks=("strip: ",),
                    hint="install binutils",
                )
                wheel.write(stripped, str(file))
                stripped.unlink()
            elif file.suffix != ".pyc":
                wheel.write(str(file.locate()), str(file))
