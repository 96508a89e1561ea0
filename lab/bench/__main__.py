"""`python -m lab.bench`: the entry point of scripts/bench, once everything is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from esp_gw.demo.signals import ended_by_signals
from esp_gw.errors import INTERRUPTED, EspGwError, LabError
from lab.bench import core, host, plots, report, scale
from lab.bench.measures import TESTS
from lab.bench.model import Observation, Sample
from lab.bench.plan import BASELINE, SECTIONS, SYSTEMS, Options, Plan, make_plan
from lab.bench.results import Result, Results, as_json, summarise
from lab.bench.rounds import FAULTS, Session, minutes, reason, scratch

_PROGRAMS = ("ip", "setpriv", "nsenter", "ping", "iperf3", "ethtool")
_CORE_ROUNDS = 21
_FEW_CORE_ROUNDS = 5


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _several(values: Sequence[str]) -> click.Choice[str]:
    return click.Choice(list(values))


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Sections: " + "; ".join(f"{name} ({what})" for name, what in SECTIONS.items()) + ".",
)
@click.option(
    "--quick", is_flag=True, help="Short runs, few rounds: a quarter of an hour in total."
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the results as JSON.",
)
@click.option(
    "--plot",
    "plot_dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Draw the plots into DIR, as SVG and PNG.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    metavar="N",
    help="Rounds in which each system takes its turn [default: 5, quick 2].",
)
@click.option(
    "--only",
    "sections",
    multiple=True,
    type=_several(tuple(SECTIONS)),
    metavar="SECTION",
    help="Only this section (see below); repeatable.",
)
@click.option(
    "--system",
    "systems",
    multiple=True,
    metavar="NAME",
    help=f"Only this system; {', '.join(SYSTEMS)}, or a setting such as native-no-tso.",
)
@click.option(
    "--test",
    "tests",
    multiple=True,
    type=_several(tuple(TESTS)),
    metavar="NAME",
    help=f"Only this test; {', '.join(TESTS)}.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    metavar="DIR",
    help="Also measure the native engine of this checkout: an earlier version, built.",
)
@click.option("--check", "is_check", is_flag=True, hidden=True)
@click.option("--wireguard-go", default="wireguard-go", hidden=True)
@click.option("--gotatun", default="gotatun", hidden=True)
@click.option("--null-cipher", type=click.Path(path_type=Path), hidden=True)
@click.option("--core-program", type=click.Path(path_type=Path), hidden=True)
@click.option("--ike-plugin", type=click.Path(path_type=Path), hidden=True)
def bench(
    quick: bool,
    json_file: Path | None,
    plot_dir: Path | None,
    rounds: int | None,
    sections: tuple[str, ...],
    systems: tuple[str, ...],
    tests: tuple[str, ...],
    baseline: Path | None,
    is_check: bool,
    wireguard_go: str,
    gotatun: str,
    null_cipher: Path | None,
    core_program: Path | None,
    ike_plugin: Path | None,
) -> None:
    """Measure esp_gw against its peers in network namespaces on this machine. Needs root.

    The systems take turns in interleaved rounds, so that the ratios hold on a noisy machine. Leave
    the machine idle during the run. Tables go to stdout, progress to stderr.
    """
    # A root shell opened by plain 'su' may lack the sbin folders.
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    _check_outputs(json_file, plot_dir)
    native = importlib.util.find_spec("esp_gw_core") is not None
    plan = make_plan(
        Options(
            quick=quick,
            rounds=rounds,
            sections=sections,
            systems=systems,
            tests=tests,
            wireguard_go=wireguard_go,
            gotatun=gotatun,
            baseline=baseline,
            null_cipher=null_cipher,
            ike_plugin=ike_plugin,
            native=native or is_check,
        )
    )
    if is_check:
        # scripts/bench runs this first, so that a wrong option is reported before any build.
        return
    _check_machine()
    if not native:
        _say("the native engine is not installed: skipping it")
    described = host.describe(wireguard_go, gotatun)
    _say(f"about {minutes(plan.seconds)} (minutes:seconds) on {described['cores']} cores")
    with ended_by_signals():
        session = Session(plan, _say)
        session.run()
        if plan.scale_rounds:
            _measure_scale(session, plan)
        core_results = _measure_core(session, plan, core_program, baseline, quick)
        results = Results([*summarise(session.observations), *core_results])
    text = report.render(plan.rounds, results, session.failures, described)
    print(text)
    if json_file is not None:
        values = as_json(plan.rounds, results, session.failures, described)
        json_file.write_text(json.dumps(values, indent=1) + "\n")
    if plot_dir is not None:
        caption = f"{described['date']}, {described['cpu']}, {described['cores']} cores"
        plots.draw(results, plot_dir, f"{caption}; medians and ranges, rounds: {plan.rounds}")


def _measure_scale(session: Session, plan: Plan) -> None:
    session.progress("scale: thousands of SAs")

    def observe(number: int, test: str, sample: Sample) -> None:
        session.observe(Observation("scale", "native", test, number, sample))

    def fail(test: str, reason: str) -> None:
        session.fail("scale", "native", test, reason)

    with scratch() as folder:
        scale.measure(folder, plan.lengths, plan.scale_rounds, "native", observe, fail)


def _measure_core(
    session: Session, plan: Plan, program: Path | None, baseline: Path | None, quick: bool
) -> Iterator[Result]:
    if not plan.core_seconds:
        return
    session.progress("core: without the kernel")
    try:
        if program is None:
            raise LabError("core_bench is not built", hint="run ./scripts/bench")
        yield from core.nanoseconds(program, _FEW_CORE_ROUNDS if quick else _CORE_ROUNDS)
        if quick:
            return
        if shutil.which("valgrind") is None:
            raise LabError("valgrind is not installed", hint="run ./scripts/bench")
        yield from core.instructions(program)
        if baseline is not None:
            yield from core.instructions(baseline / core.BUILT, BASELINE)
    except FAULTS as error:
        session.fail("core", "native", "core", reason(error))


def _check_machine() -> None:
    if os.geteuid() != 0:
        raise LabError("the benchmark needs root for network namespaces", hint="run it with sudo")
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        raise LabError(f"not installed: {', '.join(missing)}", hint="run ./scripts/bench")
    if not Path("/dev/net/tun").exists():
        raise LabError("there is no /dev/net/tun", hint="load the module with 'modprobe tun'")


def _check_outputs(json_file: Path | None, plot_dir: Path | None) -> None:
    """Raise LabError for an output that can't be written, before half an hour of measuring."""
    if json_file is not None:
        _check_folder(json_file.absolute().parent)
    if plot_dir is not None:
        folder = plot_dir.absolute()
        _check_folder(next(path for path in (folder, *folder.parents) if path.exists()))
        if importlib.util.find_spec("matplotlib") is None:
            raise LabError(
                "no plots without matplotlib", hint="install it: pip install 'esp-gw[bench]'"
            )


def _check_folder(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LabError(f"can't write to it: {error.strerror}", where=str(folder)) from None


def main(args: Sequence[str] | None = None) -> int:
    """Run the benchmark; report an error on one line. Ctrl-C leaves nothing behind."""
    try:
        bench.main(args, prog_name="scripts/bench", standalone_mode=False)
    except click.Abort:
        _say("interrupted: everything was removed")
        return INTERRUPTED
    except click.ClickException as error:
        _say(f"bench: error: {error.format_message()}")
        return error.exit_code
    except (EspGwError, OSError) as error:
        _say(f"bench: error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
