"""The record of what `esp-gw tune` has changed, on disk before it changes anything.

It is read by root, who then writes to the kernel what it says. So its folder is root's own, not the
service's, and a record that names anything but a place of `knobs`, or that others may write, is
refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from esp_gw.errors import WRONG_STATE, EspGwError
from esp_gw.files import open_regular, read_bounded, replace, sync_folder
from esp_gw.tune.knobs import Place, fault_of
from esp_gw.tune.making import Entry, Record

FOLDER = Path("var/lib/esp-gw-tune")
"""Below the root."""
MADE = "made.json"
TRIED = "measured.json"
"""The changes of a measurement, for its time only: nothing makes them at a boot."""
_VERSION = 1
_LARGEST = 1 << 20
"""Bytes."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RecordDamagedError(EspGwError):
    """The record exists but can't be trusted."""

    exit_status = WRONG_STATE


class RecordFile:
    """A record in a folder."""

    def __init__(self, folder: Path, name: str = MADE) -> None:
        self._folder = folder
        self.path = folder / name

    def create(self) -> None:
        """Make the folder, if it isn't there. Raises EspGwError."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise self._failed(error, "nothing was changed") from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from the record; without a folder there is none. Raises EspGwError."""
        try:
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield
            return
        except OSError as error:
            raise self._failed(error, "nothing was changed") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            hint = "wait until it has ended"
            what = "another 'esp-gw tune' is changing settings"
            raise EspGwError(what, where=str(self._folder), hint=hint) from None
        try:
            yield
        finally:
            os.close(descriptor)

    def load(self) -> Record:
        """Return the record, an empty one if there is none. Raises EspGwError."""
        try:
            with open_regular(self.path) as (descriptor, status):
                if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                    raise self._damaged("others may write it")
                content = read_bounded(descriptor, _LARGEST)
        except FileNotFoundError:
            return Record()
        except OSError as error:
            raise self._failed(error, "nothing was changed") from error
        try:
            return _parsed(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._damaged(f"it is damaged: {error}") from None

    def save(self, record: Record) -> None:
        """Replace the record on disk; an empty one is removed. Raises EspGwError."""
        try:
            if not record.entries:
                self.path.unlink(missing_ok=True)
                if self._folder.exists():
                    sync_folder(self._folder)
                return
            replace(self.path, json.dumps(_document(record), indent=1).encode())
        except OSError as error:
            hint = "make room or make it writable, and try again"
            raise self._failed(error, hint) from error

    def _failed(self, error: OSError, hint: str) -> EspGwError:
        return EspGwError(error.strerror or str(error), where=str(self.path), hint=hint)

    def _damaged(self, why: str) -> EspGwError:
        hint = "move it away: what it made is left at the next boot"
        return RecordDamagedError(why, where=str(self.path), hint=hint)


def boot_id() -> str:
    """Return the id of this boot; empty where the kernel has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _document(record: Record) -> dict[str, object]:
    entries = [
        {
            "knob": place.knob,
            "card": place.card,
            "part": place.part,
            "former": entry.former,
            "ours": list(entry.ours),
        }
        for place, entry in record.entries.items()
    ]
    return {"version": _VERSION, "boot": record.boot, "entries": entries}


def _parsed(document: dict[str, object]) -> Record:
    """Return the record in a document. Raises ValueError and its like."""
    if document["version"] != _VERSION:
        raise ValueError(f"version {document['version']!r}")
    listed = document["entries"]
    if not isinstance(listed, list):
        raise ValueError("no list of entries")
    entries: dict[Place, Entry] = {}
    for each in listed:
        place = Place(str(each["knob"]), str(each["card"]), str(each["part"]))
        entry = Entry(str(each["former"]), tuple(str(value) for value in each["ours"]))
        fault = fault_of(place, entry.former, *entry.ours)
        if fault is not None or not entry.ours:
            raise ValueError(fault or f"no value of {place}")
        entries[place] = entry
    return Record(str(document["boot"]), entries)
