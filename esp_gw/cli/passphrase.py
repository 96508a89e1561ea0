"""Secrets that a person gives: typed unseen, from a pipe, or in a file."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

from esp_gw.errors import EspGwError, printable
from esp_gw.files import open_regular, read_bounded

_MAX_LINE = 16384


def typed(prompt: str) -> str:
    """Read a secret line from the terminal, unseen, or from a pipe."""
    if sys.stdin.isatty():
        return getpass.getpass(prompt)
    return sys.stdin.readline(_MAX_LINE)


def passphrase(file: Path | None) -> str | None:
    """Return the first line of a file, - being typed. Raises EspGwError: unreadable, empty."""
    if file is None:
        return None
    if str(file) == "-":
        line = typed("passphrase: ")
    else:
        try:
            with open_regular(file) as (fd, _):
                line = read_bounded(fd, _MAX_LINE).decode(errors="surrogateescape")
        except OSError as error:
            where = printable(file)
            raise EspGwError(error.strerror or str(error), where=where) from error
    found = line.split("\n", 1)[0].rstrip("\r")
    if not found:
        raise EspGwError("the passphrase is empty", where=printable(file))
    return found


def passphrase_of(invitation: str, file: Path | None) -> str | None:
    """Return the passphrase of an invitation, typed where it is sealed and no file has it."""
    from esp_gw.config.invitation import is_sealed  # noqa: PLC0415 - imports pydantic

    if file is None and is_sealed(invitation) and sys.stdin.isatty():
        return typed("passphrase: ")
    return passphrase(file)
