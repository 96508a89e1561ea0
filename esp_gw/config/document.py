"""One YAML file as plain values with their line numbers; every scalar stays text.

Text, because YAML 1.1 reads `no` as a boolean, 1:20:30 as a base-60 number and 010 as eight; each
field parses its own text. Tags, anchors, aliases and merge keys are refused: no configuration needs
them, and without them a small file can't expand into a large value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from esp_gw.config.types import Location, label
from esp_gw.errors import Problem, printable
from esp_gw.files import is_absence, open_regular, read_bounded

MAX_FILE_LEN = 8 << 20
"""Largest accepted file, in bytes: enough for 20,000 tunnels."""
MAX_DEPTH = 16
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_MERGE = "<<"
# libyaml's parser, if PyYAML was built with it: ten times as fast on a file of a megabyte.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Document:
    """The content of one file: `value` consists of dict, list, str and None.

    `value` is empty if the file can't be used. `problems` holds the faults, which refer to the file
    by `name`.
    """

    path: Path
    name: str = field(init=False)
    value: dict[str, object] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lines: dict[Location, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = printable(self.path)

    def problem(
        self, location: Location, message: str, *, absent: bool = False, denied: bool = False
    ) -> Problem:
        """A fault at a place in the file, with the line of the nearest enclosing known place."""
        place = location
        while place and place not in self.lines:
            place = place[:-1]
        # The model sees a single value as a list of one; the file has no such index.
        shown = location
        while shown and isinstance(shown[-1], int) and shown not in self.lines:
            shown = shown[:-1]
        return Problem(self.name, self.lines.get(place, 0), label(shown), message, absent, denied)


def read_document(path: Path) -> Document:
    """Read a YAML file of at most 8 MiB. Faults are collected in `problems`; nothing is raised."""
    document = Document(path)
    try:
        with open_regular(path) as (fd, _):
            content = read_bounded(fd, MAX_FILE_LEN)
    except OSError as error:
        text = error.strerror or "can't be read"
        denied = isinstance(error, PermissionError)
        problem = document.problem((), text, absent=is_absence(error), denied=denied)
        document.problems.append(problem)
        return document
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _complain(document, line, "is not UTF-8 text")
        return document
    if forbidden := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, forbidden.start()) + 1
        number = ord(forbidden.group())
        _complain(document, line, f"has a character that YAML forbids (U+{number:04X})")
        return document
    try:
        _Reader(document, text).read()
    except yaml.MarkedYAMLError as error:
        # A partial value is unusable, and the faults found in it may stem from the syntax error.
        document.value, document.problems = {}, []
        mark = error.problem_mark or error.context_mark
        words = error.problem or error.context or "can't be understood"
        # At the end of a file without a final newline, libyaml reports one line too many.
        line = min(mark.line, text.count("\n")) + 1 if mark else 0
        _complain(document, line, f"not valid YAML: {printable(words)}")
    return document


def find_scalar(path: Path, key: str) -> str | None:
    """Return the value of the first `key` in a file before a syntax error, or None."""
    try:
        with open_regular(path) as (fd, _):
            text = read_bounded(fd, MAX_FILE_LEN).decode("utf-8-sig")
        previous: str | None = None
        if key not in text:
            return None
        for event in yaml.parse(text, _LOADER):
            value = event.value if isinstance(event, yaml.ScalarEvent) else None
            if previous == key and value is not None:
                return str(value)
            previous = value
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        pass
    return None


def _complain(document: Document, line: int, message: str) -> None:
    document.problems.append(Problem(document.name, line, "", message))


class _Reader:
    """Converts parser events to values; refuses tags, anchors, aliases and merge keys."""

    def __init__(self, document: Document, text: str) -> None:
        self._document = document
        self._next = _LOADER(text).get_event
        self._depth = 0

    def read(self) -> None:
        """Read the whole file into the document. Raises yaml.MarkedYAMLError."""
        self._next()
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            _complain(self._document, 0, "is empty")
            return
        event = self._event()
        if isinstance(event, yaml.MappingStartEvent):
            self._document.value = self._mapping(())
        elif self._value(event, ()) is None:
            _complain(self._document, 0, "is empty")
        else:
            _complain(
                self._document,
                event.start_mark.line + 1,
                "expected gateway, crypto, policies and tunnels here, not a list or text",
            )
        self._next()
        event = self._next()
        if not isinstance(event, yaml.StreamEndEvent):
            raise yaml.MarkedYAMLError(None, None, "but found another document", event.start_mark)

    def _event(self) -> Any:
        event = self._next()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _refusal("anchors and aliases (& and *) are not used here", event)
        if getattr(event, "tag", None) is not None:
            raise _refusal("tags (!) are not used here", event)
        return event

    def _value(self, event: Any, location: Location) -> object:
        """The value that begins with `event`, read to its end."""
        if isinstance(event, yaml.ScalarEvent):
            return None if _is_plain(event) and event.value in _NULL else event.value
        self._depth += 1
        # The top mapping and the innermost scalar each count as a level.
        if self._depth > MAX_DEPTH - 2:
            raise _refusal("is nested too deeply", event)
        value: object
        if isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(location)
        else:
            value = self._sequence(location)
        self._depth -= 1
        return value

    def _sequence(self, location: Location) -> list[object]:
        items: list[object] = []
        while not isinstance(event := self._event(), yaml.SequenceEndEvent):
            place = (*location, len(items))
            self._document.lines[place] = event.start_mark.line + 1
            items.append(self._value(event, place))
        return items

    def _mapping(self, location: Location) -> dict[str, object]:
        document, mapping = self._document, {}
        while not isinstance(event := self._event(), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent) or (
                _is_plain(event) and event.value == _MERGE
            ):
                _complain(document, line, "expected a name before ':'")
                self._skip(event)
                self._skip(self._event())
                continue
            place = (*location, event.value)
            if place in document.lines:
                first = document.lines[place]
                text = f"is given twice, first in line {first}"
                document.problems.append(Problem(document.name, line, label(place), text))
                self._skip(self._event())
                continue
            document.lines[place] = line
            mapping[event.value] = self._value(self._event(), place)
        return mapping

    def _skip(self, event: Any) -> None:
        """Read a value to its end and discard it, with its line numbers and faults."""
        document = self._document
        self._document = Document(document.path)
        self._value(event, ())
        self._document = document


def _is_plain(event: Any) -> bool:
    return bool(event.implicit[0])


def _refusal(text: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, text, event.start_mark)
