"""AppArmor's say on a program's use of a file: profiles, local rules, denials in the log."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
LOADED = Path("/sys/kernel/security/apparmor/profiles")
"""A line `NAME (MODE)` for each profile; root alone reads it."""
FEATURES = Path("/sys/kernel/security/apparmor/features")
FOLDER = Path("/etc/apparmor.d")
KERNEL_LOG = Path("/dev/kmsg")
ENFORCE = "enforce"

_QUALIFIERS = {"allow", "audit", "file", "owner"}
_GLOBS = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
_DENIAL = re.compile(r'audit\((\d+\.\d+):.*apparmor="DENIED".* profile="([^"]*)".* name="([^"]*)"')
_RECORD = 8192
"""Bytes of the longest record of the kernel's log (/dev/kmsg)."""
_MAX_RECORDS = 1 << 17


@dataclass(frozen=True, slots=True)
class Profile:
    """The profile of a program: its file, and its local rules."""

    program: Path

    @property
    def name(self) -> str:
        """The profile's file name."""
        return str(self.program).strip("/").replace("/", ".")

    @property
    def file(self) -> Path:
        """The file of the package."""
        return FOLDER / self.name

    @property
    def local(self) -> Path:
        """The file of rules that the profile includes."""
        return FOLDER / "local" / self.name

    def mode(self) -> str | None:
        """Return `enforce`, `complain` or another mode of the loaded profile.

        Empty if it isn't loaded; None if this user may not know.
        """
        try:
            lines = LOADED.read_text().splitlines()
        except OSError:
            return None
        for line in lines:
            name, _, mode = line.rpartition(" (")
            if name in (str(self.program), self.program.name):
                return mode.rstrip(")")
        return ""

    def allows(self, path: Path) -> bool:
        """Return True if a rule of the profile lets the program read and write a file."""
        return any(
            pattern.fullmatch(str(path)) and {"r", "w"} <= set(access)
            for file in (self.file, self.local)
            for pattern, access in _rules(file)
        )

    def changed(self) -> float:
        """Return the time of the last change of its files, in seconds since 1970."""
        return max(path.stat().st_mtime for path in (self.file, self.local) if path.exists())

    def last_denial(self, path: Path) -> float | None:
        """Return the time of the last denial of a file in the kernel's log, in seconds since 1970.

        None without one, or if this user may not read that log.
        """
        ours = (str(self.program), self.program.name)
        times = [
            float(denial[1])
            for record in _kernel_log()
            if (denial := _DENIAL.search(record)) and denial[2] in ours and denial[3] == str(path)
        ]
        return max(times, default=None)


def runs() -> bool:
    """Return True if AppArmor confines programs on this machine."""
    try:
        return ENABLED.read_text().strip() == "Y"
    except OSError:
        return False


def confines_sockets() -> bool:
    """Return True if this kernel asks profiles about sockets of the file system.

    It does from Linux 6.17 on, for profiles of its ABI, and in Ubuntu.
    """
    for file in FEATURES.glob("network*/af_unix"):
        with contextlib.suppress(OSError):
            if file.read_text().strip() == "yes":
                return True
    return False


def _rules(file: Path) -> Iterator[tuple[re.Pattern[str], str]]:
    """Yield the rules on files: a regular expression for the paths, and the access to them."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        text = line.split("#")[0].strip().removesuffix(",").replace("@{run}", "/{,var/}run")
        words = [word for word in text.split() if word not in _QUALIFIERS]
        if len(words) != 2 or not any(word.startswith("/") for word in words):
            continue
        pattern, access = sorted(words, key=lambda word: not word.startswith("/"))
        # One that AppArmor refuses, too.
        with contextlib.suppress(re.error):
            yield re.compile(_expression(pattern)), access


def _expression(pattern: str) -> str:
    """Return the regular expression of a pattern of apparmor.d(5)."""
    parts = []
    for part in re.findall(r"\*\*|[*?{},]|\[[^]]*\]|[^*?{},[]+", pattern):
        if part in _GLOBS:
            parts.append(_GLOBS[part])
        elif part.startswith("["):
            parts.append(part)
        else:
            parts.append({"{": "(?:", "}": ")", ",": "|"}.get(part, re.escape(part)))
    return "".join(parts)


def _kernel_log() -> Iterator[str]:
    try:
        descriptor = os.open(KERNEL_LOG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        for _ in range(_MAX_RECORDS):
            try:
                record = os.read(descriptor, _RECORD)
            except BrokenPipeError:  # overwritten meanwhile
                continue
            except OSError:  # none is left
                return
            if not record:
                return
            yield record.decode(errors="replace")
    finally:
        os.close(descriptor)
