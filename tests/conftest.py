"""Settings of all tests, and the option --evidence: results with other implementations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A slow machine, or an emulated one, is no fault of the code.
settings.register_profile("esp-gw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("esp-gw")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--evidence",
        type=Path,
        metavar="FILE",
        help="append what the tests with a 'peer' tried and what came of it, as JSON lines",
    )


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("evidence")
    # Of several processes the one that hears of all results writes.
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Evidence(file))


class Evidence:
    """Writes the results of tests that have told their `peer` by record_property."""

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
