"""Folders made once, from packages, and verified at each use."""

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


@dataclass(frozen=True, slots=True)
class Recipe:
    """Recipe for a folder of the cache.

    `make` fills its first argument, may use the second one as scratch space (removed afterwards),
    and returns the facts to store in the manifest, at least those named in `facts`. A cached folder
    whose facts differ from `wanted` is made again. `what` is its name in messages.
    """

    name: str
    what: str
    make: Callable[[Path, Path], Mapping[str, str]]
    facts: tuple[str, ...] = ()
    wanted: Mapping[str, str] = field(default_factory=dict)


def cached(cache: Path, recipe: Recipe, say: Callable[[str], None]) -> tuple[Path, dict[str, str]]:
    """Return a folder of `cache` and its facts; make it if it is missing, damaged or outdated.

    Raises LabError if it can't be made.
    """
    folder = cache / recipe.name
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{recipe.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                try:
                    return folder, _checked(folder, recipe)
                except LabError as error:
                    say(f"{error}; fetching it again")
            say(f"fetching {recipe.what} into {cache}")
            # Built beside its place, then renamed: a killed run leaves nothing that looks complete.
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
    """Return a folder's facts. Raises LabError if it is damaged or does not match `wanted`."""
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
        raise LabError(f"{recipe.what}: the cached copy is outdated")
    return facts


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    """Return a fingerprint of a file or link; "" if it no longer exists."""
    if path.is_symlink():
        # The target is a path in another root: never follow it here.
        return f"link to {path.readlink()}"
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
