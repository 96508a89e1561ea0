"""A whole terminal for a display that is drawn again and again, with keys that need no Return.

It is as before when the display ends, whatever ends it.

Sources: termios(3), console_codes(4).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import NoReturn

from esp_gw.cli.folding import terminal_width

_ENTER = "\x1b[?1049h\x1b[?25l"
"""The alternate screen, without a cursor."""
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_KEY = re.compile(r"\x1b[\[O][A-Za-z]|.", re.DOTALL)
_NAMES = {"\x1b[A": "up", "\x1b[B": "down", "\x1bOA": "up", "\x1bOB": "down"}
_USUAL_WIDTH, _USUAL_HEIGHT = 80, 24
_TERMINATED = 128 + signal.SIGTERM
QUIT = "q"


class Canvas(io.StringIO):
    """Takes what a command prints as the terminal would get it."""

    def isatty(self) -> bool:
        """True: lines are as wide as the terminal."""
        return True

    def fileno(self) -> int:
        """Return the terminal's descriptor, which tells its width."""
        return sys.__stdout__.fileno() if sys.__stdout__ is not None else 1


def is_screen() -> bool:
    """Return True if stdout is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """The terminal that stdout is, in full."""

    def __init__(self) -> None:
        self._typed: list[str] = []

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines, as many and as much of each as there is room for."""
        width, height = self.size
        shown = [f"{line[:width]}{_REST_OF_LINE}" for line in lines[:height]]
        sys.stdout.write(_HOME + "\r\n".join(shown) + _REST_OF_SCREEN)
        sys.stdout.flush()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return terminal_width() or _USUAL_WIDTH, _height()

    def key(self, until: float) -> str:
        """Return the next key, empty if none comes until a time of the monotonic clock.

        Arrows are `up` and `down`. A terminal that is gone counts as `q`.
        """
        while not self._typed and (left := until - time.monotonic()) > 0:
            if not _has_keys():
                time.sleep(left)
                break
            if not select.select([sys.stdin], [], [], left)[0]:
                break
            try:
                typed = os.read(sys.stdin.fileno(), 256).decode(errors="replace")
            except OSError:
                return QUIT
            self._typed = _KEY.findall(typed) or [QUIT]
        key = self._typed.pop(0) if self._typed else ""
        return _NAMES.get(key, key)


@contextlib.contextmanager
def screen() -> Iterator[Screen]:
    """Take the terminal until the end of the context, which SIGTERM brings about, too."""
    before = termios.tcgetattr(sys.stdin) if _has_keys() else None
    former = signal.signal(signal.SIGTERM, _end)
    try:
        if before is not None:
            tty.setcbreak(sys.stdin)
            _without_suspension()
        sys.stdout.write(_ENTER)
        yield Screen()
    finally:
        signal.signal(signal.SIGTERM, former)
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
        with contextlib.suppress(OSError):
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()


def drawn(show: Callable[..., object], *arguments: object) -> list[str]:
    """Return the lines that a function prints."""
    canvas = Canvas()
    with contextlib.redirect_stdout(canvas):
        show(*arguments)
    return canvas.getvalue().splitlines()


def _without_suspension() -> None:
    """Let Ctrl-Z do nothing: a shell would get the terminal as it is now."""
    attributes = termios.tcgetattr(sys.stdin)
    attributes[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, attributes)


def _has_keys() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _height() -> int:
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stdout.fileno()).lines or _USUAL_HEIGHT
    return _USUAL_HEIGHT


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)
