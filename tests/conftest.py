"""Settings for all tests, and the option --evidence: results with other implementations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A slow or emulated machine must not fail a property test.
settings.register_profile("esp-gw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("esp-gw")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--evidence",
        type=Path,
        metavar="FILE",
        help="append the results of tests that record a 'peer', as JSON lines",
    )


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("evidence")
    # With several processes only the controller, which receives all reports, writes.
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Evidence(file))


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
