"""Changes of `esp-gw tune` to a machine: settings made, taken back, made again at a boot.

A former value is on disk before it is replaced. What is taken back is what was made and is still
there: a value that somebody else has set since is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from esp_gw.tune.advice import Setting
from esp_gw.tune.knobs import Place, is_away, is_gone


@dataclass(frozen=True, slots=True)
class Entry:
    """One changed place: its former value, and those that were set, of which the last counts."""

    former: str
    ours: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """The changed places in order, and the boot whose former values they have."""

    boot: str = ""
    entries: Mapping[Place, Entry] = field(default_factory=dict)


class Kernel(Protocol):
    """Where values are read and written."""

    def read(self, place: Place) -> str:
        """Return the value of a place. Raises OSError."""

    def write(self, place: Place, value: str) -> None:
        """Set a place. Raises OSError."""


class Book(Protocol):
    """Where the record is kept."""

    def load(self) -> Record:
        """Return the record. Raises EspGwError."""

    def save(self, record: Record) -> None:
        """Keep a record; it is on disk afterwards. Raises EspGwError."""


@dataclass(frozen=True, slots=True)
class Step:
    """One place that was changed, or wasn't, in words: `done` is False for what failed.

    `changed` is False where nothing had to be done, or could be.
    """

    place: Place
    done: bool
    text: str
    changed: bool = True


def make(settings: Iterable[Setting], kernel: Kernel, book: Book, boot: str) -> list[Step]:
    """Make settings what is better; those that are right stay out of it.

    What was made before keeps the value that it replaced. Raises EspGwError if the record can't be
    kept; nothing is changed then.
    """
    before = book.load()
    entries = dict(before.entries)
    steps: list[Step] = []
    planned: dict[Place, str] = {}
    for setting in settings:
        if setting.is_right:
            continue
        place, better = setting.place, setting.better
        try:
            now = kernel.read(place)
        except OSError as error:
            steps.append(Step(place, False, f"can't be read: {_words(error)}"))
            continue
        if now == better:
            continue
        known = entries.get(place)
        if known is None or now not in known.ours:
            known = Entry(now, ())
        entries[place] = replace(known, ours=(*known.ours, better))
        planned[place] = now
    if not planned:
        return steps
    record = Record(boot, entries)
    book.save(record)
    for place, now in planned.items():
        steps.append(_set(kernel, place, now, entries))
    book.save(replace(record, entries=entries))
    return steps


def take_back(kernel: Kernel, book: Book) -> list[Step]:
    """Give each place its former value back, the last first, if it has the one that was made.

    What fails stays on record; a place that is gone for good is forgotten. Raises EspGwError.
    """
    record = book.load()
    entries = dict(record.entries)
    steps: list[Step] = []
    for place, entry in reversed(list(record.entries.items())):
        try:
            now = kernel.read(place)
        except OSError as error:
            if is_gone(error):
                del entries[place]
                steps.append(Step(place, True, f"forgotten: {_words(error)}", changed=False))
            else:
                steps.append(Step(place, False, f"can't be read: {_words(error)}"))
            continue
        if now == entry.former:
            del entries[place]
        elif now not in entry.ours:
            del entries[place]
            text = f"left at {now}: somebody else has set it since it was made {entry.ours[-1]}"
            steps.append(Step(place, True, text, changed=False))
        else:
            fault, there = _written(kernel, place, now, entry.former)
            if there == entry.former:
                del entries[place]
                steps.append(Step(place, True, f"{now} -> {entry.former}"))
            else:
                # A value between is ours, too: the next time takes it back.
                entries[place] = replace(entry, ours=(there, *entry.ours))
                text = f"not taken back, stays {there}: {fault or 'the kernel kept it'}"
                steps.append(Step(place, False, text))
    if record.entries:
        book.save(replace(record, entries=entries))
    return steps


def make_again(kernel: Kernel, book: Book, boot: str) -> list[Step]:
    """Make what is on record, after a boot; what isn't there is left out.

    Then the value that the boot has set is the former one. What somebody else has set in this boot
    is left. Raises EspGwError.
    """
    record = book.load()
    is_new = record.boot != boot
    entries = dict(record.entries)
    steps: list[Step] = []
    planned: dict[Place, str] = {}
    for place, entry in record.entries.items():
        try:
            now = kernel.read(place)
        except OSError as error:
            text = f"left out, as it is not there: {_words(error)}"
            steps.append(Step(place, is_away(error), text, changed=False))
            continue
        if is_new and now != entry.former:
            entry = entries[place] = replace(entry, former=now)  # noqa: PLW2901
        if now == entry.ours[-1]:
            continue
        if now in (entry.former, *entry.ours):
            planned[place] = now
        else:
            text = f"left at {now}: somebody else has set it"
            steps.append(Step(place, True, text, changed=False))
    if not record.entries:
        return steps
    book.save(Record(boot, entries))
    for place, now in planned.items():
        ours = entries[place].ours[-1]
        fault, there = _written(kernel, place, now, ours)
        if there == ours:
            steps.append(Step(place, True, f"{now} -> {ours}"))
            continue
        entries[place] = replace(entries[place], ours=(there, *entries[place].ours))
        steps.append(Step(place, False, f"stays {there}: {fault or 'the kernel kept it'}"))
    if planned:
        book.save(Record(boot, entries))
    return steps


def _set(kernel: Kernel, place: Place, now: str, entries: dict[Place, Entry]) -> Step:
    """Set one place to the last value of its entry, and keep in the entry what came of it."""
    entry = entries[place]
    better = entry.ours[-1]
    fault, there = _written(kernel, place, now, better)
    if there == entry.former:
        del entries[place]
    elif there in entry.ours[:-1]:
        entries[place] = replace(entry, ours=entry.ours[:-1])
    else:
        entries[place] = replace(entry, ours=(*entry.ours[:-1], there))
    if there == better:
        return Step(place, True, f"{now} -> {better}")
    return Step(place, False, f"stays {there}, not {better}: {fault or 'the kernel kept it'}")


def _written(kernel: Kernel, place: Place, now: str, value: str) -> tuple[str, str]:
    """Set a value; return what went wrong in words, and the value that is there afterwards."""
    fault = ""
    try:
        kernel.write(place, value)
    except OSError as error:
        fault = _words(error)
    return fault, _there(lambda: kernel.read(place), value if not fault else now)


def _there(read: Callable[[], str], assumed: str) -> str:
    try:
        return read()
    except OSError:
        return assumed


def _words(error: OSError) -> str:
    return error.strerror or str(error)
