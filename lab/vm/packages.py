"""Debian packages of this checkout, by scripts/build-deb: one, and a later version of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from esp_gw.errors import LabError
from lab.vm.debian import run_program
from lab.vm.disk import fetch_wheels, pack_native_wheel
from lab.vm.userland import RELEASES

LATER = "later.deb"
"""The version to upgrade to."""
_LATER = """
set -eu
dpkg-deb --raw-extract "$1" "$TMPDIR/tree"
sed -i 's/^Version: .*/&+1/' "$TMPDIR/tree/DEBIAN/control"
dpkg-deb --root-owner-group -Zgzip --build "$TMPDIR/tree" "$2"
"""


def make_packages(
    folder: Path, cache: Path, number: str, checkout: Path, say: Callable[[str], None]
) -> Path:
    """Write the package for a release (a key of RELEASES) into `folder`, and LATER beside it.

    The native engine is that of this Python's environment, for x86-64. Returns the package's path.
    Raises LabError.
    """
    wheels = fetch_wheels(cache, RELEASES[number], checkout / "pyproject.toml", say)
    with tempfile.TemporaryDirectory(prefix="esp-gw-deb-") as work:
        pack_native_wheel(Path(work))
        run_program(
            *("env", "PIP_NO_INDEX=1", f"PIP_FIND_LINKS={wheels}"),
            *(str(checkout / "scripts/build-deb"), "--release", number, "--arch", "amd64"),
            *("--wheels", work, "--out", str(folder)),
            marks=("error: ", "ERROR: "),
            hint="run scripts/build-deb by hand to see more",
        )
        made = [path for path in folder.glob("*.deb") if path.name != LATER]
        if len(made) != 1:
            raise LabError(f"{len(made)} packages in {folder} in place of one")
        run_program(
            *("env", f"TMPDIR={work}", "sh", "-c", _LATER, "sh"),
            *(str(made[0]), str(folder / LATER)),
            marks=("dpkg-deb: error",),
            hint="look at the package with dpkg-deb --info",
        )
    return made[0]
