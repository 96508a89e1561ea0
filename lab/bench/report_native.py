"""Tables of the report about the native engine: its settings, many SAs, the core alone."""

from __future__ import annotations

from esp_gw.model import Mode
from lab.bench.measures import TESTS
from lab.bench.plan import BASELINE_SUITES, SUITE_LABELS, TWO_TUNNELS, suite_system
from lab.bench.results import Results
from lab.bench.table import Table, cell, percents, ratio

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
    "native-1-sa": "all, one SA",
    "native-1-worker": "all, 1 worker",
    "native-4-workers": "all, 4 workers",
    "native-pinned": "all, workers pinned",
    "native-low-latency": "all, latency: low",
}


def tunnels(results: Results) -> Table:
    """Four TCP streams through two tunnels."""
    native, peer = (
        (TWO_TUNNELS.format(name), "tcp_tunnels", "throughput")
        for name in ("native", "wireguard-go")
    )
    found = [results.get(*key) for key in (native, peer)]
    rows: tuple[tuple[str, ...], ...] = ()
    if any(found):
        to_peer = ratio(results.ratio(native, peer))
        rows = ((TESTS["tcp_tunnels"].what, *(cell(each) for each in found), to_peer),)
    head = ("Gbit/s", "native", "wireguard-go", "native / wireguard-go")
    return Table("Two tunnels", head, rows)


def techniques(results: Results) -> Table:
    """One TCP stream and ping with each technique off, and in other settings."""
    rows = []
    whole = ("native-all", "tcp", "throughput")
    for system, what in TECHNIQUES.items():
        key = (system, "tcp", "throughput")
        found = results.get(*key)
        if found:
            rtt = results.get(system, "rtt", "median")
            loaded = results.get(system, "rtt_loaded", "median")
            to_all = ratio(results.ratio(key, whole))
            rows.append((what, cell(found), to_all, percents(found.cpu), cell(rtt), cell(loaded)))
    head = ("native engine", "TCP, Gbit/s", "to all", "CPU", "ping, us", "beside TCP, us")
    return Table("Techniques", head, tuple(rows))


def providers(results: Results) -> Table:
    """The two AEAD libraries, end to end."""
    rows = []
    for test in ("tcp", "tcp_wire"):
        first, second = (
            results.get(f"native-{name}", test, "throughput") for name in ("openssl", "aws-lc")
        )
        if first or second:
            to_openssl = results.ratio(
                ("native-aws-lc", test, "throughput"), ("native-openssl", test, "throughput")
            )
            rows.append((TESTS[test].what, cell(first), cell(second), ratio(to_openssl)))
    head = ("Gbit/s", "OpenSSL", "AWS-LC", "AWS-LC / OpenSSL")
    return Table("AEAD providers, end to end", head, tuple(rows))


def suites(results: Results) -> Table:
    """Each suite in both modes, and without the cipher."""
    rows = []
    for name, what in SUITE_LABELS.items():
        found = [results.get(suite_system(name, mode), "tcp", "throughput") for mode in Mode]
        if any(found):
            columns = ((cell(each), percents(each.cpu if each else ())) for each in found)
            rows.append((what, *(text for pair in columns for text in pair)))
    head = ("suite", *(text for mode in Mode for text in (f"{mode}, Gbit/s", "CPU")))
    return Table("Suites, one TCP stream", head, tuple(rows))


def netdev(results: Results) -> Table:
    """The table of NetDev 1.1, redone."""
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


def scale(results: Results) -> Table:
    """Gateways with few and with many SAs."""
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


def core(results: Results) -> Table:
    """Time and instructions of a packet without the kernel."""
    rows = []
    metrics = (
        *("ns_per_packet", "ns_per_packet_2_threads_own", "ns_per_packet_2_threads_shared"),
        *("speedup_2_threads_own", "speedup_2_threads_shared", "instructions_per_packet"),
    )
    cases = dict.fromkeys(
        (result.system, result.test)
        for result in results
        if result.section == "core" and not result.test.startswith(SPLIT)
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


SPLIT = "core_split_"
"""Prefix of the tests of one super-packet on two threads; its number of segments follows."""


def split(results: Results) -> Table:
    """One super-packet sealed by two threads, by how the second one waits for its half."""
    rows = []
    cases = dict.fromkeys(
        (result.system, result.test) for result in results if result.test.startswith(SPLIT)
    )
    for system, test in cases:
        figures = [
            cell(results.get(system, test, metric))
            for metric in (
                *("ns_per_packet", "ns_per_packet_2_threads_spinning"),
                *("ns_per_packet_2_threads_parked", "speedup_2_threads_spinning"),
                "speedup_2_threads_parked",
            )
        ]
        name = f"{test.removeprefix(SPLIT)} segments, {system.removeprefix('native-')}"
        rows.append((name, *figures))
    head = (
        *("per segment", "ns", "ns, 2 threads, spinning", "ns, 2 threads, parked"),
        *("2 threads / 1, spinning", "2 / 1, parked"),
    )
    return Table("One flow sealed by two threads", head, tuple(rows))
