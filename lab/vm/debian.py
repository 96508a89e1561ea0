"""Debian packages of any architecture and release, by apt with a private state folder.

Uses the host's keys, and its sources unless a release is named; needs no root and changes nothing
on the host.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from esp_gw.demo.netns import run_command
from esp_gw.errors import LabError

FETCH_TIMEOUT = 900.0
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_HINT = "check the network and Debian's sources"


def sources(release: str) -> str:
    """Return the sources.list of a release such as "bookworm", with its updates."""
    options = f"deb [signed-by={KEYRING}] http://deb.debian.org"
    return "".join(
        f"{options}/{archive} {suite} main\n"
        for archive, suite in (
            ("debian", release),
            ("debian", f"{release}-updates"),
            ("debian-security", f"{release}-security"),
        )
    )


class Apt:
    """apt for one of Debian's architectures, with nothing installed. Methods raise LabError."""

    def __init__(self, work: Path, architecture: str, release: str | None = None) -> None:
        """Fetch the package lists into `work`, those of the host's sources without a `release`."""
        for folder in ("lists/partial", "archives/partial"):
            (work / folder).mkdir(parents=True)
        status = work / "status"
        status.touch()  # nothing is installed
        settings = {
            "Dir::State": work,
            "Dir::State::status": status,
            "Dir::Cache": work,
            "APT::Architecture": architecture,
            "APT::Architectures": architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "Debug::NoLocking": "true",
        }
        if release is not None:
            (work / "sources.list").write_text(sources(release))
            settings |= {
                "Dir::Etc::sourcelist": work / "sources.list",
                "Dir::Etc::sourceparts": "-",
            }
        self._options = [
            word for name, value in settings.items() for word in ("-o", f"{name}={value}")
        ]
        self._archives = work / "archives"
        self._get("-o", "APT::Update::Error-Mode=any", "update")

    def show(self, package: str) -> str:
        """Return Debian's description of a package."""
        command = ("apt-cache", *self._options, "show", "--no-all-versions", package)
        return run_program(*command, hint=_HINT)

    def download(self, *packages: str) -> list[Path]:
        """Download packages without their dependencies; return the files."""
        self._get("download", *packages, folder=self._archives)
        return self._files()

    def download_all(self, *packages: str) -> list[Path]:
        """Download packages with all their dependencies; return the files."""
        self._get("--download-only", "--no-install-recommends", "-y", "install", *packages)
        return self._files()

    def _get(self, *words: str, folder: Path | None = None) -> None:
        run_program("apt-get", *self._options, "-q", *words, folder=folder, hint=_HINT)

    def _files(self) -> list[Path]:
        return sorted(self._archives.glob("*.deb"))


def run_program(
    *command: str, folder: Path | None = None, marks: Sequence[str] = ("E: ",), hint: str
) -> str:
    """Run a program in `folder` and return its output.

    On failure raises LabError with `hint` and the first stderr line that begins with one of
    `marks`.
    """
    env = {**os.environ, "LC_ALL": "C", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    result = run_command(command, FETCH_TIMEOUT, False, where=command[0], cwd=folder, env=env)
    if result.returncode:
        errors = result.stderr.splitlines()
        marked = [
            line.removeprefix(mark) for line in errors for mark in marks if line.startswith(mark)
        ]
        raise LabError((marked or errors or ["failed"])[0], where=command[0], hint=hint)
    return result.stdout
