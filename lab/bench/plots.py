"""The results as plots: SVG and PNG, with the range of all rounds as error bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esp_gw.errors import LabError
from esp_gw.model import Mode
from lab.bench.measures import TESTS
from lab.bench.plan import SUITE_LABELS, SYSTEMS, suite_system
from lab.bench.report_native import TECHNIQUES
from lab.bench.report_systems import COST_TESTS, LATENCY_TESTS, THROUGHPUT_TESTS, UDP_TESTS
from lab.bench.results import Result, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
_COLOURS = (
    *("#999999", "#0072b2", "#8c564b", "#000000", "#56b4e9"),
    *("#e69f00", "#009e73", "#d55e00", "#cc79a7"),
)
"""Colour-blind safe palette (Okabe and Ito, and a brown), one colour for each system."""


def draw(results: Results, folder: Path, caption: str) -> list[Path]:
    """Draw the results into `folder`; return the files. Raises LabError."""
    try:
        import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only needed here
    except ImportError:
        raise LabError(
            "no plots without matplotlib", hint="install it: pip install 'esp-gw[bench]'"
        ) from None
    mpl.use("agg")
    # Text stays text, and equal figures give an identical file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "esp-gw", "font.size": 10})
    figures = {
        "single-stream": _single_stream(results),
        "throughput": _grouped(results, THROUGHPUT_TESTS, "throughput", "Gbit/s", "TCP"),
        "udp": _grouped(
            results, UDP_TESTS, "packets", "packets/s", "UDP under 1 % loss, by bytes of payload"
        ),
        "latency": _latency(results),
        "cost": _grouped(
            *(results, COST_TESTS[:1], "gateways", "seconds per gigabit"),
            "Processor time of the gateways at 1 Gbit/s of TCP",
        ),
        "cost-packets": _grouped(
            *(results, COST_TESTS[1:], "gateways", "microseconds per packet"),
            "Processor time of the gateways at 100,000 packets/s, by flows",
        ),
        "techniques": _techniques(results),
        "suites": _suites(results),
    }
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            if figure is None:
                continue
            figure.text(0.01, 0.005, caption, fontsize=7, color="#555555")
            for kind in FORMATS:
                path = folder / f"{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else None
                figure.savefig(path, dpi=150, metadata=metadata)
                written.append(path)
    except OSError as error:
        raise LabError(error.strerror or str(error), where=str(folder)) from None
    return written


def _figure(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    # The rectangle leaves room for the caption below.
    layout = ConstrainedLayoutEngine(rect=(0, 0.03, 1, 0.97))
    figure = Figure(figsize=(width, height), layout=layout)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _error(found: Sequence[Result]) -> tuple[list[float], list[float]]:
    below = [result.median - result.low for result in found]
    return below, [result.high - result.median for result in found]


def _bars(
    axes: Axes, labels: Sequence[str], found: Sequence[Result], colours: Sequence[str], unit: str
) -> None:
    """Draw horizontal bars from the top down, each labelled with its figure."""
    places = range(len(found))
    values = [result.median for result in found]
    axes.barh(places, values, xerr=_error(found), color=list(colours), capsize=3)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.margins(x=0.15)
    for place, result in zip(places, found, strict=True):
        axes.annotate(
            f"{result.median:.3g}",
            (result.high, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def _single_stream(results: Results) -> Figure | None:
    found = [
        (result, colour)
        for system, colour in zip(SYSTEMS, _COLOURS, strict=True)
        if system != "veth" and (result := results.get(system, "tcp", "throughput"))
    ]
    if not found:
        return None
    figure, (axes,) = _figure(8, 0.6 + 0.55 * len(found) + 0.8)
    kept = [result for result, _ in found]
    _bars(axes, [result.system for result in kept], kept, [colour for _, colour in found], "Gbit/s")
    axes.set_title("One TCP stream through a tunnel, AES-256-GCM (WireGuard: ChaCha20-Poly1305)")
    return figure


def _grouped(
    results: Results, tests: Sequence[str], metric: str, unit: str, title: str
) -> Figure | None:
    systems = [
        (system, colour)
        for system, colour in zip(SYSTEMS, _COLOURS, strict=True)
        if any(results.get(system, test, metric) for test in tests)
    ]
    tests = [test for test in tests if any(results.get(name, test, metric) for name, _ in systems)]
    if not systems:
        return None
    figure, (axes,) = _figure(10, 5)
    width = 0.8 / len(systems)
    for index, (system, colour) in enumerate(systems):
        found = [
            (place, result)
            for place, test in enumerate(tests)
            if (result := results.get(system, test, metric))
        ]
        kept = [result for _, result in found]
        axes.bar(
            [place + (index - (len(systems) - 1) / 2) * width for place, _ in found],
            [result.median for result in kept],
            width,
            yerr=_error(kept),
            capsize=2,
            label=system,
            color=colour,
        )
    _finish_groups(axes, tests, unit, title)
    # The plain wire dwarfs everything else: a logarithmic scale keeps the others visible.
    axes.set_yscale("log")
    return figure


def _finish_groups(axes: Axes, names: Sequence[str], unit: str, title: str) -> None:
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3, which="both")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8)


def _latency(results: Results) -> Figure | None:
    panels = [
        (test, names)
        for test in LATENCY_TESTS
        if (names := [name for name in SYSTEMS if results.get(name, test, "median")])
    ]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = _figure(5 * columns + 1, 4.5 * rows, rows, columns)
    colours = {"median": "#0072b2", "p99": "#e69f00"}
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (test, systems) in zip(grid, panels, strict=False):
        for offset, metric in ((-0.2, "median"), (0.2, "p99")):
            kept = [found for name in systems if (found := results.get(name, test, metric))]
            axes.bar(
                [place + offset for place in range(len(kept))],
                [result.median for result in kept],
                0.4,
                yerr=_error(kept),
                capsize=2,
                label=metric,
                color=colours[metric],
            )
        title = TESTS[test].what
        _finish_groups(axes, systems, "microseconds", title[0].upper() + title[1:])
        axes.set_yscale("log")
        axes.tick_params(axis="x", rotation=30)
    return figure


def _techniques(results: Results) -> Figure | None:
    found = [
        (what, result)
        for system, what in TECHNIQUES.items()
        if (result := results.get(system, "tcp", "throughput"))
    ]
    if not found:
        return None
    figure, (axes,) = _figure(11, 0.35 * len(found) + 1.4)
    kept = [result for _, result in found]
    colours = [_COLOURS[1] if result.system == "native-all" else _COLOURS[2] for result in kept]
    _bars(axes, [what for what, _ in found], kept, colours, "Gbit/s")
    axes.set_title("The native engine without each technique, one TCP stream")
    return figure


def _suites(results: Results) -> Figure | None:
    figure, (axes,) = _figure(9, 4.5)
    names = [
        name
        for name in SUITE_LABELS
        if any(results.get(suite_system(name, mode), "tcp", "throughput") for mode in Mode)
    ]
    if not names:
        return None
    for offset, mode, colour in (
        (-0.2, Mode.TUNNEL, _COLOURS[1]),
        (0.2, Mode.TRANSPORT, _COLOURS[3]),
    ):
        found = [
            (place, result)
            for place, name in enumerate(names)
            if (result := results.get(suite_system(name, mode), "tcp", "throughput"))
        ]
        kept = [result for _, result in found]
        axes.bar(
            [place + offset for place, _ in found],
            [result.median for result in kept],
            0.4,
            yerr=_error(kept),
            capsize=3,
            label=f"{mode} mode",
            color=colour,
        )
    labels = [SUITE_LABELS[name] for name in names]
    _finish_groups(axes, labels, "Gbit/s", "Suites of the native engine, one TCP stream")
    return figure
