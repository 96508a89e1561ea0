"""A flame graph as an SVG: frames as wide as their share, those that they call above them.

Nothing in it is a script; a viewer shows the name and the share of the frame under the pointer.

Source: Brendan Gregg, "The Flame Graph", CACM 59(6), 2016.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape

Stacks = Mapping[tuple[str, ...], int]
"""Frames from the outermost on, and how much was spent there and nowhere deeper."""

WIDTH = 1200
_ROW = 18
_MARGIN = 10
_HEAD = 50
_LETTER = 6.6
"""Width of a letter, about."""
_LEAST_WIDTH = 0.2
_MAX_DEPTH = 200
# Characters that XML 1.0 has no place for.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(slots=True)
class _Frame:
    name: str
    value: int = 0
    inner: dict[str, _Frame] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Rows that it takes."""
        return 1 + max((each.depth for each in self.inner.values()), default=0)


def folded(stacks: Stacks) -> Iterator[str]:
    """Yield a line for each stack: frames with semicolons between them, and the value."""
    for frames, value in sorted(stacks.items()):
        names = (re.sub(r"[;\s]+", "_", frame) for frame in frames)
        yield f"{';'.join(names)} {value}"


def flame_graph(stacks: Stacks, title: str) -> str:
    """Return the SVG of stacks under a title. Without any it says so."""
    root = _tree(stacks)
    height = _HEAD + _ROW * root.depth + _MARGIN
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
        f"<title>{_text(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{WIDTH / 2:g}" y="28" text-anchor="middle" font-size="15">{_text(title)}</text>',
    ]
    if root.value:
        room = WIDTH - 2 * _MARGIN
        bottom = height - _MARGIN - _ROW
        lines += _drawn(root, float(_MARGIN), bottom, room / root.value, root.value)
    else:
        lines.append(f'<text x="{_MARGIN}" y="{_HEAD}">nothing was measured</text>')
    return "\n".join([*lines, "</svg>", ""])


def _tree(stacks: Stacks) -> _Frame:
    root = _Frame("all")
    for frames, value in sorted(stacks.items()):
        if value <= 0:
            continue
        root.value += value
        at = root
        for name in frames[:_MAX_DEPTH]:
            at = at.inner.setdefault(name, _Frame(name))
            at.value += value
    return root


def _drawn(frame: _Frame, x: float, y: int, scale: float, total: int) -> Iterator[str]:
    width = frame.value * scale
    if width < _LEAST_WIDTH:
        return
    told = _text(f"{frame.name}: {100 * frame.value / total:.2f} %")
    yield f"<g><title>{told}</title>"
    yield (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_ROW - 1}" '
        f'fill="{_color(frame.name)}" rx="1"/>'
    )
    room = int((width - 6) / _LETTER)
    if room >= 3:
        name = frame.name if len(frame.name) <= room else f"{frame.name[: room - 2]}.."
        yield f'<text x="{x + 3:.2f}" y="{y + 12}">{_text(name)}</text>'
    yield "</g>"
    for each in frame.inner.values():
        yield from _drawn(each, x, y - _ROW, scale, total)
        x += each.value * scale


def _color(name: str) -> str:
    """Return a warm colour, the same for a name in each graph."""
    number = zlib.crc32(name.encode(errors="replace"))
    return f"#{205 + number % 50:02x}{90 + (number >> 8) % 130:02x}{(number >> 16) % 60:02x}"


def _text(text: str) -> str:
    return escape(_NO_XML.sub("?", text))
