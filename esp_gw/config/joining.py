"""One end of a tunnel, added to a configuration that may be in use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from esp_gw.config.load import load_config
from esp_gw.config.offer import Offer, config_text, key_paths, make_folder, tunnel_text, write_keys
from esp_gw.desired import Desired
from esp_gw.errors import ConfigError, EspGwError, printable
from esp_gw.files import write_new

FIRST = "gateway.yaml"


@dataclass(frozen=True, slots=True)
class Added:
    """The written configuration file and key files. `is_first` without a configuration before."""

    file: Path
    keys: tuple[Path, ...]
    is_first: bool


def add_end(
    folder: Path,
    offer: Offer,
    owner: tuple[int, int] | None,
    judge: Callable[[Desired], None],
) -> Added:
    """Write the tunnel of the end `here` into a configuration folder, with its keys.

    An empty folder gets a gateway.yaml with the inner addresses, one that is in use a file with the
    name of the tunnel. The files, and folders that were missing, belong to `owner`, a user and a
    group by number, or to the caller.
    Raises EspGwError, also if `judge` refuses the whole configuration; nothing is left then.
    """
    name = offer.there.name
    with contextlib.ExitStack() as undo:
        try:
            folders = make_folder(folder / "keys", undo)
            is_first = not any(folder.glob("*.yaml"))
            file = folder / (FIRST if is_first else f"{name}.yaml")
            if any(map(os.path.lexists, key_paths(folder / "keys", name))):
                raise _taken(folder, name)
            keys = write_keys(folder / "keys", offer, undo)
            text = config_text(offer) if is_first else tunnel_text(offer)
            write_new(file, text.encode())
            undo.callback(file.unlink, missing_ok=True)
            judge(load_config(folder))
            if owner is not None:
                for path in (file, *keys, *folders):
                    os.chown(path, *owner)
        except ConfigError as error:
            raise EspGwError(str(error.problems[0]), where="configuration") from None
        except FileExistsError:
            raise _taken(folder, name) from None
        except OSError as error:
            where = printable(error.filename or folder)
            raise EspGwError(error.strerror or str(error), where=where) from error
        undo.pop_all()
    return Added(file, tuple(keys), is_first)


def _taken(folder: Path, name: str) -> EspGwError:
    return EspGwError(
        f"has a tunnel {name} already",
        where=printable(folder),
        hint="delete that tunnel and its keys first, or choose another name for 'esp-gw invite'",
    )
