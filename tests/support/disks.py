"""File systems so small that a test can fill them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

BALLAST = "ballast"


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a file system of 256 KiB on a new folder."""
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "none", str(folder))
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(("umount", "-l", str(folder)), check=True)


def fill(disk: Path) -> None:
    """Leave no space on a disk, until its file BALLAST is removed."""
    with contextlib.suppress(OSError), (disk / BALLAST).open("wb", buffering=0) as ballast:
        while ballast.write(bytes(4096)) == 4096:
            pass
