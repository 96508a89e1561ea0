"""The eyes of the service: configuration and state are looked at as its user, with its credentials.

Root reads what the service may not, and lacks the credentials that systemd gives to the service.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from esp_gw.cli.credentials import credentials_of
from esp_gw.cli.unit import SYSTEMD_RUNS, UNIT, Unit, installed_unit
from esp_gw.errors import EspGwError, Problem
from esp_gw.files import write_new

RUN = Path("/run")
"""Folder of the credentials for as long as a look takes: in memory, not on a disk."""
_VARIABLE = "CREDENTIALS_DIRECTORY"


@dataclass(frozen=True, slots=True)
class Identity:
    """User and groups of a process."""

    uid: int
    gid: int
    groups: tuple[int, ...]

    def take(self) -> None:
        """Become this user for good; capabilities are lost with it (capabilities(7))."""
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """Perspective of a look: `who` looks, in words, the identity to take, faults of the unit."""

    who: str
    identity: Identity | None = None
    faults: tuple[Problem, ...] = ()

    def look(self, work: Callable[[], Any]) -> Any:
        """Return what `work` returns, a JSON value, in a process of its own if that needs another
        user.

        Raises EspGwError if the process fails.
        """
        if self.identity is None:
            return work()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            _answer(self.identity, work, writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as stream:
            answer = stream.read()
        os.waitpid(child, 0)
        try:
            return json.loads(answer)["found"]
        except (ValueError, KeyError):
            reason = answer.decode(errors="replace") or "its process ended"
            raise EspGwError(f"can't look {self.who}: {reason}") from None


def _answer(identity: Identity, work: Callable[[], Any], writer: int) -> None:
    """Write the result, or the reason that there is none, and end this process."""
    status = 1
    try:
        identity.take()
        text = json.dumps({"found": work()})
        status = 0
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
    try:
        with os.fdopen(writer, "wb") as stream:
            stream.write(text.encode(errors="replace"))
    finally:
        os._exit(status)


@contextlib.contextmanager
def viewpoint(config: Path) -> Iterator[Viewpoint]:
    """Yield the viewpoint of the service if root looks at what the service reads, else the own one.

    The credentials of the service are there meanwhile.
    """
    if os.geteuid() != 0:
        yield Viewpoint(f"as the user {_user_name(os.geteuid())}")
    elif not SYSTEMD_RUNS.is_dir():
        yield Viewpoint("as root: systemd does not run here")
    else:
        with contextlib.ExitStack() as stack:
            try:
                unit = installed_unit()
            except EspGwError as error:
                view = Viewpoint("as root", faults=(Problem(UNIT, 0, "", str(error)),))
            else:
                view = stack.enter_context(_of(unit, config))
            yield view


@contextlib.contextmanager
def _of(unit: Unit | None, config: Path) -> Iterator[Viewpoint]:
    """Yield the viewpoint of a unit, if `config` is what it reads."""
    if unit is None:
        yield Viewpoint(f"as root: {UNIT} is not installed")
        return
    if not unit.reads(config):
        yield Viewpoint(f"as root: {UNIT} reads {unit.config}")
        return
    try:
        identity = _identity(unit)
    except EspGwError as error:
        yield Viewpoint("as root", faults=(Problem(UNIT, 0, "", str(error)),))
        return
    found, faults = credentials_of(unit)
    with _present(found, identity):
        # Root stays root: no other process is needed.
        taken = identity if identity.uid else None
        yield Viewpoint(_in_words(unit, sorted(found)), taken, tuple(faults))


def _in_words(unit: Unit, credentials: list[str]) -> str:
    with_them = f", with the credentials {', '.join(credentials)}" if credentials else ""
    return f"as the user {unit.user}, as {UNIT} does{with_them}"


def _identity(unit: Unit) -> Identity:
    """Return the identity of the service. Raises EspGwError if there is no such user or group."""
    try:
        user = pwd.getpwuid(int(unit.user)) if unit.user.isdigit() else pwd.getpwnam(unit.user)
        gid = _gid(unit.group) if unit.group else user.pw_gid
        groups = {*os.getgrouplist(user.pw_name, gid), *map(_gid, unit.supplementary_groups)}
    except KeyError as error:
        raise EspGwError(
            f"its user or group is missing: {error.args[0]}",
            where=UNIT,
            hint="run systemd-sysusers",
        ) from None
    return Identity(user.pw_uid, gid, tuple(sorted(groups)))


def _gid(name: str) -> int:
    return int(name) if name.isdigit() else grp.getgrnam(name).gr_gid


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@contextlib.contextmanager
def _present(credentials: Mapping[str, bytes], identity: Identity) -> Iterator[None]:
    """Have credentials in a folder that only the service's user can read, as systemd does."""
    if not credentials:
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="esp-gw-credentials-", dir=RUN))
    before = os.environ.get(_VARIABLE)
    try:
        for name, content in credentials.items():
            write_new(folder / name, content)
            os.chown(folder / name, identity.uid, identity.gid)
        os.chown(folder, identity.uid, identity.gid)
        os.environ[_VARIABLE] = str(folder)
        yield
    finally:
        os.environ.pop(_VARIABLE, None)
        if before is not None:
            os.environ[_VARIABLE] = before
        shutil.rmtree(folder)
