"""Logging to stderr, one line per event, formatted for journald or a terminal; never a key."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

from esp_gw.errors import EspGwError, printable
from esp_gw.model import KeyMaterial

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
HIDDEN = "<hidden>"
_LOGGER = "esp_gw"

# sd-daemon(3): the number at the start of a line is the syslog level.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_RESET = "\x1b[0m"
_SECRET_FIELD = re.compile(r"(?:.*_)?(?:key|keymat|salt|psk)(?:_hex)?s?", re.IGNORECASE)
# Messages of other libraries may quote a key or a part of it: 16 hex digits are 8 bytes of one.
# Decimal numbers of the length of a 64-bit sequence number are not keys.
_SECRET_TEXT = re.compile(
    r"""(?:0x)?(?:(?=[0-9]*[a-fA-F])[0-9a-fA-F]{16,}|[0-9]{21,})"""
    r"""|\bb(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
)


def configure(level: str) -> None:
    """Send log lines of `level` (a name of LEVELS) and above to stderr.

    Other libraries are logged the same way, from warnings on. Raises EspGwError for an unknown
    level.
    """
    if level not in LEVELS:
        raise EspGwError(f"unknown log level {level!r}", hint=f"use one of {', '.join(LEVELS)}")
    stream = sys.stderr
    if isinstance(stream, _JournalStream):
        handler = _LineHandler(stream.journal, _journal_line)
    elif _is_journal(stream):
        handler = _LineHandler(stream, _journal_line)
    else:
        handler = _LineHandler(stream, _terminal_line)
    handler.setLevel(LEVELS[level])
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger(_LOGGER).setLevel(LEVELS[level])


class Log:
    """Writes events with fields, `log.info("ready", mtu=1438)`, through the standard logging.

    structlog would cost 5 MB of memory.
    """

    def __init__(self) -> None:
        self._logger = logging.getLogger(_LOGGER)

    def debug(self, event: str, /, **fields: object) -> None:
        """Log an event that only helps to find a fault."""
        self._logger.debug(event, extra={"fields": fields})

    def info(self, event: str, /, **fields: object) -> None:
        """Log an event of normal operation."""
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, /, **fields: object) -> None:
        """Log an event that the operator should check."""
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, /, **fields: object) -> None:
        """Log a failure."""
        self._logger.error(event, extra={"fields": fields})

    def exception(self, event: str, /, **fields: object) -> None:
        """Log an error with the traceback of the exception being handled."""
        self._logger.exception(event, extra={"fields": fields})


log = Log()


class _LineHandler(logging.Handler):
    def __init__(self, stream: TextIO, line: Callable[[logging.LogRecord], str]) -> None:
        super().__init__()
        self._stream = stream
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._stream.write(self._line(record) + "\n")
        self._stream.flush()


@contextlib.contextmanager
def journal_levels() -> Iterator[None]:
    """Give each line on stdout and stderr its level, where the journal reads it (sd-daemon(3)).

    Lines of stderr are errors: of a command, a traceback, a library's warning. The log, with a
    level in each of its lines, writes beside that. Elsewhere nothing changes.
    """
    with contextlib.ExitStack() as undo:
        if _is_journal(sys.stdout):
            out = _JournalStream(sys.stdout, "info")
            undo.callback(out.flush)
            undo.enter_context(contextlib.redirect_stdout(out))
        if _is_journal(sys.stderr):
            err = _JournalStream(sys.stderr, "error")
            undo.callback(err.flush)
            undo.enter_context(contextlib.redirect_stderr(err))
        yield


class _JournalStream(io.TextIOBase):
    """A text stream to `journal` that puts a level before each line, a last one without end too."""

    encoding = "utf-8"

    def __init__(self, journal: TextIO, level: str) -> None:
        super().__init__()
        self.journal = journal
        self._prefix = f"<{_PRIORITIES[level]}>"
        self._line = ""

    def write(self, text: str) -> int:
        *lines, self._line = (self._line + text).split("\n")
        self.journal.write("".join(f"{self._prefix}{line}\n" for line in lines))
        return len(text)

    def flush(self) -> None:
        if self._line:
            self.write("\n")
        self.journal.flush()

    def fileno(self) -> int:
        return self.journal.fileno()

    def writable(self) -> bool:
        return True


def _is_journal(stream: TextIO) -> bool:
    """True if $JOURNAL_STREAM names this stream; child processes inherit the variable."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _journal_line(record: logging.LogRecord) -> str:
    prefix = f"<{_PRIORITIES[_level(record)]}>"
    return "\n".join(prefix + line for line in _lines(record))


def _terminal_line(record: logging.LogRecord) -> str:
    first, *rest = _lines(record)
    level = _level(record)
    label = f"{level:<8}"
    if level in _COLOURS and sys.stderr.isatty():
        label = f"{_COLOURS[level]}{label}{_RESET}"
    now = time.strftime("%H:%M:%S")
    return "\n".join([f"{now} {label} {first}", *rest])


def _level(record: logging.LogRecord) -> str:
    """Name of the standard level at or below that of a record."""
    return logging.getLevelName(min(record.levelno // 10 * 10, logging.CRITICAL)).lower()


def _lines(record: logging.LogRecord) -> list[str]:
    """The line of the event, followed by the indented lines of a traceback if there is one."""
    fields = record.__dict__.get("fields", {"logger": record.name})
    words = [printable(scrub(record.getMessage()))]
    words += [f"{printable(name)}={_value(name, value)}" for name, value in fields.items()]
    lines = [" ".join(words)]
    exception = record.exc_info and record.exc_info[1]
    if exception:
        text = "".join(traceback.format_exception(exception)).rstrip("\n")
        lines += ["  | " + printable(scrub(line)) for line in text.split("\n")]
    return lines


def _value(name: str, value: object) -> str:
    text = printable(scrub(str(_without_secrets(name, value))))
    if text and not set(text) & {" ", '"', "="}:
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _without_secrets(name: str, value: object) -> object:
    """The value with everything hidden whose type or field name marks it as a key."""
    if isinstance(value, KeyMaterial | bytes | bytearray | memoryview):
        return HIDDEN
    if _SECRET_FIELD.fullmatch(name):
        return HIDDEN
    if isinstance(value, Mapping):
        return {key: _without_secrets(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_without_secrets("", item) for item in value]
    return value


def scrub(text: str) -> str:
    """Hide possible key material in a text: long hex strings, and Python bytes literals."""
    return _SECRET_TEXT.sub(HIDDEN, text)
