"""The results as tables: Markdown, aligned for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esp_gw.model import Mode
from lab.bench.measures import TESTS
from lab.bench.model import Failure
from lab.bench.plan import BASELINE_SUITES, PEERS, SUITE_LABELS, SYSTEMS, suite_system
from lab.bench.results import Result, Results
from lab.bench.targets import TARGETS

MISSING = "-"
THROUGHPUT_TESTS = ("tcp", "tcp_wire", "tcp_reverse", "tcp_bidir", "tcp_4")
UDP_TESTS = ("udp_64", "udp_512", "udp_1360")
LATENCY_TESTS = ("rtt", "rtt_loaded")
TECHNIQUES = {
    "native-all": "all",
    "native-no-tso": "no TCP super-packets from the TUN (tso)",
    "native-no-uso": "no UDP super-packets from the TUN (uso)",
    "native-no-vnet": "no super-packets on the TUN at all (tso, uso, merge)",
    "native-no-merge": "no merging before the TUN write (merge)",
    "native-no-udp_gso": "no UDP GSO (udp_gso)",
    "native-no-udp_gro": "no UDP GRO (udp_gro)",
    "native-no-gso-gro": "sendmmsg and recvmmsg for UDP GSO and GRO (udp_gso, udp_gro)",
    "native-none": "none of them: sendmmsg and recvmmsg alone",
    "native-gso-max-size": "all, gso_max_size of the TUN 61,000 bytes and not 65,536",
    "native-esp": "all, protocol 50",
    "native-esp-none": "none of them, protocol 50",
    "native-1-worker": "all, 1 worker",
    "native-4-workers": "all, 4 workers",
    "native-pinned": "all, workers pinned",
    "native-busy-poll": "all, busy_poll_us 50",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its title; the first column is left-aligned, the others right-aligned."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def render(self) -> str:
        """Markdown with aligned columns."""
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        rule = [f"{'-' * widths[0]}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
        text = [self._line(self.head, widths), f"| {' | '.join(rule)} |"]
        text += [self._line(row, widths) for row in self.rows]
        note = f"\n{self.note}\n" if self.note else ""
        return f"### {self.title}\n\n" + "\n".join(text) + f"\n{note}"

    @staticmethod
    def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return f"| {' | '.join([first, *others])} |"


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
    yield _by_system(results, "TCP, Gbit/s", THROUGHPUT_TESTS, "throughput")
    yield _by_system(results, "UDP under 1 % loss, packets/s", UDP_TESTS, "packets")
    yield _by_system(results, "UDP under 1 % loss, Gbit/s", UDP_TESTS, "throughput")
    yield _latency(results)
    yield _ratios(results)
    yield _cpu(results)
    yield _footprint(results)
    yield _techniques(results)
    yield _providers(results)
    yield _suites(results)
    yield _netdev(results)
    yield _scale(results)
    yield _core(results)


def number(value: float) -> str:
    """A figure rounded to its significant digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or not value else f"{value:.3f}"


def cell(result: Result | None) -> str:
    """Median and range, with an asterisk if a note names a limit of the figure."""
    if result is None:
        return MISSING
    star = "*" if result.note else ""
    if result.low == result.high:
        return f"{number(result.median)}{star}"
    return f"{number(result.median)}{star} ({number(result.low)}-{number(result.high)})"


def percents(cpu: Sequence[float]) -> str:
    """Processor time of the daemons, as `80 + 75 %`."""
    return f"{' + '.join(f'{value:.0f}' for value in cpu)} %" if cpu else MISSING


def _targets(results: Results) -> Table:
    rows = []
    for target in TARGETS:
        value = target.figure(results)
        bound = f"{'at most' if target.is_upper else 'at least'} {target.bound:g}"
        figure = MISSING if value is None else number(value)
        rows.append((target.what, bound, figure, target.verdict(value)))
    return Table("Targets", ("what", "target", "here", "verdict"), tuple(rows))


def _measured(results: Results, systems: Sequence[str], test: str) -> bool:
    return any(result.system in systems and result.test == test for result in results)


def _by_system(results: Results, title: str, tests: Sequence[str], metric: str) -> Table:
    tests = [test for test in tests if _measured(results, SYSTEMS, test)]
    rows = tuple(
        (system, *(cell(results.get(system, test, metric)) for test in tests))
        for system in SYSTEMS
        if any(results.get(system, test, metric) for test in tests)
    )
    notes = {
        result.note.split(" in ")[0]
        for result in results
        if result.note and result.test in tests and result.system in SYSTEMS
    }
    note = (
        f"\\* {', '.join(sorted(notes))} in some rounds: the system could carry more."
        if notes
        else ""
    )
    return Table(title, ("system", *tests), rows, note)


def _latency(results: Results) -> Table:
    columns = [
        (test, metric)
        for test in LATENCY_TESTS
        if _measured(results, SYSTEMS, test)
        for metric in ("median", "p99")
    ]
    rows = tuple(
        (system, *(cell(results.get(system, *column)) for column in columns))
        for system in SYSTEMS
        if any(results.get(system, *column) for column in columns)
    )
    head = ("system", *(f"{test}, {metric}" for test, metric in columns))
    return Table("Ping, microseconds", head, rows)


def _ratios(results: Results) -> Table:
    columns = (*PEERS, "python", "veth")
    rows = []
    for test, metric in (
        *((test, "throughput") for test in THROUGHPUT_TESTS),
        *((test, "packets") for test in UDP_TESTS),
        *((test, metric) for test in LATENCY_TESTS for metric in ("median", "p99")),
    ):
        key = ("native", test, metric)
        ratios = [results.ratio(key, (other, test, metric)) for other in columns]
        best = results.best(PEERS, test, metric)
        to_best = None if best is None else results.ratio(key, (best, test, metric))
        if any(ratio is not None for ratio in ratios):
            name = TESTS[test].what + (f", {metric}" if test in LATENCY_TESTS else "")
            to_best_text = MISSING if to_best is None else f"{number(to_best)} ({best})"
            rows.append((name, *map(_ratio, ratios), to_best_text))
    head = ("native to", *columns, "the best peer")
    return Table("Ratios: native to each other system", head, tuple(rows))


def _ratio(value: float | None) -> str:
    return MISSING if value is None else number(value)


def _cpu(results: Results) -> Table:
    tests = [
        test
        for test in (*THROUGHPUT_TESTS, *UDP_TESTS, *LATENCY_TESTS)
        if _measured(results, SYSTEMS, test)
    ]
    rows = []
    for system in SYSTEMS:
        found = [_any_metric(results, system, test) for test in tests]
        if any(result and result.cpu for result in found):
            rows.append((system, *(percents(result.cpu if result else ()) for result in found)))
    return Table("Processor time of the two gateways, % of a core", ("system", *tests), tuple(rows))


def _any_metric(results: Results, system: str, test: str) -> Result | None:
    return next((each for each in results if (each.system, each.test) == (system, test)), None)


def _footprint(results: Results) -> Table:
    rows = tuple(
        (system, cell(rss), cell(idle))
        for system in SYSTEMS
        for rss, idle in [
            (results.get(system, "memory", "rss"), results.get(system, "idle", "cpu"))
        ]
        if rss or idle
    )
    head = ("system", "resident MiB after the tests", "idle, % of a core")
    return Table("Memory, and a gateway without traffic", head, rows)


def _techniques(results: Results) -> Table:
    rows = []
    whole = ("native-all", "tcp", "throughput")
    for system, what in TECHNIQUES.items():
        key = (system, "tcp", "throughput")
        found = results.get(*key)
        if found:
            rtt = results.get(system, "rtt", "median")
            ratio = _ratio(results.ratio(key, whole))
            rows.append((what, cell(found), ratio, percents(found.cpu), cell(rtt)))
    head = ("native engine", "TCP, Gbit/s", "to all", "CPU", "ping, us")
    return Table("Techniques", head, tuple(rows))


def _providers(results: Results) -> Table:
    rows = []
    for test in ("tcp", "tcp_wire"):
        first, second = (
            results.get(f"native-{name}", test, "throughput") for name in ("openssl", "aws-lc")
        )
        if first or second:
            ratio = results.ratio(
                ("native-aws-lc", test, "throughput"), ("native-openssl", test, "throughput")
            )
            rows.append((TESTS[test].what, cell(first), cell(second), _ratio(ratio)))
    head = ("Gbit/s", "OpenSSL", "AWS-LC", "AWS-LC / OpenSSL")
    return Table("AEAD providers, end to end", head, tuple(rows))


def _suites(results: Results) -> Table:
    rows = []
    for name, what in SUITE_LABELS.items():
        found = [results.get(suite_system(name, mode), "tcp", "throughput") for mode in Mode]
        if any(found):
            columns = ((cell(each), percents(each.cpu if each else ())) for each in found)
            rows.append((what, *(text for pair in columns for text in pair)))
    head = ("suite", *(text for mode in Mode for text in (f"{mode}, Gbit/s", "CPU")))
    return Table("Suites, one TCP stream", head, tuple(rows))


def _netdev(results: Results) -> Table:
    rows = []
    for mode in Mode:
        for plain, what in ((True, "baseline"), (False, "super-packets: GSO, GRO, one copy")):
            found = [
                results.get(suite_system(suite, mode, plain=plain), "tcp", "throughput")
                for suite in BASELINE_SUITES
            ]
            if any(found):
                columns = ((cell(each), percents(each.cpu if each else ())) for each in found)
                rows.append((f"{mode}, {what}", *(text for pair in columns for text in pair)))
    head = ("one TCP stream", "ESP-NULL (GMAC), Gbit/s", "CPU", "AES-GCM-256, Gbit/s", "CPU")
    return Table("The table of the NetDev 1.1 IPsec BoF, redone", head, tuple(rows))


def _scale(results: Results) -> Table:
    rows = []
    tests = sorted(
        {result.test for result in results if result.test.startswith("scale_")},
        key=lambda test: int(test.removeprefix("scale_")),
    )
    for test in tests:
        figures = [
            cell(results.get("native", test, metric))
            for metric in ("throughput", "packets_one", "packets_all", "installs", "memory_per_sa")
        ]
        rows.append((f"{int(test.removeprefix('scale_')):,}", *figures))
    head = (
        *("SAs", "one TCP stream, Gbit/s", "packets/s on one", "packets/s on all"),
        *("installs/s", "bytes per SA"),
    )
    return Table("Scale", head, tuple(rows))


def _core(results: Results) -> Table:
    rows = []
    metrics = (
        *("ns_per_packet", "ns_per_packet_2_threads_own", "ns_per_packet_2_threads_shared"),
        *("speedup_2_threads_own", "speedup_2_threads_shared", "instructions_per_packet"),
    )
    cases = dict.fromkeys(
        (result.system, result.test) for result in results if result.section == "core"
    )
    for system, test in cases:
        what, size = test.removeprefix("core_").split("_")
        name = f"{what}, {int(size):,} bytes, {system.removeprefix('native-')}"
        rows.append((name, *(cell(results.get(system, test, metric)) for metric in metrics)))
    head = (
        *("per packet", "ns", "ns, 2 threads", "ns, 2 threads on one SA"),
        *("2 threads / 1", "2 / 1 on one SA", "instructions"),
    )
    note = "Instructions are counted by valgrind, which has no AVX-512."
    return Table("The core alone", head, tuple(rows), note)


def _failure(failure: Failure) -> tuple[str, str]:
    what = f"{failure.system}, {failure.test}" if failure.test else failure.system
    return what, failure.reason.replace("|", "/")
