"""Tests of the checkout: committed files are sources, never what a build leaves."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST_FILE = 1 << 20
"""Bytes."""


def git(*arguments: str) -> list[str]:
    """Records of a git command that ends each with a zero byte."""
    output = subprocess.run(
        ["git", "-C", str(ROOT), "-c", "safe.directory=*", *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [record for record in output.split("\0") if record]


def test_committed_files_are_regular_files() -> None:
    odd = [
        record
        for record in git("ls-files", "--stage", "-z")
        if not record.startswith(("100644 ", "100755 "))
    ]
    assert odd == []


def test_no_committed_file_is_one_that_git_ignores() -> None:
    assert git("ls-files", "--cached", "--ignored", "--exclude-standard", "-z") == []


def test_no_committed_file_is_large() -> None:
    large = [
        name
        for name in git("ls-files", "-z")
        if (ROOT / name).is_file() and (ROOT / name).stat().st_size > LARGEST_FILE
    ]
    assert large == []
