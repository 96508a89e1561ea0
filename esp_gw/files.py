"""Files that hold secrets or state: bounded reads, and writes that succeed completely or fail."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PIECE = 1 << 20
_LASTING = frozenset(
    (
        *(errno.EACCES, errno.EPERM, errno.EINVAL, errno.EFBIG, errno.EISDIR),
        *(errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO),
    )
)


def is_absence(error: OSError) -> bool:
    """True for a file that isn't there, or can't be read now: a late mount, or a failing disk.

    False for one that a person has to correct: its name, its type, its size or its permissions.
    """
    return error.errno not in _LASTING


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, os.stat_result]]:
    """Open a regular file for reading; yields its descriptor and the fstat of that descriptor.

    Raises OSError, also for an impossible file name and for anything but a regular file.
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
    """Read all of `fd`. Raises OSError if there are more than `limit` bytes."""
    # In pieces: a read of the limit would take that much memory, whatever the file has.
    content = bytearray()
    while piece := os.read(fd, min(_PIECE, limit + 1 - len(content))):
        content += piece
        if len(content) > limit:
            raise OSError(errno.EFBIG, f"is larger than {limit} bytes")
    return bytes(content)


def privacy_fault(status: os.stat_result, forbidden: int = 0o077) -> str | None:
    """The reason that a file is not private, or None: permission bits in `forbidden`, or its owner.

    The owner must be root or the current user; root accepts any owner.
    """
    # Root may read the files of the service's user: 'sudo esp-gw config check' must work.
    if os.geteuid() != 0 and status.st_uid not in (0, os.geteuid()):
        return f"belongs to user {status.st_uid}, not to root or the current user"
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        return f"holds a secret and is open to other users (mode {mode:04o})"
    return None


def inode(path: Path) -> tuple[int, int] | None:
    """Device and inode number of the file at `path`, or None if there is none. Raises OSError."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def write_new(path: Path, content: bytes) -> None:
    """Create a file with mode 0600 and sync it to disk; an existing file is never touched.

    Raises OSError (FileExistsError if the name is taken); no new file is left behind in this case.
    """
    with _created(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    """Create a file for the block to fill, and sync it. Raises OSError, with no file left."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def give_to_owner_of_folder(descriptor: int, path: Path) -> None:
    """Give a file at `path` that root created to the owner of its folder, the daemon's user.

    Does nothing for other users. Raises OSError, also for a file with a second hard link, which may
    be another user's file.
    """
    if os.geteuid() != 0:
        return
    owner, mine = path.parent.stat(), os.fstat(descriptor)
    if (owner.st_uid, owner.st_gid) == (mine.st_uid, mine.st_gid):
        return
    if not stat.S_ISREG(mine.st_mode) or mine.st_nlink != 1:
        raise OSError(errno.EMLINK, "has a second hard link: remove this one")
    os.fchown(descriptor, owner.st_uid, owner.st_gid)


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically: after a crash it holds either the old or the new content.

    The file has mode 0600; one that root writes belongs to the owner of its folder, the daemon's
    user. Raises OSError; the old file is unchanged in this case.
    """
    temporary = path.with_name(f".{path.name}.new")
    # Left behind by a crash; the fixed name keeps such files from accumulating.
    temporary.unlink(missing_ok=True)
    with _created(temporary) as stream:
        stream.write(content)
        # By its descriptor: the folder's owner may put another file in its place at any time.
        give_to_owner_of_folder(stream.fileno(), temporary)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder to disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
