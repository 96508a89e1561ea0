"""The whole report: head, tables, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab.bench import report_ike, report_native, report_systems
from lab.bench.model import Failure
from lab.bench.report_systems import SIZE_TESTS, THROUGHPUT_TESTS, UDP_TESTS
from lab.bench.results import Results
from lab.bench.table import MISSING, Table, number
from lab.bench.targets import TARGETS


def render(
    rounds: int, results: Results, failures: Sequence[Failure], machine: Mapping[str, Any]
) -> str:
    """The whole report, as Markdown."""
    versions = machine.get("versions", {})
    lines = [
        f"{machine['date']}; {machine['kernel']}; {machine['cpu']}, {machine['cores']} cores.",
        f"Versions: {', '.join(f'{name} {text}' for name, text in versions.items())}.",
        f"Medians, and the range of all rounds in parentheses; rounds: {rounds} at most.",
    ]
    parts = ["\n".join(lines) + "\n"]
    parts += [table.render() for table in tables(results) if table.rows]
    if failures:
        rows = tuple(_failure(failure) for failure in failures)
        parts.append(Table("Not measured", ("what", "why"), rows).render())
    return "\n".join(parts)


def tables(results: Results) -> Iterator[Table]:
    """Every table; a table without rows was not measured."""
    yield _targets(results)
    yield report_systems.by_system(results, "TCP, Gbit/s", THROUGHPUT_TESTS, "throughput")
    yield report_systems.by_system(results, "UDP under 1 % loss, packets/s", UDP_TESTS, "packets")
    yield report_systems.by_system(results, "UDP under 1 % loss, Gbit/s", SIZE_TESTS, "throughput")
    yield report_systems.latency(results)
    yield report_systems.efficiency(results)
    yield report_systems.costs(results)
    yield report_systems.ratios(results)
    yield report_systems.cpu(results)
    yield report_systems.footprint(results)
    yield report_ike.beside_manual_keys(results)
    yield report_ike.ike(results)
    yield report_native.tunnels(results)
    yield report_native.techniques(results)
    yield report_native.providers(results)
    yield report_native.suites(results)
    yield report_native.netdev(results)
    yield report_native.scale(results)
    yield report_native.core(results)
    yield report_native.split(results)


def _targets(results: Results) -> Table:
    rows = []
    for target in TARGETS:
        value = target.figure(results)
        bound = f"{'at most' if target.is_upper else 'at least'} {target.bound:g}"
        figure = MISSING if value is None else number(value)
        rows.append((target.what, bound, figure, target.verdict(value)))
    return Table("Targets", ("what", "target", "here", "verdict"), tuple(rows))


def _failure(failure: Failure) -> tuple[str, str]:
    what = f"{failure.system}, {failure.test}" if failure.test else failure.system
    return what, failure.reason.replace("|", "/")
