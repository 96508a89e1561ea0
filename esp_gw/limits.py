"""The limits of this process (getrlimit(2)), and the errors that small limits cause."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator

from esp_gw.errors import ConfigError, EspGwError

FILES_FOR_OTHERS = 128
"""Open files that an optional socket has to leave to the rest of the process."""
_SPARE = 64 << 20
"""Bytes: a process that can map no more of them lacks memory for a thread with its stack."""
_MIB = 1 << 20
_TOO_FEW_THREADS = ("can't start new thread", "a worker thread can't be started")
"""Messages of a refused thread: of Python (threading.Thread.start) and of the native engine."""


def raise_open_files() -> None:
    """Use all of the open files that the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def require_open_files(needed: int) -> None:
    """Raise EspGwError if this process may not have `needed` open files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise EspGwError(f"too few open files: it needs {needed}", hint=_more_files())


def has_files_left(newest: int) -> bool:
    """Return True if FILES_FOR_OTHERS more can be opened after the descriptor `newest`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The kernel gives the lowest free number: those below it are open.
    return soft == resource.RLIM_INFINITY or soft - newest > FILES_FOR_OTHERS


def require_address_space(needed: int) -> None:
    """Raise EspGwError if this process may not map `needed` MiB."""
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY and soft < needed * _MIB:
        raise EspGwError(f"too little memory: it needs {needed} MiB", hint=_more_memory())


def named(error: BaseException) -> EspGwError | None:
    """Return the error that names the limit behind `error`, or None if no limit is behind it."""
    if isinstance(error, ConfigError):
        # Each of its problems has its own line.
        return None
    for each in _chain(error):
        found = _exhausted(each)
        if found is None:
            continue
        what, hint = found
        if not isinstance(error, EspGwError):
            return EspGwError(what, hint=hint)
        same = EspGwError(error.what, where=error.where, hint=hint)
        same.exit_status = error.exit_status
        return same
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # The context, too, where it isn't to be shown.
        error = error.__cause__ or error.__context__


def _exhausted(error: BaseException) -> tuple[str, str] | None:
    """Return what ran out and what to do, or None."""
    match error:
        case OSError(errno=errno.EMFILE):
            return "too many open files", _more_files()
        case OSError(errno=errno.ENFILE):
            return "too many open files in the machine", "raise the sysctl fs.file-max"
        case MemoryError() | OSError(errno=errno.ENOMEM):
            return "out of memory", _more_memory()
        case RuntimeError() | ValueError() if str(error) in _TOO_FEW_THREADS:
            return "no thread can be started", _more_threads()
        # Libraries that can't be loaded, or fail while they are, don't say why.
        case ImportError() | SystemError() if _is_short():
            return "out of memory", _more_memory()
    return None


def _more_files() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"raise the limit of {soft}: LimitNOFILE= of the unit, or 'ulimit -n'"


def _more_memory() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY:
        return "free some, or raise MemoryMax= of the unit"
    limit = f"{soft // _MIB} MiB of address space"
    return f"raise the limit of {limit}: LimitAS= of the unit, or 'ulimit -v'"


def _more_threads() -> str:
    if _is_short():
        return _more_memory()
    threads = "raise TasksMax= and LimitNPROC= of the unit, or 'ulimit -u'"
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    # The threads that did start may have given their memory back by now.
    return threads if soft == resource.RLIM_INFINITY else f"{_more_memory()}; or {threads}"


def _is_short() -> bool:
    try:
        # Mapped, but never touched.
        bytearray(_SPARE)
    except MemoryError:
        return True
    return False
