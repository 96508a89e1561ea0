"""Files that hold secrets or state: read with bounds, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading: its descriptor and the fstat of that very descriptor.

    Raises OSError, also for a name that no file can have and for what is not a regular file.
    """
    try:
        # O_NONBLOCK: a FIFO without a writer must not hang the caller.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise OSError(errno.EINVAL, "is not a usable file name") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        yield fd, status
    finally:
        os.close(fd)


def read_bounded(fd: int, limit: int) -> bytes:
    """All that `fd` holds, at most `limit` bytes. Raises OSError where there is more."""
    with os.fdopen(fd, "rb", closefd=False) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit} bytes")
    return content


def privacy_fault(status: os.stat_result, forbidden: int = 0o077) -> str | None:
    """Why a file is not kept secret: `forbidden` permission bits are set, or a stranger owns it."""
    # Root looks after the files of the service's user, too: 'sudo esp-gw check' must work.
    if os.geteuid() != 0 and status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}, not to root or to the user that runs this"
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        return f"holds a secret and is open to other users (mode {mode:04o})"
    return None


def write_new(path: Path, content: bytes) -> None:
    """Create a file with mode 0600 and bring it to the disk; an existing one is never touched.

    Raises OSError (FileExistsError where there is something already); then no file is left behind.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Put `content` in place of a file in one step: after a crash there is the old or the new one.

    The file has mode 0600. Raises OSError; then the old file is as it was.
    """
    temporary = path.with_name(f".{path.name}.new")
    # What a crash left behind; a fixed name keeps such files from adding up.
    temporary.unlink(missing_ok=True)
    write_new(temporary, content)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
