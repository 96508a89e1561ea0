"""Debian's userland with systemd, of any release: a tar made once and verified at each use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lab.vm.cache import Recipe, cached
from lab.vm.debian import run_program

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "udev", "kmod", "python3", "python3-venv"),
    *("iproute2", "iputils-ping", "nftables", "passwd"),
    # Needed by systemd-creds, which loads it only when it encrypts.
    "openssl",
)
_EXCLUDED = ("doc", "info", "locale", "man")
"""Folders of /usr/share that nothing here reads."""
_TAR = "userland.tar"


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian: its code name and its Python's version, such as "3.11"."""

    name: str
    python: str


RELEASES = {"12": Release("bookworm", "3.11"), "13": Release("trixie", "3.13")}
"""Debian's releases that the gateway is made for, by their numbers."""


def userland(cache: Path, release: Release, say: Callable[[str], None]) -> Path:
    """Return the tar of a release in `cache`; make it if it is missing, damaged or outdated.

    Needs root. Raises LabError if the packages can't be fetched.
    """

    def make(folder: Path, work: Path) -> dict[str, str]:
        _make(folder / _TAR, work, release)
        return {"contents": contents}

    contents = hashlib.sha256(repr((PACKAGES, _EXCLUDED)).encode()).hexdigest()
    what = f"the userland of Debian {release.name}"
    recipe = Recipe(f"userland-{release.name}", what, make, wanted={"contents": contents})
    return cached(cache, recipe, say)[0] / _TAR


def in_memory(*command: str, folder: Path, hint: str) -> None:
    """Run a command with a filesystem in memory on `folder`, its $TMPDIR. Raises LabError.

    Needs root. What the command leaves there, and what it mounts, ends with it.
    """
    folder.mkdir(exist_ok=True)
    mount = 'mount -t tmpfs -o mode=755 tmpfs "$TMPDIR" && exec "$@"'
    run_program(
        *("env", f"TMPDIR={folder}", "unshare", "--mount", "--propagation", "private"),
        *("sh", "-c", mount, "sh", *command),
        marks=("E: ", "error: ", "ERROR: "),
        hint=hint,
    )


def _make(tar: Path, work: Path, release: Release) -> None:
    # dpkg syncs every file, which costs nothing in memory.
    in_memory(
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--format=tar"),
        f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _EXCLUDED),
        *(release.name, str(tar)),
        folder=work / "memory",
        hint="check the network and Debian's mirror",
    )
