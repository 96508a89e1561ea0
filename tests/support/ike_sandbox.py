"""This machine with its charon, to install on: the folders that an installation changes are copies.

Each command has mounts of its own, which put the copies in their places, and an empty /run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.support.charon import PLUGINS, ROOT, installed_version

FOLDERS = ("/etc/strongswan.d", "/etc/apparmor.d", "/etc/systemd/system", str(PLUGINS))
_OURS = ("*esp-gw*", "libstrongswan-ml.so")
_LOCAL = ("usr.sbin.charon-systemd", "usr.lib.ipsec.charon")


class Sandbox:
    """Copies of this machine's folders and of the checkout, below one folder."""

    def __init__(self, folder: Path, out: Path) -> None:
        """`out` is a folder as builds leave it in strongswan/."""
        self.root = folder / "root"
        self.checkout = folder / "checkout"
        self.programs = folder / "programs"
        self.mounts: list[str] = []
        """Further commands for the shell that prepares a command's mounts."""
        self._folder = folder
        self._calls = folder / "calls"
        self.programs.mkdir()
        for name in FOLDERS:
            shutil.copytree(name, self.place(name), symlinks=True)
            for pattern in _OURS:
                for path in self.place(name).rglob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        for name in _LOCAL:
            self.place(f"/etc/apparmor.d/local/{name}").write_text("")
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        shutil.copytree(
            ROOT / "strongswan", self.checkout / "strongswan", ignore=shutil.ignore_patterns("out")
        )
        self.out = self.checkout / "strongswan/out"
        shutil.copytree(out, self.out, symlinks=True)
        for name in ("apt-get", "sudo"):
            self.fake(name, f"echo '{name}: not in a test' >&2; exit 1")
        self.fake("systemctl", "exit 0")
        self.fake("aa-enabled", "exit 1")
        self.fake("apparmor_parser", "exit 0")

    @property
    def built(self) -> Path:
        """The plugin that the checkout has built."""
        return self.out / installed_version() / "libstrongswan-kernel-esp-gw.so"

    def place(self, path: str) -> Path:
        """Return the copy of a path of this machine."""
        return self.root / path.strip("/")

    def fake(self, name: str, script: str) -> None:
        """Put a program in front of this machine's; its calls are recorded."""
        path = self.programs / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>{self._calls}\n{script}\n')
        path.chmod(0o755)

    def record(self, script: str) -> str:
        """Return a part of a fake's script that records what `script` says."""
        return f"{{ {script}; }} >>{self._calls}"

    def calls(self) -> list[str]:
        """Return the command lines of all fakes, and what they recorded, since the last call."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return lines

    def forget_sources(self) -> None:
        """Let a build have to fetch charon's source."""
        for path in self.out.glob("source-*"):
            path.unlink()

    def hide(self, program: str) -> Path:
        """Let this machine lack a program, as before its package is there; return its place."""
        folder, name = os.path.split(program)
        links, real = self.place(folder), self._folder / Path(folder).name
        links.mkdir(parents=True)
        real.mkdir()
        for each in os.listdir(folder):  # noqa: PTH208
            (links / each).symlink_to(real / each)
        (links / name).unlink()
        self.mounts += [f"mount --bind {folder} {real}", f"mount --bind {links} {folder}"]
        return links / name

    def command(self, *words: str) -> list[str]:
        """Return the command line that runs a program in this sandbox."""
        mounts = [f"mount --bind {self.place(name)} {name}" for name in FOLDERS]
        script = " && ".join([*mounts, "mount -t tmpfs tmpfs /run", *self.mounts, 'exec "$@"'])
        path = f"PATH={self.programs}:{os.environ['PATH']}"
        return ["unshare", "--mount", "sh", "-c", script, "sh", "env", path, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a program in this sandbox to its end."""
        return run(self.command(*words))

    def install(self) -> subprocess.CompletedProcess[str]:
        """Run scripts/install-ike."""
        return self.run(str(self.checkout / "scripts/install-ike"))

    def tree(self) -> dict[str, tuple[bytes, int]]:
        """Return the content of all files that an installation may change, and their times."""
        return {
            f"/{path.relative_to(self.root)}": (path.read_bytes(), path.stat().st_mtime_ns)
            for path in self.root.rglob("*")
            if path.is_file() and not path.is_symlink()
        }


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
