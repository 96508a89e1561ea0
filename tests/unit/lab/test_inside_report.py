"""`pytest --report`: no test counts as passed that failed, was skipped or never ended."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lab.vm.__main__ import CHECKOUT
from tests.support.inside import Outcome, read_report

TESTS = """
import os
import pytest

def test_passes(): pass

@pytest.mark.root
def test_fails(): assert False, "as it must"

def test_skipped(): pytest.skip("no such machine")

@pytest.fixture
def broken():
    yield
    raise OSError("not ended")

def test_whose_fixture_fails_at_the_end(broken): pass

def test_kills_the_process(): os._exit(0)

def test_that_never_starts(): pass
"""


def test_a_report_tells_how_each_collected_test_ended(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    (tmp_path / "pytest.ini").touch()
    report = tmp_path / "report"
    command = (sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider")
    subprocess.run(
        [*command, f"--report={report}", str(tmp_path / "test_it.py")],
        cwd=CHECKOUT,
        capture_output=True,
        timeout=100,
        check=False,
    )
    found = {outcome.test.partition("::test_")[2]: outcome for outcome in read_report(report)}
    assert all(outcome.seconds >= 0 for outcome in found.values())
    assert {name: _short(outcome) for name, outcome in found.items()} == {
        "passes": (True, []),
        "fails": (True, ["call failed"]),
        "skipped": (True, ["call skipped"]),
        "whose_fixture_fails_at_the_end": (True, ["teardown failed"]),
        "kills_the_process": (False, []),
        "that_never_starts": (False, []),
    }
    assert "as it must" in found["fails"].faults[0]
    assert {name for name, outcome in found.items() if "root" in outcome.markers} == {"fails"}


def _short(outcome: Outcome) -> tuple[bool, list[str]]:
    return outcome.finished, [fault.partition(":")[0] for fault in outcome.faults]


def test_without_a_report_there_are_no_results(tmp_path: Path) -> None:
    assert read_report(tmp_path / "none") == ()
