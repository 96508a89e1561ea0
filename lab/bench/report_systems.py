"""Tables of the report in which the systems stand side by side."""

from __future__ import annotations

from collections.abc import Sequence

from lab.bench.measures import TESTS
from lab.bench.plan import BASELINE, PEERS, SYSTEMS
from lab.bench.results import Result, Results
from lab.bench.table import MISSING, Table, cell, number, percents, ratio

THROUGHPUT_TESTS = ("tcp", "tcp_wire", "tcp_reverse", "tcp_bidir", "tcp_4")
FLOW_TESTS = ("udp_64_8", "udp_64_64")
SIZE_TESTS = ("udp_64", "udp_512", "udp_1360")
UDP_TESTS = (*SIZE_TESTS, *FLOW_TESTS)
LATENCY_TESTS = ("rtt", "rtt_loaded", "rtt_loaded_bbr", "rtt_loaded_4", "rtt_loaded_4_bbr")
COST_TESTS = ("cost_tcp", "cost_udp_1", "cost_udp_8")


def _measured(results: Results, systems: Sequence[str], test: str) -> bool:
    return any(result.system in systems and result.test == test for result in results)


def by_system(results: Results, title: str, tests: Sequence[str], metric: str) -> Table:
    """One figure of several tests, a column each."""
    return _columns(results, title, [(test, test, metric) for test in tests])


def latency(results: Results) -> Table:
    """Round trips, idle and beside TCP."""
    columns = [
        (f"{test}, {metric}", test, metric)
        for test in LATENCY_TESTS
        for metric in ("median", "p99")
    ]
    return _columns(results, "Ping, microseconds", columns)


def efficiency(results: Results) -> Table:
    """Packets a processor second, each system at its own highest rate."""
    title = "Packets per CPU-second, 64 bytes, at the highest rate under 1 % loss"
    columns = [
        (f"{test}, {who}", test, metric)
        for test in ("udp_64", *FLOW_TESTS)
        for metric, who in (("per_gateways_cpu", "gateways"), ("per_machine_cpu", "machine"))
    ]
    return _columns(results, title, columns)


def costs(results: Results) -> Table:
    """Processor time: of TCP at full speed, and at loads that are the same for all."""
    columns = [
        (f"{test}, {metric}, {unit}", test, metric)
        for test, unit in zip(COST_TESTS, ("s/Gbit", "us/packet", "us/packet"), strict=True)
        for metric in ("gateways", "receiver", "machine")
    ]
    columns.insert(0, ("tcp, gateways, s/Gbit", "tcp", "gateways"))
    title = "Processor time of TCP at full speed and at 1 Gbit/s, of 100,000 packets/s"
    return _columns(results, title, columns)


Column = tuple[str, str, str]
"""Head, test, metric."""


def _columns(results: Results, title: str, columns: Sequence[Column]) -> Table:
    found = {
        (system, test, metric): result
        for system in SYSTEMS
        for _, test, metric in columns
        if (result := results.get(system, test, metric))
    }
    columns = [each for each in columns if any(key[1:] == each[1:] for key in found)]
    rows = tuple(
        (system, *(cell(found.get((system, test, metric))) for _, test, metric in columns))
        for system in SYSTEMS
        if any(key[0] == system for key in found)
    )
    notes = {result.note.split(" in ")[0] for result in found.values() if result.note}
    note = f"\\* {', '.join(sorted(notes))}, in some rounds." if notes else ""
    return Table(title, ("system", *(head for head, _, _ in columns)), rows, note)


_METRICS = {
    **dict.fromkeys(THROUGHPUT_TESTS, ("throughput",)),
    "tcp": ("throughput", "gateways"),
    **dict.fromkeys(UDP_TESTS, ("packets",)),
    **dict.fromkeys(("udp_64", *FLOW_TESTS), ("packets", "per_gateways_cpu", "per_machine_cpu")),
    **dict.fromkeys(LATENCY_TESTS, ("median", "p99")),
    **dict.fromkeys(COST_TESTS, ("gateways", "machine")),
}
"""The metrics of each test that are worth a ratio; with several, each is named."""
_SAID = {
    "gateways": ", of the gateways",
    "machine": ", of the machine",
    "throughput": "",
    "packets": "",
    "per_gateways_cpu": ", packets per CPU-second of the gateways",
    "per_machine_cpu": ", packets per CPU-second of the machine",
}


def ratios(results: Results) -> Table:
    """The native engine's figures divided by those of each other system."""
    others: tuple[str, ...] = (*PEERS, "python", "veth")
    if any(result.system == BASELINE for result in results):
        others = (*others, BASELINE)
    rows = []
    for test, metric in [
        (test, metric) for test, metrics in _METRICS.items() for metric in metrics
    ]:
        key = ("native", test, metric)
        found = [results.ratio(key, (other, test, metric)) for other in others]
        best = results.best(PEERS, test, metric)
        to_best = None if best is None else results.ratio(key, (best, test, metric))
        if any(value is not None for value in found):
            name = TESTS[test].what + _SAID.get(metric, f", {metric}")
            if (test, metric) == ("tcp", "gateways"):
                name = f"processor time of {name}"
            to_best_text = MISSING if to_best is None else f"{number(to_best)} ({best})"
            rows.append((name, *map(ratio, found), to_best_text))
    head = ("native to", *others, "the best peer")
    return Table("Ratios: native to each other system", head, tuple(rows))


def cpu(results: Results) -> Table:
    """Processor time of both gateways in each test."""
    tests = [test for test in _METRICS if _measured(results, SYSTEMS, test)]
    rows = []
    for system in SYSTEMS:
        found = [_any_metric(results, system, test) for test in tests]
        if any(result and result.cpu for result in found):
            rows.append((system, *(percents(result.cpu if result else ()) for result in found)))
    return Table("Processor time of the two gateways, % of a core", ("system", *tests), tuple(rows))


def _any_metric(results: Results, system: str, test: str) -> Result | None:
    return next((each for each in results if (each.system, each.test) == (system, test)), None)


def footprint(results: Results) -> Table:
    """Memory, and processor time without traffic."""
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
