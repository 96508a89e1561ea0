"""The exception tree: every error that a user may see is an EspGwError.

An error is one line: where it happened, what happened, what to do.
"""

from __future__ import annotations

from dataclasses import dataclass

FAILED = 1
"""Exit status of an error that may pass by itself, or that is none of the following kinds."""
NOT_RUNNING = 3
"""Exit status of a command that finds no gateway running (LSB, init script actions)."""
NO_PERMISSION = 4
"""Exit status of a command whose caller may not ask the gateway (LSB)."""
WRONG_STATE = 65
"""Exit status of a ledger, or of other state, that is refused (sysexits.h, EX_DATAERR)."""
WRONG_CONFIG = 78
"""Exit status of a configuration that is there and wrong (sysexits.h, EX_CONFIG)."""
INTERRUPTED = 130
"""Exit status of a command that SIGINT ended, as a shell reports it: 128 + 2."""


def printable(text: object) -> str:
    """Return `str(text)` on one line, with non-printable characters escaped."""
    line = str(text)
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


class EspGwError(Exception):
    """An error for the operator of the gateway; `exit_status` is that of a command it ends."""

    exit_status = FAILED

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.hint}" if self.hint else text

    @property
    def summary(self) -> str:
        """The error on one line."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault in a configuration file: `line` counts from 1, and is 0 if there is none.

    An `absent` file, key file or credential isn't there, or can't be read now: a late mount, say.
    A `denied` one may not be read by this user.
    """

    file: str
    line: int
    field: str
    message: str
    absent: bool = False
    denied: bool = False

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return (
            f"{place}: {self.field}: {self.message}" if self.field else f"{place}: {self.message}"
        )


class ConfigError(EspGwError):
    """The configuration is not usable; `problems` holds every fault found, in order."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
        if not self.may_pass:
            self.exit_status = WRONG_CONFIG

    @property
    def summary(self) -> str:
        """The first problem, and how many more there are."""
        first, *others = self.problems
        return f"{first} (and {len(others)} more)" if others else str(first)

    @property
    def may_pass(self) -> bool:
        """True if nothing is wrong but what isn't there yet.

        The faults beside an absent file of the configuration may all follow from its absence.
        """
        return all(problem.absent for problem in self.problems) or any(
            problem.absent and not problem.field for problem in self.problems
        )

    @property
    def is_denied(self) -> bool:
        """True if this user may not read something of it."""
        return any(problem.denied for problem in self.problems)


class KeyFileError(EspGwError):
    """A key could not be read, has the wrong size, or is not kept secret."""


class KeyAbsentError(KeyFileError):
    """A key file or credential isn't there, or can't be read now."""


class KeyDeniedError(KeyFileError):
    """A key file or credential may not be read by this user."""


class StoreDamagedError(EspGwError):
    """The file of the CLI's SAs and policies exists but can't be trusted."""

    exit_status = WRONG_STATE


class LedgerError(EspGwError):
    """The ledger can't guarantee fresh sequence numbers for a key, so nothing is sent with it."""


class LedgerBusyError(LedgerError):
    """Another process uses the ledger."""


class LedgerMissingError(LedgerError):
    """There is no ledger, so no key is known to be fresh."""


class LedgerDamagedError(LedgerError):
    """The ledger exists but can't be trusted."""

    exit_status = WRONG_STATE


class LedgerForeignError(LedgerError):
    """The ledger was made on another machine."""

    exit_status = WRONG_STATE


class KeyReuseError(LedgerError):
    """A use of a key and salt was refused because it would repeat an IV."""

    exit_status = WRONG_STATE


class EngineError(EspGwError):
    """The data plane could not execute a request."""


class NetworkError(EspGwError):
    """An address, route, rule or link could not be set."""


class NotRunningError(EspGwError):
    """Nothing answers at the control socket."""

    exit_status = NOT_RUNNING


class ControlError(EspGwError):
    """A request on the control socket failed.

    `code` is the name on the wire without the interface prefix: NotFound, AlreadyExists,
    InvalidParameter, MethodNotFound, PermissionDenied, Refused, Internal.
    """

    def __init__(self, code: str, what: str, *, hint: str | None = None) -> None:
        super().__init__(what, hint=hint)
        self.code = code
        if code == "PermissionDenied":
            self.exit_status = NO_PERMISSION


class LabError(EspGwError):
    """A laboratory of network namespaces could not be built, or its traffic did not pass."""
