"""Logging to stderr, one line an event, in a form that journald or a person reads; never a key."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from esp_gw.errors import EspGwError
from esp_gw.files import printable
from esp_gw.model import KeyMaterial

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
HIDDEN = "<hidden>"

# sd-daemon(3): the number in front of a line is the syslog level.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_COLOURS = {"warning": "\x1b[33m", "error": "\x1b[31m", "critical": "\x1b[31m"}
_RESET = "\x1b[0m"
_SECRET_FIELD = re.compile(r"(?:.*_)?(?:key|keymat|salt|psk)(?:_hex)?s?", re.IGNORECASE)
# Another library's message may quote a key, or cut out a part of it: 16 digits are 8 bytes of one.
# Decimal numbers as long as a 64-bit sequence number are none.
_SECRET_TEXT = re.compile(
    r"""(?:0x)?(?:(?=[0-9]*[a-fA-F])[0-9a-fA-F]{16,}|[0-9]{21,})"""
    r"""|\bb(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
)


def configure(level: str) -> None:
    """Send every log line of `level` (a name of LEVELS) and above to stderr.

    Lines of other libraries, from warnings on, take the same way. Raises EspGwError for another
    name.
    """
    if level not in LEVELS:
        raise EspGwError(f"no log level {level!r}", hint=f"use one of {', '.join(LEVELS)}")
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _journal_line if _is_journal(sys.stderr) else _terminal_line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


class _Forward(logging.Handler):
    """Hands the records of the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL)
        structlog.get_logger().log(
            level, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )


def _is_journal(stream: TextIO) -> bool:
    """Whether the stream is the one that $JOURNAL_STREAM names: children inherit the variable."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _journal_line(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    level, lines = _lines(event)
    prefix = f"<{_PRIORITIES[level]}>"
    return "\n".join(prefix + line for line in lines)


def _terminal_line(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    level, (first, *rest) = _lines(event)
    label = f"{level:<8}"
    if level in _COLOURS and sys.stderr.isatty():
        label = f"{_COLOURS[level]}{label}{_RESET}"
    now = time.strftime("%H:%M:%S")
    return "\n".join([f"{now} {label} {first}", *rest])


def _lines(event: MutableMapping[str, Any]) -> tuple[str, list[str]]:
    """The level and the event's line, followed by indented ones where there is a traceback."""
    level = str(event.pop("level"))
    exception = _exception(event.pop("exc_info", None))
    words = [printable(scrub(str(event.pop("event", ""))))]
    words += [f"{printable(str(name))}={_value(str(name), event[name])}" for name in event]
    lines = [" ".join(words)]
    if exception is not None:
        text = "".join(traceback.format_exception(exception)).rstrip("\n")
        lines += ["  | " + printable(scrub(line)) for line in text.split("\n")]
    return level, lines


def _exception(exc_info: object) -> BaseException | None:
    if isinstance(exc_info, BaseException):
        return exc_info
    if isinstance(exc_info, tuple):
        found = exc_info[1]
        return found if isinstance(found, BaseException) else None
    return sys.exc_info()[1] if exc_info else None


def _value(name: str, value: object) -> str:
    text = printable(scrub(str(_without_secrets(name, value))))
    if text and not set(text) & {" ", '"', "="}:
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _without_secrets(name: str, value: object) -> object:
    """The value with everything hidden that is a key by its type or by the name it goes under."""
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
    """The text without what may be key material: long hex, and Python's literals of bytes."""
    return _SECRET_TEXT.sub(HIDDEN, text)
