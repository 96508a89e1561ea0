"""Folders that are made once, from packages, and checked at each use."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from esp_gw.errors import LabError

_MANIFEST = "manifest.json"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a folder of the cache is made.

    `make` fills the folder it gets (a second one is for its work, and removed) and returns what is
    to be kept to know about it, at least `facts`. Where something of `wanted` is otherwise in a
    cached folder, that is made anew. `what` is what messages call it.
    """

    name: str
    what: str
    make: Callable[[Path, Path], Mapping[str, str]]
    facts: tuple[str, ...] = ()
    wanted: Mapping[str, str] = field(default_factory=dict)


def cached(cache: Path, recipe: Recipe, say: Callable[[str], None]) -> tuple[Path, dict[str, str]]:
    """Return a folder of `cache` and its facts; make it where it isn't there or isn't as it was.

    Raises LabError where it can't be made.
    """
    folder = cache / recipe.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                try:
                    return folder, _checked(folder, recipe)
                except LabError as error:
                    say(f"{error}; fetching it again")
            say(f"fetching {recipe.what} into {cache}")
            # Beside its place until it is whole: a killed run leaves nothing that looks done.
            work = folder.with_suffix(".new")
            shutil.rmtree(work, ignore_errors=True)
            made = work / "made"
            made.mkdir(parents=True)
            facts = recipe.make(made, work)
            (made / _MANIFEST).write_text(json.dumps({**facts, "files": _digests(made)}))
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
            shutil.rmtree(work)
            return folder, _checked(folder, recipe)
    except OSError as error:
        raise LabError(error.strerror or "failed", where=error.filename or str(cache)) from None


def _checked(folder: Path, recipe: Recipe) -> dict[str, str]:
    """Return a folder's facts. Raises LabError where it isn't as it was made, or is wanted."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        facts = {name: str(manifest[name]) for name in (*recipe.facts, *recipe.wanted)}
        damaged = [
            path for path, digest in manifest["files"].items() if _digest(folder / path) != digest
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        damaged = [_MANIFEST]
    if damaged:
        raise LabError(f"{recipe.what}: the cached copy is damaged ({damaged[0]})")
    if not recipe.wanted.items() <= facts.items():
        raise LabError(f"{recipe.what}: the cached copy is not the wanted one")
    return facts


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    """Return what tells that a file is as it was; "" where it isn't there any more."""
    if path.is_symlink():
        # Its target is a path of another root than this one.
        return f"link to {path.readlink()}"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
