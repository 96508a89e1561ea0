"""Settings for all tests, and the options for results.

--evidence: of tests with other implementations. --report: of all tests, for a run that is part of
another one.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A slow or emulated machine must not fail a property test.
settings.register_profile("esp-gw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("esp-gw")
# Tests that several files share, and the assertions of their rigs.
pytest.register_assert_rewrite("tests.support", "tests.vm.debian")

ROOT = Path(__file__).parent
LONGEST = (
    "vm/test_inside.py",
    "property/test_gateway_property.py",
    "lab/test_guard.py",
    "lab/test_ike_gateways.py",
    "lab/test_any_peer.py",
    "lab/test_full_sockets.py",
    "lab/test_standing_state.py",
    "lab/test_traffic.py",
    "lab/test_engine_options.py",
    "lab/test_network.py",
    "lab/test_attacks.py",
    "lab/test_memory.py",
    "lab/test_ike_session.py",
    "lab/test_flapping.py",
    "lab/test_named_peer.py",
    "lab/test_reload.py",
    "lab/test_limits.py",
    "lab/test_tun_ownership.py",
    "lab/test_service.py",
    "lab/test_two_pis.py",
    "lab/test_guard_state.py",
    "lab/test_dhcp.py",
    "lab/test_routing.py",
    "lab/test_crash.py",
    "lab/test_firewall.py",
)
"""Files whose tests take the longest, in the order in which they start.

One that starts last is alone at the end of a run by several processes. Virtual machines, which
keep a processor busy, don't start all at once.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--evidence",
        type=Path,
        metavar="FILE",
        help="append the results of tests that record a 'peer', as JSON lines",
    )
    parser.addoption(
        "--report",
        type=Path,
        metavar="FILE",
        help="append the collected tests, then the result of each phase, as JSON lines",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {ROOT / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def _forked_daemons() -> None:
    # Pytest rewrites the assertions of modules that are imported after its start.
    from tests.support.forked import fork_daemons

    fork_daemons()


def _have_signals_end_programs() -> None:
    """Undo what nohup, or a shell's '&', has passed on: tests end programs as a terminal does."""
    for number, action in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, action)


def pytest_configure(config: pytest.Config) -> None:
    _have_signals_end_programs()
    # With several processes only the controller, which receives all reports, writes.
    if hasattr(config, "workerinput"):
        return
    for option, plugin in (("evidence", Evidence), ("report", Report)):
        file = config.getoption(option)
        if file is not None:
            config.pluginmanager.register(plugin(file))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the slowest tests inside virtual machines, which to --durations are one test a file."""
    wanted = config.getoption("durations")
    reports = [
        report for name in ("passed", "failed") for report in terminalreporter.getreports(name)
    ]
    found = sorted(
        (
            tuple(test)
            for report in reports
            for test in dict(report.user_properties).get("inside", ())
        ),
        reverse=True,
    )
    if wanted is None or not found:
        return
    shown = found[: wanted or None]
    terminalreporter.section(f"slowest {len(shown)} tests in virtual machines")
    for seconds, test in shown:
        terminalreporter.write_line(f"{seconds:.2f}s {test}")


class Evidence:
    """Writes the results of tests that recorded their `peer` by record_property."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        tried = dict(report.user_properties)
        if "peer" not in tried or not (report.when == "call" or report.failed):
            return
        path, _, name = report.nodeid.partition("::")
        record = {"file": path, "test": name.partition("[")[0], "passed": report.passed, **tried}
        with self._file.open("a") as file:
            file.write(json.dumps(record) + "\n")


class Report:
    """Writes the names of the collected tests, then each phase of each test as it ends."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _write(self, record: Mapping[str, object]) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            markers = [mark.name for mark in item.iter_markers()]
            self._write({"collected": item.nodeid, "markers": markers})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(
            {
                "test": report.nodeid,
                "when": report.when,
                "outcome": report.outcome,
                "seconds": report.duration,
                "details": report.longreprtext,
            }
        )
