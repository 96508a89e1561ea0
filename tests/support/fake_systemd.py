"""A systemd that answers for one unit: `systemctl cat` and `systemd-creds decrypt` as programs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from esp_gw.cli import viewpoint as viewpoint_module

_SYSTEMCTL = """\
#!/bin/sh
[ "$1 $2 $3" = "cat --no-pager esp-gw.service" ] || exit 99
[ -e '{unit}' ] || {{ echo 'No files found for esp-gw.service.' >&2; exit 1; }}
for file in '{unit}' '{unit}'.d/*.conf; do
    [ -e "$file" ] && printf '# %s\\n' "$file" && cat "$file" && echo
done
exit 0
"""
# An encrypted credential begins with its name; the rest is the text.
_CREDS = """\
#!/bin/sh
[ "$1 $3 $4" = "decrypt - -" ] || exit 99
name="${2#--name=}" text="$(cat)"
case "$text" in "$name "*) printf '%s' "${text#"$name "}" ;;
*) echo 'something before' >&2; echo 'Failed to decrypt: Bad message' >&2; exit 1 ;; esac
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, unit: str | None) -> Path:
    """Have systemd run with this unit, or without it; return the path of the unit."""
    path = folder / "esp-gw.service"
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (
        ("systemctl", _SYSTEMCTL.format(unit=path)),
        ("systemd-creds", _CREDS),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    if unit is not None:
        path.write_text(unit)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(viewpoint_module, "SYSTEMD_RUNS", folder)
    return path


def drop_in(unit: Path, name: str, text: str) -> None:
    """Add a drop-in to a unit."""
    folder = unit.with_name(f"{unit.name}.d")
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
