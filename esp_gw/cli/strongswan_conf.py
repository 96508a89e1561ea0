"""The settings of strongswan.conf(5) as charon has them: files included, sections merged.

A section that inherits another one (`name : other`) is read without what it inherits.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from esp_gw.errors import EspGwError

Section: TypeAlias = "dict[str, str | Section]"

MAX_INCLUSIONS = 10
"""Depth of files in files, as charon has it."""
_ROOTS = ("charon-systemd", "charon", "libstrongswan")
"""Sections of the program charon-systemd, of which the first that has a setting counts."""
_GAP = re.compile(r"(?:\s|#[^\n]*)*")
_INCLUDE = re.compile(r"include[ \t]+([^\n#}]+)")
_NAME = re.compile(r'[^\s.,:{}="#]+')
_REFERENCES = re.compile(r":[^{}=#\n]*")
_VALUE = re.compile(r'[ \t]*((?:"(?:\\.|[^"\\])*"|[^"#}\n])*)')
_FALSE = {"no", "false", "disabled", "0", ""}
_TRUE = {"yes", "true", "enabled"}


class Settings:
    """The settings of charon-systemd."""

    def __init__(self, document: Section) -> None:
        self._roots = [root for name in _ROOTS if isinstance(root := document.get(name), dict)]

    def value(self, *path: str) -> str | None:
        """Return a setting by the names of its sections and its own, or None."""
        for root in self._roots:
            found = _inner(root, path)
            if isinstance(found, str):
                return found
        return None

    def plugins(self) -> set[str]:
        """Return the names of all plugins that have a section."""
        sections = [_inner(root, ("plugins",)) for root in self._roots]
        return {name for section in sections if isinstance(section, dict) for name in section}

    @property
    def is_modular(self) -> bool:
        """True if each plugin says by itself if it is loaded."""
        return is_true(self.value("load_modular"))

    def priority(self, plugin: str) -> int:
        """Return a plugin's rank among those that charon loads; 0 for one that it doesn't."""
        if not self.is_modular:
            return int(plugin in (self.value("load") or "").split())
        load = self.value("plugins", plugin, "load")
        if load is not None and re.fullmatch(r"[+-]?\d+", load):
            return int(load)
        return int(is_true(load))


def is_true(value: str | None) -> bool:
    """Return True for a value that charon takes as true."""
    return value is not None and (value.lower() in _TRUE or value == "1")


def read_settings(path: Path) -> Settings:
    """Read strongswan.conf with the files that it includes.

    Raises EspGwError, with the place, if one can't be read.
    """
    document: Section = {}
    _read(path, document, MAX_INCLUSIONS)
    return Settings(document)


def _inner(section: Section, path: tuple[str, ...]) -> str | Section | None:
    found: str | Section | None = section
    for name in path:
        if not isinstance(found, dict):
            return None
        found = found.get(name)
    return found


def _read(path: Path, section: Section, depth: int) -> None:
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        raise EspGwError(error.strerror or "can't be read", where=str(path)) from None
    _Reader(path, text, depth).read(section)


class _Reader:
    """A look at one file, from its beginning to its end."""

    def __init__(self, path: Path, text: str, depth: int) -> None:
        self._path = path
        self._text = text
        self._depth = depth
        self._at = 0

    def read(self, section: Section) -> None:
        self._statements(section)
        if self._at < len(self._text):
            raise self._fault()

    def _statements(self, section: Section) -> None:
        while True:
            self._take(_GAP)
            if self._at == len(self._text) or self._text[self._at] == "}":
                return
            if include := self._take(_INCLUDE):
                for path in self._included(include[1]):
                    _read(path, section, self._depth - 1)
                continue
            name = self._take(_NAME)
            if name is None:
                raise self._fault()
            self._statement(section, name[0])

    def _statement(self, section: Section, name: str) -> None:
        self._take(_GAP)
        self._take(_REFERENCES)
        sign = self._text[self._at : self._at + 1]
        self._at += 1
        if sign == "=":
            value = self._take(_VALUE)
            section[name] = _plain(value[1].strip() if value else "")
        elif sign == "{":
            there = section.get(name)
            inner: Section = there if isinstance(there, dict) else {}
            section[name] = inner
            self._statements(inner)
            if self._text[self._at : self._at + 1] != "}":
                raise self._fault()
            self._at += 1
        else:
            self._at -= 1
            raise self._fault()

    def _included(self, pattern: str) -> Iterator[Path]:
        # A file that isn't there, or includes itself, is left out by charon, too.
        if self._depth:
            place = self._path.parent / _plain(pattern.strip())
            yield from sorted(Path(found) for found in glob.glob(str(place)))  # noqa: PTH207

    def _take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return found

    def _fault(self) -> EspGwError:
        line = self._text.count("\n", 0, self._at) + 1
        return EspGwError("charon can't read this", where=f"{self._path}:{line}")


def _plain(value: str) -> str:
    """Return a value without the quotation marks around it."""
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return re.sub(r"\\(.)", r"\1", value[1:-1])
    return value
