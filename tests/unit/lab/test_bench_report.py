"""Medians, ratios, JSON, tables and plots from observations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lab.bench import plots, report, report_native, report_systems
from lab.bench.model import Failure, Observation, Sample
from lab.bench.plan import SYSTEMS, Options, make_plan
from lab.bench.results import Result, Results, as_json, summarise
from lab.bench.targets import TARGETS, Target

MACHINE = {
    "date": "2026-01-01 00:00 UTC",
    "kernel": "Linux 6.12",
    "cpu": "a processor",
    "cores": 2,
    "versions": {"esp_gw": "0.1.0"},
}


def seen(
    system: str, test: str, values: list[float], metric: str = "throughput", **fields: object
) -> Iterator[Observation]:
    """Observations of one figure, one per round."""
    unit = "us" if test.startswith("rtt") else "s/Gbit" if metric == "gateways" else "Gbit/s"
    for number, value in enumerate(values):
        sample = Sample(metric, unit, value, **fields)  # type: ignore[arg-type]
        yield Observation("systems", system, test, number, sample)


def test_a_result_is_the_median_and_the_range_of_all_rounds() -> None:
    observations = [
        *seen("native", "tcp", [6.0, 9.0, 7.0], cpu=(80.0, 60.0)),
        *seen("veth", "tcp", [30.0, 20.0]),
    ]
    native, veth = summarise(observations)
    assert (native.median, native.low, native.high) == (7, 6, 9)
    assert native.cpu == (80, 60)
    assert (veth.median, veth.cpu) == (25, ())


def test_ratios_are_taken_within_a_round() -> None:
    """Both slow down in the second round; the medians alone would say 7.5."""
    results = summarise(
        [
            *seen("native", "tcp", [10.0, 2.0, 8.0, 5.0]),
            *seen("openvpn", "tcp", [1.0, 0.2, 0.8, 0.5]),
        ]
    )
    native, openvpn = (("native", "tcp", "throughput"), ("openvpn", "tcp", "throughput"))
    assert results.ratio(native, openvpn) == pytest.approx(10)
    assert results.ratio(openvpn, native) == pytest.approx(0.1)
    assert results.ratio(native, ("strongswan", "tcp", "throughput")) is None


def test_a_round_that_failed_for_either_system_is_excluded_from_the_ratio() -> None:
    first, second = seen("native", "tcp", [10.0, 100.0])
    results = summarise([first, second, *seen("openvpn", "tcp", [2.0])])
    assert results.ratio(("native", "tcp", "throughput"), ("openvpn", "tcp", "throughput")) == 5


def test_the_best_is_the_highest_rate_or_the_shortest_time() -> None:
    results = summarise(
        [
            *seen("strongswan", "tcp", [0.5]),
            *seen("wireguard-go", "tcp", [3.0]),
            *seen("strongswan", "rtt", [500.0], "median"),
            *seen("wireguard-go", "rtt", [400.0], "median"),
            *seen("strongswan", "cost_tcp", [0.9], "gateways"),
            *seen("wireguard-go", "cost_tcp", [1.4], "gateways"),
        ]
    )
    assert results.best(("strongswan", "wireguard-go"), "cost_tcp", "gateways") == "strongswan"
    assert results.best(("strongswan", "wireguard-go"), "tcp", "throughput") == "wireguard-go"
    assert results.best(("strongswan", "wireguard-go"), "rtt", "median") == "wireguard-go"
    assert results.best(("openvpn",), "tcp", "throughput") is None


def test_the_json_has_the_documented_shape() -> None:
    results = summarise(
        [
            *seen("native", "tcp", [6.0, 9.0, 7.0], cpu=(80.0, 60.5)),
            *seen("veth", "udp_64", [0.2], note="the sender's own limit"),
        ]
    )
    failure = Failure("systems", "openvpn", "", "openvpn is not installed")
    document = json.loads(json.dumps(as_json(3, results, [failure], MACHINE)))
    assert document["rounds"] == 3
    native, veth = document["results"]
    assert native == {
        "section": "systems",
        "system": "native",
        "test": "tcp",
        "metric": "throughput",
        "unit": "Gbit/s",
        "median": 7,
        "min": 6,
        "max": 9,
        "cpu": 140.5,
        "cpu_each": [80, 60.5],
        "values": [6, 9, 7],
    }
    assert veth["cpu"] is None
    assert veth["note"] == "the sender's own limit in 1 of 1 rounds"
    assert document["machine"]["versions"] == {"esp_gw": "0.1.0"}
    assert document["failures"][0]["reason"] == "openvpn is not installed"


def full_run() -> list[Observation]:
    """Figures for every table and every plot."""
    observations: list[Observation] = []
    for place, system in enumerate(SYSTEMS, start=1):
        for test in ("tcp", "tcp_wire", "tcp_reverse", "tcp_bidir", "tcp_4"):
            observations += seen(system, test, [1.0 * place, 2.0 * place], cpu=(50.0, 40.0))
            observations += seen(system, test, [0.1 * place], "gateways")
        for test in ("udp_64", "udp_512", "udp_1360", "udp_64_8", "udp_64_64"):
            observations += seen(system, test, [1.0 * place])
            observations += seen(system, test, [1000.0 * place], "packets", note="a limit")
            for metric in ("per_gateways_cpu", "per_machine_cpu"):
                observations += seen(system, test, [2000.0 * place], metric)
        for test in ("cost_tcp", "cost_udp_1", "cost_udp_8"):
            for metric in ("gateways", "receiver", "machine"):
                observations += seen(system, test, [0.1 * place], metric, note="too fast")
        for test in report_systems.LATENCY_TESTS:
            observations += seen(system, test, [100.0 / place], "median")
            observations += seen(system, test, [200.0 / place], "p99")
        observations += seen(system, "memory", [40.0], "rss")
        observations += seen(system, "idle", [0.01], "cpu")
    observations += seen("native-ike", "initiate", [30.0], "first_packet")
    for system in (*report_native.TECHNIQUES, "native-openssl", "native-aws-lc"):
        observations += seen(system, "tcp", [5.0], cpu=(50.0, 40.0))
        observations += seen(system, "rtt", [90.0], "median")
    for system in ("native-2-tunnels", "wireguard-go-2-tunnels"):
        observations += seen(system, "tcp_tunnels", [4.0])
    observations += seen("native-4-workers", "memory", [50.0], "rss")
    for mode in ("tunnel", "transport"):
        for suite in ("aes256gcm16", "aes256gmac", "aes256gcm16-none", "aes256gmac-none", "null"):
            name, _, plain = suite.partition("-")
            system = f"native-{name}-{mode}{'-none' if plain else ''}"
            observations += seen(system, "tcp", [5.0], cpu=(50.0, 40.0))
    for metric in ("throughput", "packets_one", "packets_all", "installs", "memory_per_sa"):
        observations += seen("native", "scale_2", [5.0], metric)
        observations += seen("native", "scale_10000", [4.9], metric)
    return observations


CORE = [
    *(
        Result("core", "native-openssl", f"core_{way}_62500", "speedup_2_threads_own", "", 2, 1, 3)
        for way in ("encap", "decap")
    ),
    *(
        Result("core", system, f"core_{way}_64", "instructions_per_packet", "", each, each, each)
        for system, way, each in (
            ("native-openssl", "encap", 2000),
            ("baseline-openssl", "encap", 2000),
            ("native-aws-lc", "decap", 1030),
            ("baseline-aws-lc", "decap", 1000),
        )
    ),
    Result("core", "native-openssl", "core_split_45", "speedup_2_threads_spinning", "", 1.6, 1, 2),
]


def test_every_target_is_measured_by_a_whole_run() -> None:
    results = Results([*summarise(full_run()), *CORE])
    figures = {target.what: target.figure(results) for target in TARGETS}
    assert None not in figures.values(), figures


def test_a_missed_target_reports_its_margin() -> None:
    least = next(target for target in TARGETS if target.bound == 2.6)
    most = next(target for target in TARGETS if target.is_upper and target.bound == 0.2)
    assert least.verdict(2.6) == most.verdict(0.2) == "reached"
    assert least.verdict(1.3) == "missed by 50 %"
    assert most.verdict(0.3) == "missed by 50 %"
    assert least.verdict(None) == "not measured"


def target(what: str) -> Target:
    return next(each for each in TARGETS if each.what.startswith(what))


def test_a_target_takes_the_peer_that_is_best_at_it() -> None:
    results = summarise(
        [
            *seen("native", "cost_tcp", [0.1, 0.3], "gateways"),
            *seen("strongswan", "cost_tcp", [1.0, 2.0], "gateways"),
            *seen("openvpn", "cost_tcp", [0.5, 2.0], "gateways"),
        ]
    )
    assert target("CPU of the gateways").figure(results) == pytest.approx((0.1 / 0.5 + 0.15) / 2)


def test_a_loaded_ping_is_compared_with_the_idle_one_of_its_round() -> None:
    results = summarise(
        [
            *seen("native", "rtt", [100.0, 200.0, 400.0], "median"),
            *seen("native", "rtt_loaded", [90.0, 220.0, 400.0], "median"),
        ]
    )
    assert target("ping beside one TCP stream, median").figure(results) == 1.0


def test_the_worst_case_of_the_instructions_counts() -> None:
    assert target("instructions").figure(Results(CORE)) == pytest.approx(1.03)
    assert target("instructions").figure(Results(CORE[:3])) is None


def test_a_baseline_is_compared_where_it_was_measured() -> None:
    observations = [
        *seen("native", "cost_udp_8", [0.4], "receiver"),
        *seen("baseline", "cost_udp_8", [1.0], "receiver"),
    ]
    assert target("receiver's CPU").figure(summarise(observations)) == 0.4
    assert "baseline" not in report_systems.ratios(summarise(observations[:1])).head
    assert "baseline" in report_systems.ratios(summarise(observations)).head


def test_each_limit_of_a_figure_is_explained_below_its_table() -> None:
    observations = [
        *seen("native", "cost_tcp", [0.1], "gateways"),
        *seen("openvpn", "cost_tcp", [0.5], "gateways", note="carries less"),
    ]
    text = report_systems.costs(summarise(observations)).render()
    assert "0.50*" in text
    assert text.strip().endswith("\\* carries less, in some rounds.")


def test_the_report_has_every_table_with_aligned_columns() -> None:
    results = Results([*summarise(full_run()), *CORE])
    text = report.render(2, results, [Failure("systems", "x", "tcp", "it | broke")], MACHINE)
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### Targets",
        "### TCP, Gbit/s",
        "### UDP under 1 % loss, packets/s",
        "### UDP under 1 % loss, Gbit/s",
        "### Ping, microseconds",
        "### Packets per CPU-second, 64 bytes, at the highest rate under 1 % loss",
        "### Processor time of TCP at full speed and at 1 Gbit/s, of 100,000 packets/s",
        "### Ratios: native to each other system",
        "### Processor time of the two gateways, % of a core",
        "### Memory, and a gateway without traffic",
        "### Keys by IKE beside manual keys",
        "### IKE",
        "### Two tunnels",
        "### Techniques",
        "### AEAD providers, end to end",
        "### Suites, one TCP stream",
        "### The table of the NetDev 1.1 IPsec BoF, redone",
        "### Scale",
        "### The core alone",
        "### One flow sealed by two threads",
        "### Not measured",
    ]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for above, below in pairwise(text.splitlines()):
        if above.startswith("|") and below.startswith("|"):
            assert len(above) == len(below)
            assert above.count("|") == below.count("|")
    assert any("3.00 (2.00-4.00)" in row for row in rows), "native, TCP: median and range"
    assert "1,000*" in text
    assert "\\* a limit" in text


def test_a_narrow_run_has_no_empty_tables() -> None:
    text = report.render(1, summarise(seen("veth", "tcp", [30.0])), [], MACHINE)
    assert "### TCP, Gbit/s" in text
    assert "### Ping" not in text
    assert "Scale" not in text


def test_the_plots_are_drawn_as_svg_and_png(tmp_path: Path) -> None:
    written = plots.draw(summarise(full_run()), tmp_path / "plots", "a caption")
    names = {"single-stream", "throughput", "udp", "latency", "techniques", "suites"}
    names |= {"cost", "cost-packets"}
    assert {path.name for path in written} == {
        f"{name}.{kind}" for name in names for kind in ("svg", "png")
    }
    for path in written:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            text = "".join(ElementTree.parse(path).getroot().itertext())
            assert "a caption" in text
    stream = (tmp_path / "plots" / "single-stream.svg").read_text()
    assert "Gbit/s" in stream
    assert "wireguard-go" in stream


def test_only_what_was_measured_is_drawn(tmp_path: Path) -> None:
    written = plots.draw(summarise(seen("native", "rtt", [100.0], "median")), tmp_path, "")
    assert {path.stem for path in written} == {"latency"}


def test_the_turns_of_the_systems_are_interleaved() -> None:
    plan = make_plan(Options(rounds=2, sections=("systems",), systems=("veth", "native")))
    turns = [(number, subject.system) for number, _, subject in plan.turns()]
    assert turns == [(0, "veth"), (0, "native"), (1, "veth"), (1, "native")]


def test_a_full_run_fits_its_time_budget() -> None:
    assert make_plan(Options(null_cipher=Path("/x"))).seconds <= 60 * 60
    assert make_plan(Options(quick=True, null_cipher=Path("/x"))).seconds <= 15 * 60


def test_without_the_native_engine_none_of_its_subjects_are_planned() -> None:
    plan = make_plan(Options(native=False))
    systems = {subject.system for _, _, subject in plan.turns()}
    assert systems == set(SYSTEMS) - {"native", "native-ike", "baseline"} | {
        "wireguard-go-2-tunnels"
    }
    assert not plan.scale_rounds
    assert not plan.core_seconds
