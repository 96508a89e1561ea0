"""One YAML file as plain values, with the line of each: every scalar is the text that was written.

Text, because YAML 1.1 reads `no` as a flag, 1:20:30 as a number to the base 60 and 010 as eight; a
field knows better what it expects. Tags, anchors, aliases and merge keys are refused: nothing here
needs them, and without them a small file can't grow into a large value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from esp_gw.errors import Problem
from esp_gw.fields import Location, label
from esp_gw.files import open_regular, printable, read_bounded

MAX_FILE_LEN = 1 << 20
MAX_DEPTH = 16
_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"


@dataclass
class Document:
    """What a file says: `value` is made of dict, list, str and None, and empty
    where the file is no use; faults are in `problems`."""

    path: Path
    value: dict[str, object] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    lines: dict[Location, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The file as a problem names it."""
        return printable(self.path)

    def problem(self, location: Location, message: str) -> Problem:
        """A fault at a place in the file; the line is that of the nearest place that has one."""
        place = location
        while place and place not in self.lines:
            place = place[:-1]
        # A value that may stand alone or in a list is a list of one to its model.
        shown = location
        while shown and isinstance(shown[-1], int) and shown not in self.lines:
            shown = shown[:-1]
        return Problem(self.name, self.lines.get(place, 0), label(shown), message)


def read_document(path: Path) -> Document:
    """Read a YAML file of at most 1 MiB; whatever is wrong with it is in the result's problems."""
    document = Document(path)
    try:
        with open_regular(path) as (fd, _):
            content = read_bounded(fd, MAX_FILE_LEN)
    except OSError as error:
        document.problems.append(document.problem((), error.strerror or "can't be read"))
        return document
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        _complain(document, line, "is not UTF-8 text")
        return document
    try:
        node = _Composer(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        _complain(
            document, line, f"has a character that YAML forbids (U+{ord(text[error.position]):04X})"
        )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = error.problem or error.context or "can't be understood"
        _complain(document, mark.line + 1 if mark else 0, f"not valid YAML: {printable(words)}")
    else:
        if node is None or node.tag == _NULL:
            _complain(document, 0, "is empty")
        elif not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1
            _complain(
                document,
                line,
                "expected gateway, policies and tunnels at the top, not a list or a text",
            )
        else:
            document.value = _mapping(document, node, ())
    return document


def _complain(document: Document, line: int, message: str) -> None:
    document.problems.append(Problem(document.name, line, "", message))


def _value(document: Document, node: yaml.Node, location: Location) -> object:
    if isinstance(node, yaml.MappingNode):
        return _mapping(document, node, location)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[*location, index] = item.start_mark.line + 1
            items.append(_value(document, item, (*location, index)))
        return items
    return None if node.tag == _NULL else node.value


def _mapping(document: Document, node: yaml.MappingNode, location: Location) -> dict[str, object]:
    mapping: dict[str, object] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            _complain(document, line, "expected a name before ':'")
            continue
        place = (*location, key.value)
        if place in document.lines:
            first = document.lines[place]
            document.problems.append(
                Problem(
                    document.name, line, label(place), f"stands here twice, first in line {first}"
                )
            )
            continue
        document.lines[place] = line
        mapping[key.value] = _value(document, value, place)
    return mapping


class _Composer(yaml.SafeLoader):
    """Composes nodes and refuses what the module's docstring names."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise yaml.composer.ComposerError(
                None, None, "anchors and aliases (& and *) are not used here", event.start_mark
            )
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, "tags (!) are not used here", event.start_mark
            )
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, "is nested too deeply", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node
