"""The installed unit of the gateway, as systemd reads it: user, configuration, credentials."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from esp_gw.errors import EspGwError

UNIT = "esp-gw.service"
SYSTEMD_RUNS = Path("/run/systemd/system")
"""Exists where systemd is the init system (sd_booted(3))."""
ANSWER_TIMEOUT = 30
"""Seconds for an answer of systemd, or of a security chip."""

_SPECIFIERS = {"%%": "%", "%n": UNIT, "%N": "esp-gw", "%p": "esp-gw", "%E": "/etc", "%t": "/run"}


@dataclass(frozen=True, slots=True)
class Source:
    """Source of a credential: a path or a name for LoadCredential=, else its text."""

    text: str
    is_encrypted: bool


@dataclass(slots=True)
class Unit:
    """The settings of the installed unit that decide what the gateway can read.

    Credentials are by name: `loaded` by LoadCredential=, `literal` by SetCredential=, and the
    patterns of ImportCredential=.
    """

    user: str = "root"
    group: str = ""
    supplementary_groups: list[str] = field(default_factory=list)
    config: Path = Path("/etc/esp-gw")
    loaded: dict[str, Source] = field(default_factory=dict)
    literal: dict[str, Source] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Read unit files, drop-ins after the unit, as `systemctl cat` prints them.

        Source: systemd.syntax(7); an empty value resets a list.
        """
        unit = cls()
        for name, value in _settings(text):
            match name:
                case "User":
                    unit.user = value or "root"
                case "Group":
                    unit.group = value
                case "SupplementaryGroups":
                    before = unit.supplementary_groups if value else []
                    unit.supplementary_groups = [*before, *value.split()]
                case "LoadCredential" | "LoadCredentialEncrypted":
                    _credential(unit.loaded, name, value)
                case "SetCredential" | "SetCredentialEncrypted":
                    _credential(unit.literal, name, value)
                case "ImportCredential":
                    unit.imported = [*unit.imported, value] if value else []
                case "ExecStart" if value:
                    unit.config = _config_of(value) or unit.config
        return unit

    def reads(self, path: Path) -> bool:
        """True if `path` is the configuration of the gateway, or a part of it."""
        ours, theirs = (Path(os.path.realpath(each)) for each in (path, self.config))
        return ours == theirs or theirs in ours.parents


def _credential(sources: dict[str, Source], setting: str, value: str) -> None:
    if not value:
        sources.clear()
        return
    name, _, text = (_without_specifiers(part) for part in value.partition(":"))
    # Systemd ignores a name that is none of a file.
    if name and "/" not in name and not name.startswith("."):
        sources[name] = Source(text or name, setting.endswith("Encrypted"))


def _without_specifiers(text: str) -> str:
    for specifier, value in _SPECIFIERS.items():
        text = text.replace(specifier, value)
    return text


def _settings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the settings of the section Service: a line that ends in a backslash goes on."""
    section, begun = "", ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith(("#", ";")):
            continue
        if line.endswith("\\"):
            begun += line[:-1] + " "
            continue
        line, begun = begun + line, ""
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line:
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()


def _config_of(command: str) -> Path | None:
    """Return the value of --config in a command line."""
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word == "--config" and value:
            return Path(value)
        if word.startswith("--config="):
            return Path(word.partition("=")[2])
    return None


def installed_unit() -> Unit | None:
    """Return the installed unit, or None without one. Raises EspGwError if systemd can't say."""
    command = ("systemctl", "cat", "--no-pager", UNIT)
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=ANSWER_TIMEOUT,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EspGwError(f"systemctl can't be asked: {error}") from None
    return Unit.parse(done.stdout) if done.returncode == 0 else None
