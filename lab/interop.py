"""Generator of docs/interop.md from the results of tests with other implementations."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from esp_gw import __version__
from esp_gw.errors import LabError

_HEAD = """\
# Interoperability

Results of tests with other implementations of ESP and of IKE: for each configuration, the number of
tests passed. `./scripts/interop` runs the tests and generates this page from their results; do not
edit it.
"""
_HEADING = "## "


@dataclass(frozen=True, slots=True)
class Trial:
    """One test with one peer.

    `peer` includes the peer's version. `configuration` is the configuration of both ends, `tried`
    the traffic or operation tested, `engine` the part of esp_gw that took part.
    """

    file: str
    test: str
    passed: bool
    peer: str
    configuration: str
    tried: str
    engine: str


def read(path: Path) -> list[Trial]:
    """Return the trials of a file of JSON lines. Raises LabError with the malformed line."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise LabError(error.strerror or "can't be read", where=str(path)) from None
    trials = []
    for number, line in enumerate(lines, start=1):
        try:
            trials.append(Trial(**json.loads(line)))
        except (ValueError, TypeError):
            raise LabError("not a test result", where=f"{path}:{number}") from None
    return trials


def page(trials: Sequence[Trial], now: datetime, former: str = "") -> str:
    """Return the page: a section per peer, a row per configuration.

    Of the page `former`, the sections of peers that no trial has are kept.
    """
    sections = dict(_split(former))
    for peer in {trial.peer for trial in trials}:
        of_peer = [trial for trial in trials if trial.peer == peer]
        sections[peer] = "\n".join(_section(peer, of_peer, now))
    return "\n".join([_HEAD, *(sections[peer] for peer in sorted(sections))])


def _split(page: str) -> Iterator[tuple[str, str]]:
    """Yield each section's peer and text, which ends with a newline."""
    for part in f"\n{page}".split(f"\n{_HEADING}")[1:]:
        yield part.partition("\n")[0], f"{_HEADING}{part.rstrip()}\n"


def _section(peer: str, trials: Sequence[Trial], now: datetime) -> Iterator[str]:
    engines = sorted({trial.engine for trial in trials})
    yield f"{_HEADING}{peer}\n"
    yield f"Tried on {now:%Y-%m-%d} with esp_gw {__version__}:"
    for what in _unique(trial.tried for trial in trials):
        yield f"- {what}"
    yield ""
    yield f"| configuration | {' | '.join(engines)} |"
    yield "| --- |" + " ---: |" * len(engines)
    for configuration in _unique(trial.configuration for trial in trials):
        here = [trial for trial in trials if trial.configuration == configuration]
        cells = (_passed([trial for trial in here if trial.engine == engine]) for engine in engines)
        yield f"| {configuration} | {' | '.join(cells)} |"
    yield "\nShown by:"
    for file in _unique(trial.file for trial in trials):
        tests = _unique(f"`{trial.test}`" for trial in trials if trial.file == file)
        yield f"- `{file}`: {', '.join(tests)}"
    yield ""


def _passed(trials: Sequence[Trial]) -> str:
    if not trials:
        return "not tried"
    passed = sum(trial.passed for trial in trials)
    return (
        f"{passed} of {len(trials)}" if passed == len(trials) else f"**{passed} of {len(trials)}**"
    )


def _unique(words: Iterable[str]) -> list[str]:
    """Return each word once, in order of first occurrence."""
    return list(dict.fromkeys(words))


def main(arguments: Sequence[str]) -> int:
    """Print the page for the named files; return the exit status.

    A first argument `--former=PAGE` names the page whose other sections are kept.
    """
    option, _, kept = arguments[0].partition("=") if arguments else ("", "", "")
    names = arguments[1:] if option == "--former" else arguments
    try:
        trials = [trial for name in names for trial in read(Path(name))]
        if not trials:
            raise LabError("the files hold no test results")
    except LabError as error:
        print(f"interop: error: {error}", file=sys.stderr)
        return 1
    former = Path(kept).read_text() if option == "--former" else ""
    print(page(trials, datetime.now(UTC), former), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
