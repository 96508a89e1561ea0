"""The steps of `esp-gw tune`: look, show, make, take back and compare."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Protocol

import click

from esp_gw.cli import output
from esp_gw.cli.options import Daemon
from esp_gw.cli.outgoing import Surroundings, surroundings
from esp_gw.cli.unit import ANSWER_TIMEOUT, SYSTEMD_RUNS
from esp_gw.tune.advice import Setting, advise
from esp_gw.tune.hints import Hint, hints
from esp_gw.tune.knobs import Place
from esp_gw.tune.look import look
from esp_gw.tune.machine import Machine
from esp_gw.tune.making import Record, Step, make, make_again, take_back
from esp_gw.tune.places import ROOT, Places
from esp_gw.tune.record import FOLDER, TRIED, RecordFile, boot_id

UNIT = "esp-gw-tune.service"
_INDENT = " " * 6


class Figures(Protocol):
    """Throughput of two gateways in Gbit/s, and their round trip in microseconds."""

    @property
    def gbit_s(self) -> float:
        """Gbit/s of TCP."""

    @property
    def rtt_us(self) -> float:
        """Microseconds of a round trip."""


Rounds = Sequence[tuple[Figures, Figures]]
Compare = Callable[[Callable[[], object], Callable[[], object]], Rounds]
"""Runs traffic after each of two actions in turn; returns the figures of each round."""


@dataclass(frozen=True, slots=True)
class _View:
    """This machine, the settings that matter and the advice on it, and what was made before."""

    machine: Machine
    settings: list[Setting]
    advice: list[Hint]
    record: Record

    @property
    def wanted(self) -> list[Setting]:
        """The settings to make."""
        return [each for each in self.settings if not each.is_right]

    def is_made(self, setting: Setting) -> bool:
        """Return True if the value of a setting is one that was made here."""
        entry = self.record.entries.get(setting.place)
        return entry is not None and setting.now in entry.ours


def show(config: Path, daemon: Daemon, as_json: bool) -> int:
    """Show the settings and the advice."""
    with _places() as places:
        if _trial().path.exists():
            with _book().locked():
                _end_trial(_trial(), places)
        view = _view(surroundings(config, daemon, ROOT), places, _book())
    if as_json:
        output.print_json(_document(view))
        return 0
    for card in view.machine.cards:
        queues = output.counted(len(card.receive), "receive queue")
        driver = f"driver {card.driver}" if card.driver else "no card of its own"
        output.print_text(f"{card.name}: {driver}, {queues}")
    made = [each for each in view.settings if view.is_made(each)]
    _print_changes("better", [(each, each.now, each.better) for each in view.wanted])
    _print_changes("made", [(each, _former(view, each), each.now) for each in made])
    for hint in view.advice:
        output.print_text(f"{hint.found}; {hint.todo}", "advice: ", hanging=_INDENT)
    right = len(view.settings) - len(view.wanted)
    output.print_text(f"{output.counted(right, 'setting')} right, {len(view.wanted)} to change")
    if view.wanted:
        output.print_text("'sudo esp-gw tune --apply' makes them, also at each boot")
    if made:
        output.print_text("'sudo esp-gw tune --undo' takes back what was made")
    return 0


def apply(config: Path, daemon: Daemon, as_json: bool) -> int:
    """Make the settings, and have them made again at each boot."""
    book = _book()
    book.create()
    with book.locked(), _places() as places:
        _end_trial(_trial(), places)
        view = _view(surroundings(config, daemon, ROOT), places, book)
        steps = make(view.wanted, places, book, boot_id())
    return _tell(steps, "made", _enabled() if book.load().entries else "", as_json)


def undo(as_json: bool) -> int:
    """Take back what was made."""
    book = _book()
    with book.locked(), _places() as places:
        _end_trial(_trial(), places)
        steps = take_back(places, book)
    return _tell(steps, "taken back", "" if book.load().entries else _disabled(), as_json)


def reapply(as_json: bool) -> int:
    """Make what is on record, after a boot."""
    book = _book()
    with book.locked(), _places() as places:
        _end_trial(_trial(), places)
        steps = make_again(places, book, boot_id())
    return _tell(steps, "made again", "", as_json)


def measure(config: Path, daemon: Daemon, compare: Compare, *, keep: bool, as_json: bool) -> int:
    """Compare traffic without and with the settings; leave them as they were, or made to keep."""
    book, trial = _book(), _trial()
    book.create()
    with book.locked(), _places() as places:
        _end_trial(trial, places)
        before = _view(surroundings(config, daemon, ROOT), places, book)
        made = [each for each in before.settings if before.is_made(each)]
        wanted = [*(_again(before, each) for each in made), *before.wanted]
        if not wanted:
            return _tell_nothing(as_json)
        bare = [replace(each, now=each.better, better=each.now) for each in wanted]
        failed: list[Step] = []

        # The record of what was made stays as it is: whatever ends this, no more and no less is.
        def switch(settings: list[Setting]) -> None:
            steps = make(settings, places, trial, boot_id())
            failed.extend(step for step in steps if not step.done)

        try:
            rounds = compare(lambda: switch(bare), lambda: switch(wanted))
        finally:
            failed.extend(step for step in take_back(places, trial) if not step.done)
        steps = make(before.wanted, places, book, boot_id()) if keep else []
    kept = _enabled() if keep and book.load().entries else ""
    if as_json:
        output.print_json(_compared(rounds) | _steps(steps, kept))
        return int(bool(failed))
    _print_rounds(rounds)
    names = output.joined(card.name for card in before.machine.cards)
    output.print_text(
        f"the traffic was that of two gateways on this machine: settings of {names} had no part"
        if names
        else "the traffic was that of two gateways on this machine"
    )
    for step in dict.fromkeys(failed):
        output.print_text(f"{step.place}: {step.text}")
    if keep:
        _tell(steps, "made", kept, as_json=False)
    return int(bool(failed))


def _tell_nothing(as_json: bool) -> int:
    if as_json:
        output.print_json({"rounds": [], "medians": {}} | _steps([], ""))
    else:
        click.echo("there is nothing to change, and so nothing to compare")
    return 0


@contextlib.contextmanager
def _places() -> Iterator[Places]:
    places = Places(ROOT)
    try:
        yield places
    finally:
        places.close()


def _book() -> RecordFile:
    return RecordFile(ROOT / FOLDER)


def _trial() -> RecordFile:
    return RecordFile(ROOT / FOLDER, TRIED)


def _end_trial(trial: RecordFile, places: Places) -> None:
    """Take back what a measurement that was killed has left, and tell of it on stderr."""
    record = trial.load()
    if not record.entries:
        return
    if record.boot != boot_id():
        # The boot has set everything anew.
        trial.save(Record())
        return
    click.echo("a measurement was killed: what it changed is taken back", err=True)
    for step in take_back(places, trial):
        if not step.done:
            click.echo(f"{step.place}: {step.text}", err=True)


def _view(around: Surroundings, places: Places, book: RecordFile) -> _View:
    record = book.load()
    machine = look(around.cards, places, ROOT)
    settings = advise(machine, around.use)
    known = {each.place for each in settings}
    for place in record.entries:
        if place not in known:
            with contextlib.suppress(OSError):
                # Made for a reason that is no longer there, such as a fault since the last boot.
                now, why = places.read(place), "it was made before"
                settings.append(Setting("", place, now, now, why))
    return _View(machine, settings, hints(machine, around.use), record)


def _again(view: _View, setting: Setting) -> Setting:
    """Return a setting that was made as one to make."""
    former = _former(view, setting)
    return Setting(setting.topic, setting.place, former, setting.now, setting.why)


def _former(view: _View, setting: Setting) -> str:
    return view.record.entries[setting.place].former


def _document(view: _View) -> dict[str, object]:
    return {
        "cards": [{"name": card.name, "driver": card.driver} for card in view.machine.cards],
        "settings": [
            {
                "place": str(each.place),
                "topic": each.topic,
                "now": each.now,
                "better": each.better,
                "why": each.why,
                "former": _former(view, each) if view.is_made(each) else None,
            }
            for each in view.settings
        ],
        "advice": [
            {"topic": each.topic, "found": each.found, "todo": each.todo} for each in view.advice
        ],
    }


def _print_changes(head: str, changes: Sequence[tuple[Setting, str, str]]) -> None:
    """Print settings with two values of each, those of the parts of one thing on one line."""

    def alike(change: tuple[Setting, str, str]) -> tuple[str, str, str]:
        setting, *_ = change
        return setting.place.knob, setting.place.card, setting.why

    for (_, _, why), found in groupby(changes, alike):
        settings, before, after = zip(*found, strict=True)
        told = f"{_joined(before)} -> {_joined(after)}"
        named = _named([each.place for each in settings])
        output.print_text(f"{named}: {told}", f"{head}: ", hanging=_INDENT)
        output.print_text(why, _INDENT, hanging=_INDENT)


def _joined(values: Sequence[str]) -> str:
    """Return values in their order, or the one that all of them are."""
    return output.joined(values if len(set(values)) > 1 else values[:1])


def _named(places: Sequence[Place]) -> str:
    first, *others = places
    parts = f"{first.part} and {len(others)} more" if others else first.part
    return " ".join(word for word in (first.card, parts, first.knob) if word)


def _steps(steps: Sequence[Step], kept: str) -> dict[str, object]:
    return {
        "steps": [
            {"place": str(each.place), "done": each.done, "text": each.text} for each in steps
        ],
        "kept": kept,
    }


def _tell(steps: Sequence[Step], what: str, kept: str, as_json: bool) -> int:
    failed = [each for each in steps if not each.done]
    if as_json:
        output.print_json(_steps(steps, kept))
        return int(bool(failed))
    for step in steps:
        output.print_text(f"{step.place}: {step.text}")
    done = output.counted(sum(each.done and each.changed for each in steps), "setting")
    text = f"{done} {what}, {len(failed)} failed" if failed else f"{done} {what}"
    output.print_text(f"{text}; {kept}" if kept else text)
    return int(bool(failed))


def _enabled() -> str:
    """Have the unit make the settings at each boot; return in words what came of it."""
    fault = _systemctl("enable")
    return f"{UNIT} makes them at each boot" if not fault else f"until the next boot: {fault}"


def _disabled() -> str:
    fault = _systemctl("disable")
    return "" if fault else f"{UNIT} is disabled"


def _systemctl(verb: str) -> str:
    """Enable or disable the unit; return what went wrong, in words."""
    if not (_is_this_machine() and SYSTEMD_RUNS.exists()):
        return "systemd doesn't run here"
    try:
        done = subprocess.run(
            ["systemctl", "--quiet", verb, UNIT],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"systemctl {verb}: {error}"
    said = done.stderr.strip().splitlines()
    if not done.returncode:
        return ""
    return (
        f"{said[-1] if said else f'systemctl {verb} failed'} ('scripts/install' installs the unit)"
    )


def _is_this_machine() -> bool:
    return str(ROOT) == "/"


def _medians(rounds: Rounds) -> list[tuple[str, float, float]]:
    """Return name and medians of each figure, without and with the settings."""
    return [
        (name, *(median(read(each[side]) for each in rounds) for side in (0, 1)))  # type: ignore[misc]
        for name, read in _FIGURES.items()
    ]


_FIGURES: Mapping[str, Callable[[Figures], float]] = {
    "gbit_s": lambda figures: figures.gbit_s,
    "rtt_us": lambda figures: figures.rtt_us,
}


def _compared(rounds: Rounds) -> dict[str, object]:
    return {
        "rounds": [
            {
                side: {"gbit_s": figures.gbit_s, "rtt_us": figures.rtt_us}
                for side, figures in zip(("without", "with"), each, strict=True)
            }
            for each in rounds
        ],
        "medians": {
            name: {"without": without, "with": with_them, "ratio": _ratio(without, with_them)}
            for name, without, with_them in _medians(rounds)
        },
    }


def _ratio(without: float, with_them: float) -> float | None:
    return round(with_them / without, 3) if without else None


def _print_rounds(rounds: Rounds) -> None:
    names = {"gbit_s": "TCP, Gbit/s", "rtt_us": "round trip, us"}
    rows = []
    for name, without, with_them in _medians(rounds):
        ratio = _ratio(without, with_them)
        told = "" if ratio is None else f"{ratio:.2f}"
        rows.append((names[name], f"{without:.3g}", f"{with_them:.3g}", told))
    columns = (f"MEDIAN OF {len(rounds)}", "WITHOUT", "WITH", "RATIO")
    output.print_table(columns, rows, none="nothing was measured")
