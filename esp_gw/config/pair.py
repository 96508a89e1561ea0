"""The folders of both ends of a tunnel, written as a whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from esp_gw.config.offer import make_folder
from esp_gw.errors import ConfigError, EspGwError, printable
from esp_gw.files import sync_folder
from esp_gw.values import FieldError, parse_name


@dataclass(frozen=True, slots=True)
class Pair:
    """Paths of the gateway.yaml of both sides."""

    local: Path
    remote: Path


def check_names(*names: str) -> None:
    """Raise EspGwError for names that are no names, or are the same."""
    if len(set(names)) < len(names):
        raise EspGwError(f"both sides have the name {printable(names[0])}", hint="choose two names")
    for name in names:
        try:
            parse_name(name)
        except FieldError as error:
            raise EspGwError(str(error), where=f"name {printable(name)}") from None


@contextlib.contextmanager
def written_whole(output: Path) -> Iterator[contextlib.ExitStack]:
    """Create `output` for the block to fill, which adds to the stack how each part is removed.

    Raises EspGwError, also for what the block raises; everything created so far is then removed.
    """
    with contextlib.ExitStack() as undo:
        try:
            make_folder(output, undo)
            yield undo
            sync_folder(output)
        except ConfigError as error:
            problem = error.problems[0]
            raise EspGwError(f"{problem.field}: {problem.message}") from None
        except FileExistsError as error:
            raise EspGwError(
                "exists already and is not overwritten",
                where=printable(error.filename),
                hint="choose another folder or name, or move it away",
            ) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "is not a usable folder name"
            raise EspGwError(reason, where=printable(output)) from None
        undo.pop_all()
