"""Running `esp-gw` commands inside the test's process."""

from __future__ import annotations

import pytest

from esp_gw.cli.main import main

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *args: str, status: int = 0) -> str:
    """Run a command and return its stdout; check its exit status and an empty stderr."""
    assert main(list(args)) == status
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fail(capsys: Capture, *args: str, status: int = 1) -> str:
    """Run a failing command and return its stderr; check that stdout and traceback are absent."""
    assert main(list(args)) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err
