"""Tables of the report about keys by IKE."""

from __future__ import annotations

from lab.bench.ike import REKEYS
from lab.bench.measures import TESTS
from lab.bench.plan import FULL, NATIVE_IKE, QUICK
from lab.bench.results import Results
from lab.bench.table import MISSING, Table, cell, ratio

MANUAL, ONE_SA = "native", "native-1-sa"
_FIGURES = (
    ("from --initiate to the first packet, ms", "initiate", "first_packet"),
    (f"{REKEYS} rekeys under one TCP stream: packets lost in the gateways", "rekey", "lost"),
    ("longest gap between two datagrams beside it, ms", "rekey", "gap"),
    ("the same without rekeys", "rekey", "gap_without"),
    ("datagrams missing, of 1,000 a second", "rekey", "missing"),
    ("the same without rekeys", "rekey", "missing_without"),
    ("a child, the first ten, ms", "children", "first"),
    (
        f"a child, the last ten of {FULL.children} (--quick: {QUICK.children}), ms",
        "children",
        "last",
    ),
    ("memory of a child, gateway, KiB", "children", "gateway"),
    ("memory of a child, charon, KiB", "children", "charon"),
)


def beside_manual_keys(results: Results) -> Table:
    """Throughput and round trips with keys by charon, to those with manual keys."""
    rows = []
    for test, metric in [(test, metric) for test in TESTS for metric in ("throughput", "median")]:
        own = (NATIVE_IKE, test, metric)
        found = results.get(*own)
        to_manual = [results.ratio(own, (system, test, metric)) for system in (MANUAL, ONE_SA)]
        if found and any(value is not None for value in to_manual):
            unit = found.unit.replace("us", "microseconds")
            rows.append((f"{TESTS[test].what}, {unit}", cell(found), *map(ratio, to_manual)))
    head = ("keys by IKE", NATIVE_IKE, f"to {MANUAL}", f"to {ONE_SA}")
    return Table("Keys by IKE beside manual keys", head, tuple(rows))


def ike(results: Results) -> Table:
    """The figures that only a system with charon has."""
    systems = (NATIVE_IKE, "strongswan")
    rows = tuple(
        (what, *(MISSING if each is None else cell(each) for each in found))
        for what, test, metric in _FIGURES
        if any(found := [results.get(system, test, metric) for system in systems])
    )
    return Table("IKE", ("figure", *systems), rows)
