"""The credentials that systemd gives to the service, read as it does (systemd.exec(5))."""

from __future__ import annotations

import contextlib
import stat
import subprocess
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from esp_gw.cli.unit import ANSWER_TIMEOUT, UNIT, Source, Unit
from esp_gw.errors import EspGwError, Problem

OF_THE_SYSTEM = Path("/run/credentials/@system")
STORES = tuple(map(Path, ("/etc/credstore", "/run/credstore", "/usr/lib/credstore")))
_MAX_LEN = 1 << 20
"""Largest credential in bytes."""


def credentials_of(unit: Unit) -> tuple[dict[str, bytes], list[Problem]]:
    """Return the contents of a unit's credentials by name, and those that keep it from starting."""
    found: dict[str, bytes] = {}
    faults: list[Problem] = []
    for name, source in unit.loaded.items():
        try:
            found |= dict(_load(name, source))
        except EspGwError as error:
            # A literal one is the default of one that can't be loaded.
            if name not in unit.literal:
                faults.append(_problem(name, error))
    for name, source in chain.from_iterable(map(_import, unit.imported)):
        with contextlib.suppress(EspGwError):
            found = {**dict(_load(name, source)), **found}
    for name, source in unit.literal.items():
        try:
            found.setdefault(name, _literal(name, source))
        except EspGwError as error:
            faults.append(_problem(name, error))
    return found, faults


def _problem(name: str, error: EspGwError) -> Problem:
    return Problem(UNIT, 0, f"credential {name}", str(error))


def _load(name: str, source: Source) -> Iterator[tuple[str, bytes]]:
    """Yield the contents by name, several for a folder. Raises EspGwError."""
    path = Path(source.text)
    if not path.is_absolute():
        places = (OF_THE_SYSTEM, *STORES, *(_encrypted(STORES) if source.is_encrypted else ()))
        # Systemd takes what it doesn't find by its name for optional.
        path = next((place / path for place in places if (place / path).is_file()), path)
        if not path.is_absolute():
            return
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            for each in sorted(path.rglob("*")):
                if each.is_file() and not each.is_symlink():
                    inner = "_".join((name, *each.relative_to(path).parts))
                    yield inner, _content(inner, each, source)
        elif stat.S_ISREG(mode):
            yield name, _content(name, path, source)
        else:
            raise _unusable(path, "is no file: only the service itself can look at it")
    except OSError as error:
        raise _unusable(path, error.strerror or "can't be read") from None


def _import(pattern: str) -> Iterator[tuple[str, Source]]:
    for place in (OF_THE_SYSTEM, *STORES):
        for path in sorted(place.glob(pattern)):
            yield path.name, Source(str(path), is_encrypted=False)
    for place in _encrypted(STORES):
        for path in sorted(place.glob(pattern)):
            yield path.name, Source(str(path), is_encrypted=True)


def _encrypted(stores: Iterable[Path]) -> Iterator[Path]:
    for store in stores:
        yield store.with_name(f"{store.name}.encrypted")


def _content(name: str, path: Path, source: Source) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(_MAX_LEN)
    return _decrypted(name, path, content) if source.is_encrypted else content


def _literal(name: str, source: Source) -> bytes:
    if source.is_encrypted:
        return _decrypted(name, None, source.text.encode())
    # C-style escapes, as in b"\x00".
    return source.text.encode("latin-1", "replace").decode("unicode_escape").encode()


def _decrypted(name: str, path: Path | None, content: bytes) -> bytes:
    command = ("systemd-creds", "decrypt", f"--name={name}", "-", "-")
    try:
        done = subprocess.run(
            command, input=content, capture_output=True, check=False, timeout=ANSWER_TIMEOUT
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise _unusable(path, f"systemd-creds can't be asked: {error}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines()
        raise _unusable(path, lines[-1] if lines else "can't be decrypted")
    return done.stdout


def _unusable(path: Path | None, what: str) -> EspGwError:
    return EspGwError(what, where=None if path is None else str(path))
