"""Permissions that an ordinary user lacks: the command says `use sudo`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from esp_gw.errors import ConfigError, EspGwError, printable

SUDO = "use sudo"
_DENIALS = (errno.EPERM, errno.EACCES)


def is_ordinary_user() -> bool:
    """Return True for a person without root's rights; sudo is no help to a service."""
    return os.geteuid() != 0 and "NOTIFY_SOCKET" not in os.environ


def is_denial(error: BaseException) -> bool:
    """Return True if a file, or the kernel's network, was closed to this user."""
    return any(
        each.is_denied
        if isinstance(each, ConfigError)
        # Errors of netlink have a number in `code`.
        else isinstance(each, PermissionError) or getattr(each, "code", None) in _DENIALS
        for each in _chain(error)
    )


def with_sudo(error: EspGwError) -> EspGwError:
    """Return the error as an ordinary user is told it, if he was denied something."""
    if not is_ordinary_user() or not is_denial(error) or "sudo" in (error.hint or ""):
        return error
    told = EspGwError(error.what, where=error.where, hint=SUDO)
    told.exit_status = error.exit_status
    return told


def refuse_unreadable(*paths: Path) -> None:
    """Raise EspGwError for the first of these files and folders that an ordinary user may not read.

    Root without its capabilities is no ordinary user.
    """
    for path in paths:
        if is_ordinary_user() and _is_closed(path):
            raise EspGwError(os.strerror(errno.EACCES), where=printable(path), hint=SUDO)


def _is_closed(path: Path) -> bool:
    try:
        needed = os.R_OK | os.X_OK if path.is_dir() else os.R_OK
        return path.exists() and not os.access(path, needed, effective_ids=True)
    except PermissionError:
        # The folder that it is in.
        return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those behind it, also where they aren't to be shown."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
